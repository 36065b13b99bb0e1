package ebpf

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/endpointd/endpointd/internal/dataplane/slots"
)

func yield() { runtime.Gosched() }

// check compares the maps with what the Snapshot means, worked out without any history.
func (n *testNode) check() {
	n.t.Helper()
	c, err := n.maps.contents(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	if w := difference(contents{slots: maps.Clone(c.slots), members: maps.Clone(c.members), frontends: maps.Clone(c.frontends)}, n.table); w.count() > 0 {
		n.t.Fatalf("the maps are not what is in the table: %+v", w)
	}
	fresh := slots.New()
	fresh.Apply(fresh.Plan(nil, n.snap))
	if len(fresh.Pools) != len(n.table.Pools) {
		n.t.Fatalf("%d pools, want %d", len(n.table.Pools), len(fresh.Pools))
	}
	for id, want := range fresh.Pools {
		got := slices.Clone(n.table.Pools[id])
		slices.SortFunc(got, func(a, b addrPort) int { return a.Compare(b) })
		slices.SortFunc(want, func(a, b addrPort) int { return a.Compare(b) })
		if !slices.Equal(got, want) {
			n.t.Fatalf("pool %d: %v, want %v", id, got, want)
		}
	}
	count := 0
	for key, f := range fresh.Frontends {
		want := frontendValue(key, f)
		if want == (programFrontend{}) {
			continue
		}
		count++
		if got := c.frontends[frontendKey(key)]; got != want {
			n.t.Fatalf("frontend %v: %+v, want %+v", key, got, want)
		}
	}
	if count != len(c.frontends) {
		n.t.Fatalf("%d frontends, want %d", len(c.frontends), count)
	}
}

// TestWalk goes through random states; damage, restarts and growth among them.
func TestWalk(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	n := newNode(t, func(o *Options) { o.first.frontends, o.first.slots, o.Compare = 1, 1, 1 })
	n.sync()
	for range 60 {
		var did []string
		for range 1 + r.IntN(4) {
			did = append(did, n.step(r))
		}
		n.sync()
		n.check()
		before := n.written
		if err := n.Sync(t.Context(), n.snap); err != nil || n.written != before {
			t.Fatalf("after %v, a second Sync wrote %d entries, %v", did, n.written-before, err)
		}
		if r.IntN(5) == 0 {
			did = append(did, n.damage(r))
			if repaired, err := n.Verify(t.Context()); err != nil || !repaired {
				t.Fatalf("after %v: repaired %t, %v", did, repaired, err)
			}
			n.check()
		}
		if repaired, err := n.Verify(t.Context()); err != nil || repaired {
			t.Fatalf("after %v, with nothing to repair: repaired %t, %v", did, repaired, err)
		}
		onePinEach(t, n)
	}
}

// step changes something at random and says what.
func (n *testNode) step(r *rand.Rand) string {
	number := 1 + r.IntN(12)
	switch r.IntN(10) {
	case 0:
		n.unset(number)
		return fmt.Sprint("unset ", number)
	case 1:
		n.restart()
		return "restart"
	case 2:
		if err := n.Close(); err != nil {
			n.t.Fatal(err)
		}
		otherLayout(n.t, n.options.Pins)
		n.open()
		return "other layout"
	default:
		s := spec{n: number, affinity: r.IntN(2) * 60}
		for _, e := range r.Perm(40)[:r.IntN(40)] {
			s.endpoints = append(s.endpoints, 1+e)
		}
		if r.IntN(4) == 0 {
			s.ranges = []string{"10.0.0.0/8"}
		}
		n.set(s)
		return fmt.Sprintf("set %+v", s)
	}
}
