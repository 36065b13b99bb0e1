package ebpf

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
)

func TestAffinity(t *testing.T) {
	here, there := newPlace(t), newPlace(t)
	n := newNode(t)
	all := []int{1, 2, 3, 4, 5, 6, 7, 8, 9}
	eachNetwork(t, func(t *testing.T, v6 bool, network string) {
		n.t = t
		n.set(spec{n: 1, endpoints: all, affinity: 3600})
		n.sync()
		to := at(clusterIP(v6, 1))
		stuck := func(p *place) string {
			t.Helper()
			first, err := p.ask(network, to)
			if err != nil {
				t.Fatal(err)
			}
			for range 20 {
				p.expect(t, network, to, first)
			}
			p.expect(t, network, at(externalIP(v6, 1)), first) // another frontend of the same port
			return first
		}
		// Every client has its own. Two have the same one in 1 of 9 cases, so that is no proof; but nobody has all.
		first := stuck(here)
		stuck(there)

		// It ends with its endpoint, and another one begins.
		var gone int
		_, _ = fmt.Sscan(first, &gone)
		var others []int
		for _, number := range all {
			if number != gone {
				others = append(others, number)
			}
		}
		n.set(spec{n: 1, endpoints: others, notReady: []int{gone}, affinity: 3600})
		n.sync()
		if second := stuck(here); second == first {
			t.Errorf("%s answers, which is not ready", second)
		}

		// It ends with the Service's wish.
		n.set(spec{n: 1, endpoints: []int{1, 2}})
		n.sync()
		here.expect(t, network, to, "1", "2")
	})
}

func TestAffinityEndsWithItsTime(t *testing.T) {
	p := newPlace(t)
	n := newNode(t)
	n.set(spec{n: 1, endpoints: []int{1, 2}, affinity: 3600})
	n.sync()
	eachNetwork(t, func(t *testing.T, v6 bool, network string) {
		to := at(clusterIP(v6, 1))
		seen := map[string]bool{}
		for range 1000 {
			got, err := p.ask(network, to)
			if err != nil {
				t.Fatal(err)
			}
			seen[got] = true
			p.expect(t, network, to, got)
			if len(seen) == 2 {
				return
			}
			age(t, n.maps.affinities, 3601)
		}
		t.Errorf("only %v answered, after a thousand times an hour", seen)
	})
}

// age makes all entries older by so many seconds.
func age(t *testing.T, m *ebpf.Map, seconds uint64) {
	t.Helper()
	var key programAffinityKey
	var value programAffinity
	for entries := m.Iterate(); entries.Next(&key, &value); {
		value.Used -= seconds * 1e9
		if err := m.Put(&key, &value); err != nil {
			t.Fatal(err)
		}
	}
}
