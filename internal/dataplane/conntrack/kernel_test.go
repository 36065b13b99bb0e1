package conntrack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/testkit"
)

// node is a place with a Tracker, in which what a world says is in force.
type node struct {
	*place
	t       testing.TB
	tracker *Tracker
	world   *world
	// extra is translated too, by somebody else as it were.
	extra map[frontend]netip.AddrPort
}

func newNode(t testing.TB) *node {
	n := &node{place: newPlace(t), t: t, extra: map[frontend]netip.AddrPort{}}
	n.restart()
	t.Cleanup(func() { _ = n.tracker.Close() })
	return n
}

// restart has another Tracker, which knows nothing.
func (n *node) restart() {
	if n.tracker != nil {
		if err := n.tracker.Close(); err != nil {
			n.t.Error(err)
		}
	}
	n.world = nil
	n.do(n.t, func() (err error) {
		n.tracker, err = New(Options{Period: time.Hour, Logger: slog.New(slog.DiscardHandler)})
		return err
	})
}

// rule has the kernel do what Services say, and tells nobody. Each frontend leads to the first endpoint of its pool.
func (n *node) rule(services ...string) *world {
	n.t.Helper()
	w := worldOf(services...)
	to := map[frontend]netip.AddrPort{}
	for _, s := range w.services {
		for _, p := range s.Ports {
			for _, f := range p.Frontends {
				if e := f.External.Endpoints; len(e) > 0 {
					to[f.FrontendKey] = e[0].AddrPort
				}
			}
		}
	}
	maps.Copy(to, n.extra)
	n.lead(n.t, to)
	return w
}

// apply tells the Tracker what is in force.
func (n *node) apply(w *world) {
	n.tracker.mu.Lock()
	defer n.tracker.mu.Unlock()
	changed := w.changed(n.world)
	var was desired
	if n.world != nil {
		was = n.world
	}
	n.world = w
	n.tracker.applied(was, w, &w.network, changed)
}

// set does both, and returns how many flows were deleted.
func (n *node) set(services ...string) int {
	n.t.Helper()
	n.apply(n.rule(services...))
	return n.reconcile()
}

func (n *node) reconcile() int {
	n.t.Helper()
	result, err := n.tracker.Reconcile(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return result.Deleted
}

func (n *node) sweep() int {
	n.t.Helper()
	result, err := n.tracker.Sweep(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return result.Deleted
}

// serve answers on a UDP port with the question and its address.
func (n *node) serve(addr string) {
	n.t.Helper()
	var c net.PacketConn
	n.do(n.t, func() (err error) {
		c, err = net.ListenPacket("udp", addr)
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		var b [64]byte
		for {
			size, from, err := c.ReadFrom(b[:])
			if err != nil {
				return
			}
			_, _ = c.WriteTo(append(b[:size:size], addr...), from)
		}
	}()
	n.t.Cleanup(func() { _ = c.Close(); <-done })
}

// client is a UDP socket that goes on sending from one port.
type client struct {
	t    testing.TB
	c    *net.UDPConn
	to   netip.AddrPort
	sent int // questions
}

func (n *node) client(to string) *client {
	n.t.Helper()
	addr := netip.MustParseAddrPort(to)
	from := netip.MustParseAddr("10.2.0.1")
	if addr.Addr().Is6() {
		from = netip.MustParseAddr("fd00:2::1")
	}
	k := &client{t: n.t, to: addr}
	n.do(n.t, func() (err error) {
		k.c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
		return err
	})
	n.t.Cleanup(func() { _ = k.c.Close() })
	return k
}

func (k *client) send() {
	k.t.Helper()
	if _, err := k.c.WriteToUDPAddrPort([]byte(k.question()), k.to); err != nil {
		k.t.Fatal(err)
	}
}

func (k *client) question() string { return fmt.Sprintf("%d ", k.sent) }

// expect asks until somebody answers, who must be want.
func (k *client) expect(want string) {
	k.t.Helper()
	k.sent++
	testkit.Await(k.t, patience, func() error {
		k.send()
		if err := k.c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		for {
			var b [64]byte
			size, _, err := k.c.ReadFromUDPAddrPort(b[:])
			if err != nil {
				return fmt.Errorf("no answer from %s: %w", k.to, err)
			}
			got, ok := strings.CutPrefix(string(b[:size]), k.question())
			if !ok {
				continue // of an earlier question
			}
			if got != want {
				k.t.Errorf("%s answers at %s, want %s", got, k.to, want)
			}
			return nil
		}
	})
}

// entries is what the kernel has of UDP and SCTP.
func (n *node) entries() map[tuple]flow {
	n.t.Helper()
	all := map[tuple]flow{}
	for k := range (&Tracker{}).kinds() {
		err := n.tracker.asking.observe(question{kind: k}, func(f *flow) error {
			all[tuple{protocol: f.protocol, src: f.src, dst: f.dst, zone: f.zone + f.tupleZone}] = *f
			return nil
		})
		if err != nil {
			n.t.Fatal(err)
		}
	}
	return all
}

// entry of a client; it may be missing.
func (n *node) entry(k *client) (flow, bool) {
	n.t.Helper()
	src := k.c.LocalAddr().(*net.UDPAddr).AddrPort()
	f, ok := n.entries()[tuple{protocol: model.UDP, src: netip.AddrPortFrom(src.Addr().Unmap(), src.Port()), dst: k.to}]
	return f, ok
}

func (n *node) expectEndpoint(k *client, want string) {
	n.t.Helper()
	f, ok := n.entry(k)
	if !ok {
		n.t.Errorf("the kernel has forgotten the flow to %s", k.to)
	} else if f.endpoint.String() != want {
		n.t.Errorf("the flow to %s leads to %s, want %s", k.to, f.endpoint, want)
	}
}

// survivors are flows that are not to be touched: whoever made them calls check later.
func (n *node) survivors(clients map[*client]string) (check func()) {
	n.t.Helper()
	ids := map[*client]uint32{}
	for k, answers := range clients {
		k.expect(answers)
		f, ok := n.entry(k)
		if !ok {
			n.t.Fatalf("no entry of the flow to %s", k.to)
		}
		ids[k] = f.id
	}
	return func() {
		n.t.Helper()
		for k, id := range ids {
			if f, ok := n.entry(k); !ok || f.id != id {
				n.t.Errorf("the flow to %s was deleted", k.to)
			}
			k.expect(clients[k])
		}
	}
}

// families are the addresses of a test, of IPv4 and IPv6.
func families(t *testing.T, test func(t *testing.T, a func(string) string)) {
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6], func(t *testing.T) {
			test(t, func(name string) string {
				var kind string
				var number, port int
				if _, err := fmt.Sscanf(name, "%s %d %d", &kind, &number, &port); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				prefix := map[string][2]string{
					"vip": {"10.96.0.", "fd00:96::"}, "pod": {"10.1.0.", "fd00:1::"}, "node": {"192.0.2.", "2001:db8::"}, "lb": {"198.51.100.", "2001:db8:1::"},
				}[kind]
				if v6 {
					return fmt.Sprintf("[%s%d]:%d", prefix[1], number, port)
				}
				return fmt.Sprintf("%s%d:%d", prefix[0], number, port)
			})
		})
	}
}

func TestEndpointGone(t *testing.T) {
	families(t, func(t *testing.T, a func(string) string) {
		n := newNode(t)
		vip, port, pod1, pod2 := a("vip 1 53"), a("node 1 30053"), a("pod 1 8053"), a("pod 2 8053")
		n.serve(pod1)
		n.serve(pod2)
		base := "dns udp:" + vip + " udp:" + port
		n.set(base + " >" + pod2)
		right := n.survivors(map[*client]string{n.client(vip): pod2, n.client(port): pod2})
		n.set(base + " >" + pod1 + " >" + pod2)
		stale := []*client{n.client(vip), n.client(port)}
		for _, k := range stale {
			k.expect(pod1)
		}
		// It drains first, and goes on serving who is there.
		if deleted := n.set(base + " >" + pod1 + ",drains >" + pod2); deleted != 0 {
			t.Errorf("%d flows to an endpoint that drains were deleted", deleted)
		}
		for _, k := range stale {
			k.expect(pod1)
		}
		if deleted := n.set(base + " >" + pod2); deleted != 2 {
			t.Errorf("%d flows deleted, want 2", deleted)
		}
		for _, k := range stale {
			k.expect(pod2)
		}
		right()
		if deleted := n.sweep(); deleted != 0 {
			t.Errorf("a sweep deleted %d flows that are right", deleted)
		}
	})
}

func TestNoneToSomeToNone(t *testing.T) {
	families(t, func(t *testing.T, a func(string) string) {
		n := newNode(t)
		vip, pod1 := a("vip 1 53"), a("pod 1 8053")
		n.serve(pod1)
		n.set()
		k := n.client(vip)
		k.send() // nobody translates it
		n.expectEndpoint(k, vip)
		n.set("dns udp:" + vip)
		n.set("dns udp:" + vip + " >" + pod1)
		k.expect(pod1)
		n.expectEndpoint(k, pod1)
		if deleted := n.set("dns udp:" + vip); deleted != 1 {
			t.Errorf("%d flows deleted, want 1", deleted)
		}
		if f, ok := n.entry(k); ok {
			t.Errorf("the kernel still has %v", &f)
		}
	})
}

func TestTargetPort(t *testing.T) {
	families(t, func(t *testing.T, a func(string) string) {
		n := newNode(t)
		vip, before, after := a("vip 1 53"), a("pod 1 8053"), a("pod 1 9053")
		n.serve(before)
		n.serve(after)
		n.set("dns udp:" + vip + " >" + before)
		k := n.client(vip)
		k.expect(before)
		n.set("dns udp:" + vip + " >" + after)
		k.expect(after)
	})
}

func TestServiceDeleted(t *testing.T) {
	families(t, func(t *testing.T, a func(string) string) {
		n := newNode(t)
		vip, port, lb, pod1 := a("vip 1 53"), a("node 1 30053"), a("lb 1 53"), a("pod 1 8053")
		vip2, hostPort, foreign := a("vip 2 53"), a("node 1 8053"), a("lb 9 53")
		n.serve(pod1)
		n.extra[keyOf("udp:"+hostPort)] = netip.MustParseAddrPort(pod1)
		n.extra[keyOf("udp:"+foreign)] = netip.MustParseAddrPort(pod1)
		other := "other udp:" + vip2 + " >" + pod1
		n.set(other, "dns udp:"+vip+" udp:"+port+" udp:"+lb+" >"+pod1)
		right := n.survivors(map[*client]string{
			n.client(vip2): pod1, n.client(hostPort): pod1, n.client(foreign): pod1, n.client(pod1): pod1,
		})
		stale := []*client{n.client(vip), n.client(port), n.client(lb)}
		for _, k := range stale {
			k.expect(pod1)
		}
		if deleted := n.set(other); deleted != len(stale) {
			t.Errorf("%d flows deleted, want %d", deleted, len(stale))
		}
		for _, k := range stale {
			if f, ok := n.entry(k); ok {
				t.Errorf("the kernel still has %v", &f)
			}
		}
		right()
	})
}

func TestRestart(t *testing.T) {
	families(t, func(t *testing.T, a func(string) string) {
		n := newNode(t)
		pod1, pod2 := a("pod 1 8053"), a("pod 2 8053")
		vip, gone, goneNode, others := a("vip 1 53"), a("vip 2 53"), a("node 1 30053"), a("vip 3 53")
		hostPort := a("node 1 30099")
		n.serve(pod1)
		n.serve(pod2)
		n.extra[keyOf("udp:"+others)] = netip.MustParseAddrPort(pod1)
		n.extra[keyOf("udp:"+hostPort)] = netip.MustParseAddrPort(pod1)
		otherProxy := "third other:" + netip.MustParseAddrPort(others).Addr().String()

		n.rule("dns udp:"+vip+" >"+pod2, "old udp:"+gone+" udp:"+goneNode+" >"+pod1, otherProxy)
		right := n.survivors(map[*client]string{n.client(vip): pod2, n.client(pod1): pod1, n.client(others): pod1, n.client(hostPort): pod1})
		n.rule("dns udp:"+vip+" >"+pod1, "old udp:"+gone+" udp:"+goneNode+" >"+pod1, otherProxy)
		stale := n.client(vip)
		stale.expect(pod1)
		deleted := []*client{n.client(gone), n.client(goneNode)}
		for _, k := range deleted {
			k.expect(pod1)
		}
		early := n.client(a("vip 4 53"))
		early.send()

		n.restart()
		n.tracker.Inherit(func(yield func(frontend, []netip.AddrPort) bool) {
			_ = yield(keyOf("udp:"+goneNode), []netip.AddrPort{netip.MustParseAddrPort(pod1)}) &&
				yield(keyOf("udp:"+vip), []netip.AddrPort{netip.MustParseAddrPort(pod1), netip.MustParseAddrPort(pod2)})
		})
		if got := n.set("dns udp:"+vip+" >"+pod2, "new udp:"+a("vip 4 53")+" >"+pod2, otherProxy); got != 4 {
			t.Errorf("%d flows deleted, want 4", got)
		}
		stale.expect(pod2)
		early.expect(pod2)
		for _, k := range deleted {
			if f, ok := n.entry(k); ok {
				t.Errorf("the kernel still has %v", &f)
			}
		}
		right()
	})
}

// TestLateEntry holds that an entry which is made after the deletion by a packet that had met the old rules is found.
func TestLateEntry(t *testing.T) {
	n := newNode(t)
	n.serve("10.1.0.1:8053")
	n.serve("10.1.0.2:8053")
	const services, gone = "dns udp:10.96.0.1:53 >10.1.0.", "old udp:192.0.2.1:30053 >10.1.0.1:8053"
	n.set(services+"1:8053", gone)
	n.set(services + "2:8053")
	n.rule(services+"1:8053", gone)
	k, old := n.client("10.96.0.1:53"), n.client("192.0.2.1:30053")
	k.expect("10.1.0.1:8053")
	old.expect("10.1.0.1:8053")
	n.rule(services + "2:8053")
	if deleted := n.reconcile(); deleted != 0 {
		t.Errorf("%d flows deleted although nothing changed", deleted)
	}
	n.sweep()
	k.expect("10.1.0.2:8053")
	if f, ok := n.entry(old); ok {
		t.Errorf("the kernel still has %v", &f)
	}
}

// TestTCP holds that what is established finishes, and that a SYN without an answer finds another endpoint when it is sent again.
func TestTCP(t *testing.T) {
	families(t, func(t *testing.T, a func(string) string) {
		n := newNode(t)
		vip, dead, pod1, pod2 := a("vip 1 80"), a("pod 3 9"), a("pod 1 8080"), a("pod 2 8080")
		var listeners []net.Listener
		for _, addr := range []string{pod1, pod2} {
			n.do(t, func() error {
				l, err := net.Listen("tcp", addr)
				listeners = append(listeners, l)
				return err
			})
		}
		done := make(chan struct{})
		for _, l := range listeners {
			go func() {
				defer func() { done <- struct{}{} }()
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
				}
			}()
			defer func() { _ = l.Close(); <-done }()
		}
		n.set("web tcp:" + vip + " >" + pod1)
		var established net.Conn
		n.do(t, func() (err error) {
			established, err = net.DialTimeout("tcp", vip, patience)
			return err
		})
		defer func() { _ = established.Close() }()

		n.set("web tcp:" + vip + " >" + dead)
		dialed := make(chan error, 1)
		go func() {
			dialed <- n.in(func() error {
				c, err := net.DialTimeout("tcp", vip, patience)
				if err != nil {
					return err
				}
				return c.Close()
			})
		}()
		testkit.Await(t, patience, func() error {
			for _, f := range n.entries() {
				if f.protocol == model.TCP && f.endpoint.String() == dead {
					return nil
				}
			}
			return errors.New("no SYN to the dead endpoint")
		})
		if deleted := n.set("web tcp:" + vip + " >" + pod2); deleted != 1 {
			t.Errorf("%d flows deleted, want the one SYN", deleted)
		}
		if err := <-dialed; err != nil {
			t.Errorf("the SYN did not find the other endpoint: %v", err)
		}
		if deleted := n.set(); deleted != 0 {
			t.Errorf("%d flows deleted with the Service, want none", deleted)
		}
		if deleted := n.sweep(); deleted != 0 {
			t.Errorf("a sweep deleted %d flows, want none", deleted)
		}
		if err := established.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := established.Write([]byte("x")); err != nil {
			t.Errorf("the established connection: %v", err)
		}
		if _, err := io.ReadFull(established, make([]byte, 1)); err != nil {
			t.Errorf("the established connection: %v", err)
		}
	})
}

// in runs f in the place, for goroutines that are not the test's.
func (n *node) in(f func() error) error {
	var result error
	n.do(quiet{n.t}, func() error { result = f(); return nil })
	return result
}

// quiet is a testing.TB for other goroutines.
type quiet struct{ testing.TB }

func (q quiet) Fatal(args ...any) { q.Error(args...) }

// create makes entries without packets.
func (n *node) create(flows ...*flow) {
	n.t.Helper()
	for len(flows) > 0 {
		some := flows[:min(len(flows), batchSize)]
		flows = flows[len(some):]
		var b []byte
		for _, f := range some {
			confirmed := *f
			confirmed.status |= 1 << 3 // IPS_CONFIRMED, without which the kernel refuses it
			b = entry(b, &confirmed, 1)
		}
		if err := n.tracker.ending.send(b); err != nil {
			n.t.Fatal(err)
		}
		for left := len(some); left > 0; {
			received, err := n.tracker.ending.receive()
			if err != nil {
				n.t.Fatal(err)
			}
			for r, err := range replies(received) {
				if err == nil {
					err = r.errno()
				}
				if err != nil {
					n.t.Fatalf("make an entry: %v", err)
				}
				left--
			}
		}
	}
}

// TestSCTPAndZones holds that associations and flows in zones are found, and that only the one in the zone goes.
func TestSCTPAndZones(t *testing.T) {
	n := newNode(t)
	n.set("a udp:10.96.0.1:53 sctp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53")
	flows := map[string]*flow{}
	for name, words := range map[string]string{
		"SCTP gone":         "sctp 10.2.0.1:1 10.96.0.1:53 10.1.0.1:53 answered",
		"SCTP stays":        "sctp 10.2.0.1:2 10.96.0.1:53 10.1.0.2:53 answered",
		"zone gone":         "udp 10.2.0.1:3 10.96.0.1:53 10.1.0.1:53",
		"no zone stays":     "udp 10.2.0.1:3 10.96.0.1:53 10.1.0.2:53",
		"one way zone gone": "udp 10.2.0.1:4 10.96.0.1:53 10.1.0.1:53",
	} {
		flows[name] = flowOf(words)
	}
	flows["zone gone"].zone = 5
	flows["one way zone gone"].tupleZone = 6
	for _, f := range flows {
		n.create(f)
	}
	before := len(n.entries())
	if before != len(flows) {
		t.Fatalf("%d entries, want %d", before, len(flows))
	}
	if deleted := n.set("a udp:10.96.0.1:53 sctp:10.96.0.1:53 >10.1.0.2:53"); deleted != 3 {
		t.Errorf("%d flows deleted, want 3", deleted)
	}
	left := n.entries()
	for name, f := range flows {
		_, ok := left[tuple{protocol: f.protocol, src: f.src, dst: f.dst, zone: f.zone + f.tupleZone}]
		if want := name == "SCTP stays" || name == "no zone stays"; ok != want {
			t.Errorf("%s: there %v, want %v", name, ok, want)
		}
	}
}

// TestMany holds that more flows than fit into one message are deleted, and no other.
func TestMany(t *testing.T) {
	n := newNode(t)
	n.set("a udp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53")
	var flows []*flow
	for i := range 5000 {
		flows = append(flows, flowOf(fmt.Sprintf("udp 10.2.0.1:%d 10.96.0.1:53 10.1.0.%d:53", i+1, i%2+1)))
	}
	n.create(flows...)
	if deleted := n.set("a udp:10.96.0.1:53 >10.1.0.2:53"); deleted != 2500 {
		t.Errorf("%d flows deleted, want 2500", deleted)
	}
	left := n.entries()
	if len(left) != 2500 {
		t.Errorf("%d flows left, want 2500", len(left))
	}
	for _, f := range left {
		if f.endpoint.String() != "10.1.0.2:53" {
			t.Fatalf("left: %v", &f)
		}
	}
}

// TestAnotherInItsPlace holds that an entry is deleted by its ID: one that took its place in the meantime stays.
func TestAnotherInItsPlace(t *testing.T) {
	n := newNode(t)
	n.create(flowOf("udp 10.2.0.1:1 10.96.0.1:53 10.1.0.1:53"))
	var seen flow
	for _, f := range n.entries() {
		seen = f
	}
	seen.id++
	b := &batch{socket: n.tracker.ending}
	if err := errors.Join(b.add(&seen), b.apply(), b.refused); err != nil {
		t.Fatal(err)
	}
	if b.deleted != 0 || len(n.entries()) != 1 {
		t.Error("deleted an entry with another ID")
	}
	seen.id--
	if err := errors.Join(b.add(&seen), b.apply(), b.refused); err != nil {
		t.Fatal(err)
	}
	if b.deleted != 1 || len(n.entries()) != 0 {
		t.Error("did not delete the entry")
	}
}

// TestInterrupted holds that what an error left undone is done later, and that the sockets work on.
func TestInterrupted(t *testing.T) {
	n := newNode(t)
	n.set("a udp:10.96.0.1:53 >10.1.0.1:53")
	var flows []*flow
	for i := range 3000 {
		flows = append(flows, flowOf(fmt.Sprintf("udp 10.2.0.1:%d 10.96.0.1:53 10.1.0.1:53", i+1)))
	}
	n.create(flows...)
	n.apply(worldOf("a udp:10.96.0.1:53 >10.1.0.2:53"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.tracker.Reconcile(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("Reconcile: %v, want that it was cancelled", err)
	}
	if deleted := n.reconcile(); deleted != len(flows) {
		t.Errorf("%d flows deleted then, want %d", deleted, len(flows))
	}
	if deleted := n.reconcile(); deleted != 0 {
		t.Errorf("%d flows deleted at last, want none", deleted)
	}
}

// TestRun holds that Run does by itself what is owed, and sweeps.
func TestRun(t *testing.T) {
	n := newNode(t)
	n.tracker.options.Period = 10 * time.Millisecond
	n.create(flowOf("udp 10.2.0.1:1 10.96.0.1:53 10.1.0.1:53"), flowOf("udp 10.2.0.1:2 10.96.0.1:53 10.1.0.2:53"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- n.tracker.Run(ctx) }()
	gone := func(port uint16) {
		t.Helper()
		watch := &node{place: n.place, t: t}
		var err error
		var tracker *Tracker
		n.do(t, func() error { tracker, err = New(Options{}); return err })
		defer func() { _ = tracker.Close() }()
		watch.tracker = tracker
		testkit.Await(t, patience, func() error {
			for _, f := range watch.entries() {
				if f.src.Port() == port {
					return fmt.Errorf("the kernel has %v", &f)
				}
			}
			return nil
		})
		if got := len(watch.entries()); got == 0 {
			t.Error("all flows are gone")
		}
	}
	n.apply(worldOf("a udp:10.96.0.1:53 >10.1.0.2:53"))
	gone(1)
	// One that comes later is found by a sweep.
	other := &node{place: n.place, t: t, tracker: &Tracker{}}
	n.do(t, func() (err error) { other.tracker.ending, err = open(); return err })
	other.create(flowOf("udp 10.2.0.1:3 10.96.0.1:53 10.1.0.3:53"))
	_ = other.tracker.ending.close()
	gone(3)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestRefused holds that the kernel's words are kept, and that a socket in which answers are missing says so.
func TestRefused(t *testing.T) {
	n := newNode(t)
	err := n.tracker.asking.observe(question{kind: kind{protocol: model.UDP}, to: netip.MustParseAddr("::1")}, func(*flow) error { return nil })
	if err == nil {
		t.Error("asked for an IPv6 address among flows of IPv4, and got an answer")
	}
	b := &batch{socket: n.tracker.ending}
	b.count(unix.EBUSY)
	if !errors.Is(b.refused, unix.EBUSY) || b.deleted != 0 {
		t.Errorf("refused %v, deleted %d", b.refused, b.deleted)
	}
}
