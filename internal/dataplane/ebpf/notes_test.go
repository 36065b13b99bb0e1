package ebpf

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A noteNode counts how often sockets were looked at.
type noteNode struct {
	*testNode
	p     *place
	looks atomic.Int64
}

// newNoteNode has two Services with an endpoint each, and nothing left to look for.
func newNoteNode(t *testing.T, change ...func(*Options)) *noteNode {
	t.Helper()
	n := &noteNode{p: newPlace(t)}
	count := func(o *Options) {
		o.Namespaces = func() []string { n.looks.Add(1); return nil }
		o.pauses = []time.Duration{time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond}
	}
	n.p.do(t, func() error { n.testNode = newNode(t, append(change, count)...); return nil })
	n.set(spec{n: 1, endpoints: []int{1}})
	n.set(spec{n: 2, endpoints: []int{2}})
	n.sync()
	n.settle()
	if !n.complete() || n.looks.Load() == 0 {
		t.Fatalf("a new agent looked %d times, and the notes are complete: %t", n.looks.Load(), n.complete())
	}
	n.looks.Store(0)
	return n
}

func (n *noteNode) complete() bool {
	n.t.Helper()
	complete, err := n.isComplete()
	if err != nil {
		n.t.Fatal(err)
	}
	return complete
}

// endpoints are how many are noted.
func (n *noteNode) endpoints() int {
	n.t.Helper()
	notes, err := read[programMemberKey, uint32](n.t.Context(), n.maps.used)
	if err != nil {
		n.t.Fatal(err)
	}
	delete(notes, programMemberKey{})
	return len(notes)
}

func (n *noteNode) dial(network string, service int) net.Conn {
	n.t.Helper()
	c := n.p.mustDial(n.t, network, at(clusterIP(false, service)))
	n.talks(c)
	return c
}

func (n *noteNode) talks(c net.Conn) {
	n.t.Helper()
	if _, err := exchange(c); err != nil {
		n.t.Errorf("a connection that should stay: %v", err)
	}
}

func (n *noteNode) restart() {
	n.t.Helper()
	n.p.do(n.t, func() error { n.testNode.restart(); return nil })
}

// lookless expects that no socket was looked at since the last time.
func (n *noteNode) lookless(when string) {
	n.t.Helper()
	n.settle()
	if looks := n.looks.Load(); looks > 0 {
		n.t.Errorf("%s, sockets were looked at %d times", when, looks)
	}
}

func TestNobodyLooksForSocketsThatCannotBe(t *testing.T) {
	n := newNoteNode(t, func(o *Options) { o.Compare = 1 })
	tcp, udp := n.dial("tcp", 1), n.dial("udp", 1)
	n.talks(n.p.mustDial(t, "tcp", netip.AddrPortFrom(endpointIP(false, 2), targetPort))) // not through the Service
	n.set(spec{n: 2, endpoints: []int{3}})
	n.sync()
	n.lookless("an endpoint left that nobody was led to")
	n.unset(2)
	n.sync()
	n.lookless("a Service left that nobody dialled")
	if _, err := n.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.lookless("Verify found nothing")
	n.restart()
	n.sync()
	n.lookless("a new agent found the notes of the last")
	n.set(spec{n: 1, endpoints: []int{4}})
	n.sync()
	aborted(t, tcp)
	aborted(t, udp)
	n.settle()
	if n.looks.Load() == 0 {
		t.Error("sockets were closed, and not looked at")
	}
	if got := n.endpoints(); got != 2 {
		t.Errorf("%d endpoints are noted, want those of two protocols", got)
	}
	n.set(spec{n: 3, endpoints: []int{5}})
	n.sync()
	if got := n.endpoints(); got != 0 {
		t.Errorf("%d endpoints are noted, and all have left", got)
	}
}

// A connection of TCP is closed when its endpoint leaves the Snapshot, however long after its pool, and whoever the agent is then.
func TestEndpointThatLeavesInTwoSteps(t *testing.T) {
	for name, between := range map[string]func(n *noteNode){
		"the same agent": func(*noteNode) {},
		"another agent":  func(n *noteNode) { n.restart(); n.sync(); n.settle() },
		"after Verify":   func(n *noteNode) { _, err := n.Verify(t.Context()); n.must(err); n.settle() },
		"with other maps": func(n *noteNode) {
			n.options.first.frontends, n.options.first.slots = 1, 1
			for number := range 400 {
				n.set(spec{n: 10 + number, endpoints: []int{5, 6, 7}})
			}
			n.sync()
			n.settle()
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNoteNode(t, func(o *Options) { o.Compare = 1 })
			c := n.dial("tcp", 1)
			n.set(spec{n: 1, endpoints: []int{3}, notReady: []int{1}})
			n.sync()
			n.settle()
			n.talks(c)
			between(n)
			n.talks(c)
			if !n.complete() || n.endpoints() != 1 {
				t.Fatalf("notes are complete: %t, of %d endpoints", n.complete(), n.endpoints())
			}
			n.set(spec{n: 1, endpoints: []int{3}})
			n.sync()
			aborted(t, c)
		})
	}
}

func TestEndpointThatComesBack(t *testing.T) {
	n := newNoteNode(t)
	c := n.dial("tcp", 1)
	for range 3 { // faster than the closer, and then slower
		n.set(spec{n: 1, endpoints: []int{3}, notReady: []int{1}})
		n.sync()
		n.set(spec{n: 1, endpoints: []int{1}})
		n.sync()
	}
	n.set(spec{n: 1, endpoints: []int{3}, notReady: []int{1}})
	n.sync()
	n.settle()
	n.set(spec{n: 1, endpoints: []int{1}})
	n.sync()
	n.settle()
	later := n.dial("udp", 1)
	n.talks(c)
	n.set(spec{n: 1, endpoints: []int{3}})
	n.sync()
	aborted(t, c)
	aborted(t, later)
}

// What left and came back has no note any more, and gets one again.
func TestNoteIsWrittenAgain(t *testing.T) {
	n := newNoteNode(t)
	aborts := func() {
		t.Helper()
		c := n.dial("udp", 1)
		n.set(spec{n: 1, endpoints: []int{3}})
		n.sync()
		aborted(t, c)
	}
	aborts()
	n.settle()
	n.set(spec{n: 1, endpoints: []int{1}})
	n.sync() // forgets
	if got := n.endpoints(); got != 0 {
		t.Errorf("%d endpoints are noted", got)
	}
	aborts()
}

func TestNewAgentTrustsNotes(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			n := newNoteNode(t)
			gone, stays := n.dial(network, 1), n.dial(network, 2)
			n.must(n.Close())
			n.p.do(t, func() error { n.open(); return nil })
			if !n.complete() {
				t.Fatal("the notes are not complete")
			}
			n.set(spec{n: 1, endpoints: []int{3}})
			n.sync()
			aborted(t, gone)
			n.talks(stays)
		})
	}
}

// With more endpoints than notes everything is looked at, until there is room again.
func TestTooManyNotes(t *testing.T) {
	n := newNoteNode(t, func(o *Options) { o.first.used, o.Compare = 2, 1 })
	first, second, third := n.dial("tcp", 1), n.dial("udp", 1), n.dial("tcp", 2)
	if n.complete() {
		t.Fatalf("%d endpoints are noted, and that should not be all", n.endpoints())
	}
	n.restart()
	n.sync()
	n.settle()
	if n.complete() {
		t.Fatal("a new agent has found room")
	}
	n.set(spec{n: 1, endpoints: []int{3}, notReady: []int{1}})
	n.sync()
	aborted(t, second)
	n.settle()
	n.talks(first)
	n.talks(third)
	n.set(spec{n: 1, endpoints: []int{3}})
	n.sync()
	aborted(t, first)
	n.settle()
	for range 2 { // the first deletes notes that are of no use
		_, err := n.Verify(t.Context())
		n.must(err)
		n.settle()
	}
	if !n.complete() || n.endpoints() != 1 {
		t.Errorf("notes are complete: %t, of %d endpoints, want all of 1", n.complete(), n.endpoints())
	}
	n.unset(2)
	n.sync()
	aborted(t, third)
}

// An agent that finds no notes looks at everything, and notes it.
func TestMissingNotesAreMadeUpFor(t *testing.T) {
	for name, lose := range map[string]func(n *noteNode) error{
		"no map": func(n *noteNode) error {
			s := n.spec.Maps[programMapUsed].Copy()
			s.MaxEntries = n.maps.used.MaxEntries()
			return unix.Unlink(n.options.Pins + "/" + pinName(s))
		},
		"an agent that ended while it looked": func(n *noteNode) error {
			notes, err := read[programMemberKey, uint32](t.Context(), n.maps.used)
			for key := range notes {
				err = errors.Join(err, n.maps.used.Delete(&key))
			}
			return errors.Join(err, n.learn())
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNoteNode(t)
			c, other := n.dial("tcp", 1), n.dial("tcp", 2)
			if err := lose(n); err != nil {
				t.Fatal(err)
			}
			n.restart()
			if n.complete() {
				t.Fatal("the notes are complete")
			}
			n.sync()
			n.settle()
			if !n.complete() || n.endpoints() != 2 {
				t.Fatalf("notes are complete: %t, of %d endpoints, want 2", n.complete(), n.endpoints())
			}
			n.unset(1)
			n.sync()
			aborted(t, c)
			n.talks(other)
		})
	}
}

// What has come back when the closer is done with it keeps its note.
func TestNoteOfAMemberStays(t *testing.T) {
	n := newNoteNode(t)
	n.dial("tcp", 1)
	notes, err := read[programMemberKey, uint32](t.Context(), n.maps.used)
	n.must(err)
	delete(notes, programMemberKey{})
	n.closer.finish(slices.Collect(maps.Keys(notes)))
	n.set(spec{n: 3, endpoints: []int{3}})
	n.sync()
	if got := n.endpoints(); len(notes) != 1 || got != 1 {
		t.Errorf("of %d notes %d are left, want 1 of 1", len(notes), got)
	}
}

// What leaves again before its note is deleted keeps it.
func TestWhatLeftAgainIsNotDone(t *testing.T) {
	once, again := programMemberKey{Pool: 1}, programMemberKey{Pool: 2}
	c := &closer{wake: make(chan struct{}, 1), done: map[programMemberKey]bool{}}
	expect := func(want ...programMemberKey) {
		t.Helper()
		if got := c.takeDone(); !slices.Equal(got, want) {
			t.Errorf("done: %v, want %v", got, want)
		}
	}
	c.finish([]programMemberKey{once, again})
	c.look(nil, left{members: []programMemberKey{again}})
	expect(once)
	c.finish([]programMemberKey{once, again})
	expect(once)
	c.take()
	c.finish([]programMemberKey{again})
	expect(again)
	expect()
}
