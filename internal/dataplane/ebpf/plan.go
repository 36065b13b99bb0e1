package ebpf

import (
	"github.com/endpointd/endpointd/internal/dataplane/slots"
)

// entries of a map that are to be written, and keys that are to be deleted.
type entries[K comparable, V any] struct {
	keys   []K
	values []V
	gone   []K
}

func (e *entries[K, V]) put(key K, value V) {
	e.keys = append(e.keys, key)
	e.values = append(e.values, value)
}

func (e *entries[K, V]) delete(key K) { e.gone = append(e.gone, key) }

// writes are what the maps of the table are to be told. The order is: members, slots and frontends that are put; then frontends, slots and
// members that are deleted. So nobody is ever led to a slot that is not there, and none is believed that is no member.
type writes struct {
	frontends entries[programAddrPort, programFrontend]
	slots     entries[programSlotKey, programAddrPort]
	members   entries[programMemberKey, uint32]
}

// count is how many entries they are.
func (w *writes) count() int {
	return len(w.frontends.keys) + len(w.frontends.gone) + len(w.slots.keys) + len(w.slots.gone) + len(w.members.keys) + len(w.members.gone)
}

// present is the value of a member.
const present = 1

// plan is what a Change means for the maps. It is right only for a Change from what is known to be in the kernel.
func plan(c *slots.Change) *writes {
	w := &writes{}
	for _, f := range c.Frontends {
		was, now := frontendValue(f.Key, f.Was), frontendValue(f.Key, f.Now)
		switch {
		case was == now:
		case now == programFrontend{}:
			w.frontends.delete(frontendKey(f.Key))
		default:
			w.frontends.put(now.Key, now)
		}
	}
	moved := make(map[programMemberKey]int, len(c.Slots)) // +1: came, -1: went, 0: has another slot
	for _, s := range c.Slots {
		if s.Now.IsValid() {
			w.slots.put(slotKey(s.Slot), toKernel(s.Now))
			moved[memberKey(s.Pool, s.Now)]++
		} else {
			w.slots.delete(slotKey(s.Slot))
		}
		if s.Was.IsValid() {
			moved[memberKey(s.Pool, s.Was)]--
		}
	}
	for key, n := range moved {
		switch {
		case n > 0:
			w.members.put(key, present)
		case n < 0:
			w.members.delete(key)
		}
	}
	return w
}

// contents are what was read back from the maps.
type contents struct {
	frontends map[programAddrPort]programFrontend
	slots     map[programSlotKey]programAddrPort
	members   map[programMemberKey]uint32
}

// difference is what turns contents into a Table. It uses up the contents.
func difference(c contents, t *slots.Table) *writes {
	w := &writes{}
	for key, f := range t.Frontends {
		value := frontendValue(key, f)
		if value != (programFrontend{}) {
			differ(&w.frontends, c.frontends, value.Key, value)
		}
	}
	for pool, held := range t.Pools {
		for i, endpoint := range held {
			differ(&w.slots, c.slots, slotKey(slots.Slot{Pool: pool, Index: uint32(i)}), toKernel(endpoint))
			differ(&w.members, c.members, memberKey(pool, endpoint), present)
		}
	}
	leave(&w.frontends, c.frontends)
	leave(&w.slots, c.slots)
	leave(&w.members, c.members)
	return w
}

// differ notes one entry that should be there.
func differ[K, V comparable](e *entries[K, V], has map[K]V, key K, value V) {
	was, ok := has[key]
	if ok {
		delete(has, key)
	}
	if !ok || was != value {
		e.put(key, value)
	}
}

// leave notes what should not be there.
func leave[K, V comparable](e *entries[K, V], left map[K]V) {
	for key := range left {
		e.delete(key)
	}
}

// adopt is the Table of a kernel that has these contents. Slots that a pool cannot have are left out.
func adopt(c contents) *slots.Table {
	t := slots.New()
	for key, value := range c.frontends {
		k, f := readFrontend(key, value)
		t.Frontends[k] = f
	}
	sizes := map[uint64]uint32{} // pool → number of its slots
	for key := range c.slots {
		sizes[key.Pool]++
	}
	for key, endpoint := range c.slots {
		if key.Index < sizes[key.Pool] && key.Zero == 0 {
			t.SetSlot(slots.Slot{Pool: slots.PoolID(key.Pool), Index: key.Index}, fromKernel(endpoint))
		}
	}
	return t
}
