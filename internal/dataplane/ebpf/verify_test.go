package ebpf

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/dataplane/slots"
)

type addrPort = netip.AddrPort

// damages are what others may do. Each returns false if there is nothing to damage.
func damages() map[string]func(n *testNode, r *rand.Rand) bool {
	anyKey := func(n *testNode, r *rand.Rand) (slots.Slot, bool) {
		ids := slices.Sorted(maps.Keys(n.table.Pools))
		if len(ids) == 0 {
			return slots.Slot{}, false
		}
		id := ids[r.IntN(len(ids))]
		return slots.Slot{Pool: id, Index: uint32(r.IntN(len(n.table.Pools[id])))}, true
	}
	return map[string]func(n *testNode, r *rand.Rand) bool{
		"a slot deleted": func(n *testNode, r *rand.Rand) bool {
			s, ok := anyKey(n, r)
			key := slotKey(s)
			return ok && n.must(n.maps.slots.Delete(&key))
		},
		"a slot with another endpoint": func(n *testNode, r *rand.Rand) bool {
			s, ok := anyKey(n, r)
			key, value := slotKey(s), toKernel(netip.MustParseAddrPort("192.0.2.1:1"))
			return ok && n.must(n.maps.slots.Put(&key, &value))
		},
		"a member deleted": func(n *testNode, r *rand.Rand) bool {
			s, ok := anyKey(n, r)
			if !ok {
				return false
			}
			key := memberKey(s.Pool, n.table.Pools[s.Pool][s.Index])
			return n.must(n.maps.members.Delete(&key))
		},
		"a slot far away": func(n *testNode, _ *rand.Rand) bool {
			key, value := programSlotKey{Pool: 1, Index: 1 << 31}, programAddrPort{}
			return n.must(n.maps.slots.Put(&key, &value))
		},
		"a frontend of nobody": func(n *testNode, _ *rand.Rand) bool {
			key, value := programAddrPort{Protocol: 6}, programFrontend{Size: 1}
			return n.must(n.maps.frontends.Put(&key, &value))
		},
		"a link detached": func(n *testNode, r *rand.Rand) bool {
			names := slices.Sorted(maps.Keys(n.attached.links))
			return n.must(n.attached.links[names[r.IntN(len(names))]].Detach())
		},
		"a pin removed": func(n *testNode, r *rand.Rand) bool {
			names, err := pinned(n.options.Pins)
			n.must(err)
			return n.must(os.Remove(filepath.Join(n.options.Pins, names[r.IntN(len(names))])))
		},
		"all pins removed": func(n *testNode, _ *rand.Rand) bool {
			return n.must(RemovePins(n.options.Pins))
		},
	}
}

func (n *testNode) must(err error) bool {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
	return true
}

// damage does one of them and says which.
func (n *testNode) damage(r *rand.Rand) string {
	all := damages()
	names := slices.Sorted(maps.Keys(all))
	for {
		if name := names[r.IntN(len(names))]; all[name](n, r) {
			return name
		}
	}
}

func TestVerifyRepairs(t *testing.T) {
	p := newPlace(t)
	for name, damage := range damages() {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, func(o *Options) { o.Compare = 1 })
			n.set(spec{n: 1, endpoints: []int{1, 2}})
			n.sync()
			if !damage(n, rand.New(rand.NewPCG(1, 2))) {
				t.Fatal("nothing was damaged")
			}
			if repaired, err := n.Verify(t.Context()); err != nil || !repaired {
				t.Errorf("repaired %t, %v", repaired, err)
			}
			n.check()
			onePinEach(t, n)
			eachNetwork(t, func(t *testing.T, v6 bool, network string) { p.expect(t, network, at(clusterIP(v6, 1)), "1", "2") })
			if repaired, err := n.Verify(t.Context()); err != nil || repaired {
				t.Errorf("again: repaired %t, %v", repaired, err)
			}
			// The next agent finds what it needs.
			n.restart()
			n.sync()
			n.check()
		})
	}
}

// Whatever a kernel holds when an agent starts, it is right after the first Sync.
func TestAnythingIsAdopted(t *testing.T) {
	for name, damage := range damages() {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.set(spec{n: 1, endpoints: []int{1, 2, 3}})
			n.set(spec{n: 2, endpoints: []int{4}})
			n.sync()
			damage(n, rand.New(rand.NewPCG(1, 2)))
			n.restart()
			n.set(spec{n: 2, endpoints: []int{5, 6}})
			n.sync()
			n.check()
			onePinEach(t, n)
		})
	}
}

func TestVerifyReadsMapsOnceAPeriod(t *testing.T) {
	n := newNode(t, func(o *Options) { o.Compare = time.Hour })
	n.set(spec{n: 1, endpoints: []int{1}})
	n.sync()
	damages()["a slot deleted"](n, rand.New(rand.NewPCG(1, 2)))
	if repaired, err := n.Verify(t.Context()); err != nil || repaired {
		t.Errorf("within the hour: repaired %t, %v", repaired, err)
	}
	n.compared = n.compared.Add(-time.Hour)
	if repaired, err := n.Verify(t.Context()); err != nil || !repaired {
		t.Errorf("after the hour: repaired %t, %v", repaired, err)
	}
	n.check()
}
