package slots

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/endpointd/endpointd/internal/model"
)

// A gapped list is what is right and wrong in the slots of a pool.
type gapped struct {
	gaps []int            // slots whose endpoint should not be there, or that have none: ascending
	come []netip.AddrPort // endpoints that need a slot, sorted
}

// compare finds out with nothing known but what is there and what should be. Slots may have no or the same endpoint: a kernel was read.
func compare(held []netip.AddrPort, want []*model.Endpoint) gapped {
	var g gapped
	missing := make(map[netip.AddrPort]struct{}, len(want))
	for _, e := range want {
		missing[e.AddrPort] = struct{}{}
	}
	for i, addr := range held {
		if _, ok := missing[addr]; ok {
			delete(missing, addr)
		} else {
			g.gaps = append(g.gaps, i)
		}
	}
	g.come = slices.SortedFunc(maps.Keys(missing), netip.AddrPort.Compare)
	return g
}

// difference of two sorted lists of endpoints.
func difference(was, now []*model.Endpoint) (gone, come []netip.AddrPort) {
	for len(was) > 0 && len(now) > 0 {
		if was[0] == now[0] {
			was, now = was[1:], now[1:]
			continue
		}
		switch c := was[0].Compare(now[0].AddrPort); {
		case c < 0:
			gone, was = append(gone, was[0].AddrPort), was[1:]
		case c > 0:
			come, now = append(come, now[0].AddrPort), now[1:]
		default:
			was, now = was[1:], now[1:]
		}
	}
	for _, e := range was {
		gone = append(gone, e.AddrPort)
	}
	for _, e := range now {
		come = append(come, e.AddrPort)
	}
	return gone, come
}

// locate finds the slots of what is gone.
func locate(held, gone, come []netip.AddrPort) gapped {
	g := gapped{come: come}
	if len(gone) == 0 {
		return g
	}
	search := make(map[netip.AddrPort]struct{}, len(gone))
	for _, addr := range gone {
		search[addr] = struct{}{}
	}
	for i, addr := range held {
		if _, ok := search[addr]; ok {
			g.gaps = append(g.gaps, i)
		}
	}
	return g
}

// place fills the gaps: with what comes, then with what is in the last slots. What does not fit is appended.
func (p *planning) place(id PoolID, protocol model.Protocol, held []netip.AddrPort, g gapped) {
	change := func(index int, now netip.AddrPort) {
		var was netip.AddrPort
		if index < len(held) {
			was = held[index]
		}
		if was == now {
			return // a hole at the end of what was read
		}
		p.change.Slots = append(p.change.Slots, SlotChange{Slot: Slot{Pool: id, Index: uint32(index)}, Protocol: protocol, Was: was, Now: now})
	}
	gaps, come, size := g.gaps, g.come, len(held)
	for len(gaps) > 0 && len(come) > 0 {
		change(gaps[0], come[0])
		gaps, come = gaps[1:], come[1:]
	}
	for _, addr := range come {
		change(size, addr)
		size++
	}
	for len(gaps) > 0 {
		size--
		if last := len(gaps) - 1; gaps[last] == size {
			gaps = gaps[:last]
		} else {
			change(gaps[0], held[size])
			gaps = gaps[1:]
		}
		change(size, netip.AddrPort{})
	}
}

// Apply records that the kernel has taken a Change that was planned for this Table.
func (t *Table) Apply(c *Change) {
	for _, f := range c.Frontends {
		if f.Now.Present {
			t.Frontends[f.Key] = f.Now
		} else {
			delete(t.Frontends, f.Key)
		}
	}
	for _, s := range c.Slots {
		if s.Now.IsValid() || int(s.Index) < len(t.Pools[s.Pool]) {
			t.SetSlot(s.Slot, s.Now)
		}
	}
	for _, s := range c.Slots {
		held := t.Pools[s.Pool]
		for len(held) > 0 && !held[len(held)-1].IsValid() {
			held = held[:len(held)-1]
		}
		if t.Pools[s.Pool] = held; len(held) == 0 {
			delete(t.Pools, s.Pool)
		}
	}
	for _, s := range c.SourcesAdded {
		t.AddSource(s)
	}
	for _, s := range c.SourcesRemoved {
		delete(t.Sources[s.Frontend], s.Range)
		if len(t.Sources[s.Frontend]) == 0 {
			delete(t.Sources, s.Frontend)
		}
	}
	for addr, change := range c.hairpins {
		t.Hairpins[addr] += change
		if t.Hairpins[addr] <= 0 {
			delete(t.Hairpins, addr)
		}
	}
}

// SetSlot notes what is in a slot. Slots below it that are not there yet are zero: Plan fills them.
func (t *Table) SetSlot(s Slot, addr netip.AddrPort) {
	held := t.Pools[s.Pool]
	if missing := int(s.Index) + 1 - len(held); missing > 0 {
		held = append(held, make([]netip.AddrPort, missing)...)
	}
	held[s.Index] = addr
	t.Pools[s.Pool] = held
}
