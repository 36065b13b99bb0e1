package ebpf

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// dialling is clients that dial without a pause.
type dialling struct {
	stop   atomic.Bool
	wg     sync.WaitGroup
	dialed atomic.Int64
	mu     sync.Mutex // guards failed
	failed error
}

// dialAll begins to dial a Service over networks, in both families.
func dialAll(p *place, service int, networks ...string) *dialling {
	l := &dialling{}
	for _, v6 := range []bool{false, true} {
		for _, network := range networks {
			l.wg.Go(func() {
				for !l.stop.Load() {
					if _, err := p.ask(network, at(clusterIP(v6, service))); err != nil {
						l.mu.Lock()
						l.failed = err
						l.mu.Unlock()
					}
					l.dialed.Add(1)
				}
			})
		}
	}
	return l
}

// end expects that nobody failed.
func (l *dialling) end(t testing.TB) {
	t.Helper()
	l.stop.Store(true)
	l.wg.Wait()
	if l.failed != nil {
		t.Errorf("a client failed among %d: %v", l.dialed.Load(), l.failed)
	}
	if l.dialed.Load() == 0 {
		t.Error("no client dialled")
	}
}

// more waits until so many more have dialled.
func (l *dialling) more(n int64) {
	for until := l.dialed.Load() + n; l.dialed.Load() < until; {
		yield()
	}
}

func TestNoClientFails(t *testing.T) {
	const endpointsChange = "while endpoints come and go"
	for name, during := range map[string]func(n *testNode){
		"while the agent starts again": func(n *testNode) { n.restart() },
		"while an agent with other layouts follows": func(n *testNode) {
			if err := n.Close(); err != nil {
				n.t.Fatal(err)
			}
			otherLayout(n.t, n.options.Pins)
			n.open()
		},
		"while maps grow": func(n *testNode) {
			n.options.first.frontends, n.options.first.slots = 1, 1
			n.restart()
		},
		endpointsChange: func(n *testNode) { // connections to what is in the Snapshot and not ready are finished
			n.set(spec{n: 1, endpoints: []int{3, 4, 5}, notReady: []int{1, 2, 6}})
			n.sync()
			n.set(spec{n: 1, endpoints: []int{5, 1, 2}, notReady: []int{3, 4, 6}})
			n.sync()
			n.set(spec{n: 1, endpoints: []int{6}, notReady: []int{1, 2, 3, 4, 5}})
			n.sync()
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			n := newNode(t)
			n.set(spec{n: 1, endpoints: []int{1, 2, 3}})
			n.sync()
			networks := []string{"tcp", "udp"}
			if name == endpointsChange { // sockets of UDP are closed then
				networks = networks[:1]
			}
			clients := dialAll(p, 1, networks...)
			for round := range 10 {
				during(n)
				if round%2 == 1 { // and something changed meanwhile
					n.set(spec{n: 2 + round, endpoints: []int{1}})
				}
				n.sync()
				clients.more(20)
			}
			clients.end(t)
			n.check()
			onePinEach(t, n)
		})
	}
}

// otherLayout renames the pins of maps to what they would be called if their layout were another one.
func otherLayout(t testing.TB, dir string) {
	t.Helper()
	names, err := pinned(dir)
	if err != nil {
		t.Fatal(err)
	}
	renamed := 0
	for _, name := range names {
		parts := strings.Split(name, "-")
		if parts[0]+"-" != mapPrefix || len(parts) != 4 || parts[2] == "00000000" {
			continue
		}
		parts[2] = "00000000"
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, strings.Join(parts, "-"))); err != nil {
			t.Fatal(err)
		}
		renamed++
	}
	if renamed < 9 {
		t.Fatalf("renamed only %d of %v", renamed, names)
	}
}

// onePinEach expects one pin of each map and of each hook, and no other.
func onePinEach(t testing.TB, n *testNode) {
	t.Helper()
	names, err := pinned(n.options.Pins)
	if err != nil || len(names) != 9+9*len(n.options.Cgroups) {
		t.Errorf("pins: %v, %v", names, err)
	}
	for name := range n.maps.pins(n.spec) {
		if _, err := os.Stat(filepath.Join(n.options.Pins, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestSocketsOutliveTheAgent(t *testing.T) {
	p := newPlace(t)
	n := newNode(t)
	n.set(spec{n: 1, endpoints: []int{1, 2, 3, 4, 5, 6, 7, 8, 9}})
	n.sync()
	to := at(clusterIP(false, 1))
	c, s := p.mustDial(t, "tcp", to), newTalker(t, p, false)
	first := s.ask(to)
	n.restart()
	n.sync()
	if got := peer(t, c); got != to {
		t.Errorf("getpeername: %s, want %s", got, to)
	}
	if got := s.ask(to); got != first {
		t.Errorf("a datagram went to %s, before the agent started again to %s", got, first)
	}
	if got, err := exchange(c); err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// While no agent runs, everything is as it was; the next one finds out what has changed since, and writes no more than that.
func TestANewAgentWritesWhatHasChanged(t *testing.T) {
	p := newPlace(t)
	n := newNode(t)
	for number := range 50 {
		n.set(spec{n: 1 + number, endpoints: []int{1, 2, 3}})
	}
	n.sync()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	p.expect(t, "tcp", at(clusterIP(false, 1)), "1", "2", "3")
	n.open()
	n.set(spec{n: 1, endpoints: []int{1, 3}})
	n.unset(2)
	n.sync()
	// Of each of 2 families and 3 protocols: one slot written, one deleted, and one member. Of 2 protocols and 5 addresses of IPv4, 4 of IPv6: 18 frontends; and
	// everything of the other Service, 3 slots and members.
	if want := 2*3*3 + 18 + 2*3*6 + 18; n.written != want {
		t.Errorf("the new agent wrote %d entries, want %d", n.written, want)
	}
	n.check()
	p.expect(t, "tcp", at(clusterIP(false, 1)), "1", "3")
	p.refuse(t, "tcp", at(clusterIP(false, 2)))
}

func TestRemove(t *testing.T) {
	p := newPlace(t)
	for name, remove := range map[string]func(n *testNode) error{
		"by the agent":                    func(n *testNode) error { return n.Remove(t.Context()) },
		"by one that has not synced":      func(n *testNode) error { n.restart(); return n.Remove(t.Context()) },
		"by one that cannot run programs": func(n *testNode) error { return RemovePins(n.options.Pins) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.set(spec{n: 1, endpoints: []int{1}})
			n.sync()
			p.expect(t, "tcp", at(clusterIP(false, 1)), "1")
			if err := remove(n); err != nil {
				t.Fatal(err)
			}
			p.refuse(t, "tcp", at(clusterIP(false, 1)))
		})
	}
	if err := RemovePins(filepath.Join(t.TempDir(), "nothing")); err != nil {
		t.Error(fmt.Errorf("where nobody ever pinned: %w", err))
	}
}
