package nftables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/dataplane/slots"
	"github.com/endpointd/endpointd/internal/model"
)

const patience = 20 * time.Second

// in runs f in the node.
func in(t testing.TB, w *dptest.World, f func() error) {
	t.Helper()
	if err := w.Node.Do(f); err != nil {
		t.Fatal(err)
	}
}

// synced is a Proxier that has made a Snapshot.
func synced(t testing.TB, w *dptest.World, s *model.Snapshot) *Proxier {
	t.Helper()
	p := newProxier(t, w.Node)
	if err := p.Sync(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return p
}

// served is service 1, answered by pod a of this node.
func served(t testing.TB, w *dptest.World) (model.Input, netip.AddrPort) {
	t.Helper()
	var input model.Input
	input = service(input.WithNetwork(dptest.Network()), 1, w.Pods[0].V4)
	stop, err := w.Pods[0].Serve(8080)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return input, netip.AddrPortFrom(clusterIP(1), 80)
}

// TestOtherShape has an agent of another version be followed by this one, with clients old and new.
func TestOtherShape(t *testing.T) {
	w := dptest.NewWorld(t)
	input, to := served(t, w)
	s := model.Build(input, nil)
	old := staticShape(true)
	old.version = "older"
	before := newProxier(t, w.Node)
	if err := before.build(s, "", old); err != nil {
		t.Fatal(err)
	}
	conn, err := w.Outside.Dial(model.TCP, to, patience)
	if err != nil {
		t.Fatal(err)
	}
	stop, failed := load(w.Outside, to)
	p := synced(t, w, s)
	for range 5 { // back and forth
		if err := p.build(s, p.name, old); err != nil {
			t.Fatal(err)
		}
		other := synced(t, w, s)
		if other.name == p.name {
			t.Errorf("table %s was not replaced", p.name)
		}
		p = other
	}
	stop()
	if err := failed(); err != nil {
		t.Errorf("a new connection failed while the table was replaced: %v", err)
	}
	if _, err := conn.Ask(patience); err != nil {
		t.Errorf("an open connection did not outlive the table: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	in(t, w, func() error { return asStranger(func(p *Proxier) error { return p.differs(s) }) })
	for _, gone := range []tableName{p.otherName(p.name)} {
		if err := p.askTable(gone, func([]byte) {}); !errors.Is(err, unix.ENOENT) {
			t.Errorf("table %s is still there: %v", gone, err)
		}
	}
}

// load makes new connections until it is stopped; failed is the first that failed.
func load(from *dptest.Place, to netip.AddrPort) (stop func(), failed func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var first error
	wg.Go(func() {
		for ctx.Err() == nil && first == nil {
			_, first = from.Ask(model.TCP, to, patience)
		}
	})
	return func() { cancel(); wg.Wait() }, func() error { return first }
}

// TestInterruptedBuild leaves what a run leaves that ends while it builds.
func TestInterruptedBuild(t *testing.T) {
	w := dptest.NewWorld(t)
	input, to := served(t, w)
	s := model.Build(input, nil)
	p := synced(t, w, s)
	other := p.otherName(p.name)
	if err := p.commit(other, []order{other.newTable(p.shape.version), other.newSet(0)}); err != nil {
		t.Fatal(err)
	}
	if q := synced(t, w, s); q.name != p.name {
		t.Errorf("table %s was replaced by %s", p.name, q.name)
	}
	if err := p.askTable(other, func([]byte) {}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("table %s is still there: %v", other, err)
	}
	// The same with the one in force under the second name.
	if err := p.build(s, p.name, staticShape(true)); err != nil {
		t.Fatal(err)
	}
	other = p.otherName(p.name)
	if err := p.commit(other, []order{other.newTable(p.shape.version)}); err != nil {
		t.Fatal(err)
	}
	if q := synced(t, w, s); q.name != p.name {
		t.Errorf("table %s was replaced by %s", p.name, q.name)
	}
	if _, err := w.Outside.Ask(model.TCP, to, patience); err != nil {
		t.Error(err)
	}
}

// TestManyBatches has a kernel that takes little at once, as in a user namespace.
func TestManyBatches(t *testing.T) {
	w := dptest.NewWorld(t)
	input, to := served(t, w)
	p := newProxier(t, w.Node)
	p.socket.max = 100_000
	for n := 2; n < 1500; n++ {
		input = service(input, n, endpoints(n, 2)...)
	}
	s := model.Build(input, nil)
	if err := p.Sync(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	stop, failed := load(w.Outside, to)
	for round := range 3 {
		for n := 2; n < 1500; n++ {
			input = service(input, n, endpoints(n+round, 1+(n+round)%4)...)
		}
		s = model.Build(input, s)
		if err := p.Sync(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		in(t, w, func() error { return asStranger(func(p *Proxier) error { return p.differs(s) }) })
	}
	stop()
	if err := failed(); err != nil {
		t.Errorf("a connection to a Service that didn't change failed: %v", err)
	}
}

// TestErrors holds that an error names the element, the Service and the kernel's word.
func TestErrors(t *testing.T) {
	w := dptest.NewWorld(t)
	input, _ := served(t, w)
	s := model.Build(input, nil)
	p := synced(t, w, s)
	c := plan(newState(), nil, s, true)
	write := p.writer(p.name)
	c.write(p.name, write) // all of it is there already
	write.flush()
	err := p.explain(s, write.err)
	if !errors.Is(err, unix.EEXIST) {
		t.Fatalf("writing what's there: %v", err)
	}
	for _, want := range []string{"file exists", "inet " + string(p.name), "10.96.0.1", "add element"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	write = p.writer(p.name)
	(&change{Change: c.Change}).write(p.name, write)
	write.flush()
	if err := p.explain(s, write.err); !strings.Contains(err.Error(), "service default/s-1") {
		t.Errorf("%q does not name the Service", err)
	}
	// The next Sync finds its way nevertheless.
	p.have = newState()
	p.last = nil
	if err := p.Sync(t.Context(), s); err != nil {
		t.Error(err)
	}
}

func TestUnsupported(t *testing.T) {
	orders := []order{{kind: unix.NFT_MSG_NEWRULE, what: "add rule services4 x"}, {kind: unix.NFT_MSG_NEWSETELEM, what: "add element"}}
	for _, test := range []struct {
		message uint32
		err     unix.Errno
		want    bool
	}{{1, unix.EOPNOTSUPP, true}, {1, unix.ENOENT, true}, {1, unix.EPERM, false}, {2, unix.EOPNOTSUPP, false}, {0, unix.EINVAL, false}, {9, unix.EINVAL, false}} {
		err := newRefusal("t", orders, nil, []int{0, 0}, []complaint{{message: test.message, err: test.err}})
		if got := errors.Is(err, dataplane.ErrNotSupported); got != test.want {
			t.Errorf("%v of message %d: %v", test.err, test.message, err)
		}
		if !errors.Is(err, test.err) {
			t.Errorf("%v hides the kernel's %v", err, test.err)
		}
	}
}

// TestBudget holds what a Service costs in the kernel, and that rules are the same for any number of them.
func TestBudget(t *testing.T) {
	count := func(services, each int) (elements int) {
		c := plan(newState(), nil, model.Build(many(services, each), nil), true)
		counter := counter{}
		c.write("t", &counter)
		return counter.elements
	}
	base := count(0, 0)
	for _, size := range [][2]int{{1, 0}, {1, 1}, {1, 2}, {100, 2}, {10, 50}} {
		services, each := size[0], size[1]
		if got, want := count(services, each)-base, services*(2+each); got != want {
			t.Errorf("%d Services of %d endpoints are %d elements, want %d: one for the frontend, one for the address, one for each endpoint", services, each, got, want)
		}
	}
	chains, rules := 0, 0
	for _, c := range staticShape(true).chains {
		chains++
		rules += len(c.rules)
	}
	if chains > 500 || rules > 1700 {
		t.Errorf("%d chains with %d rules", chains, rules)
	}
}

// counter counts what a change writes.
type counter struct{ elements, orders int }

func (c *counter) first(o ...order)            { c.orders += len(o) }
func (c *counter) last(o ...order)             { c.orders += len(o) }
func (c *counter) replace(element, bool, bool) { c.elements++ }

// TestTimeouts holds that chains for session affinity come and go with the Services that need them.
func TestTimeouts(t *testing.T) {
	w := dptest.NewWorld(t)
	input, _ := served(t, w)
	p := newProxier(t, w.Node)
	var s *model.Snapshot
	for _, seconds := range []int32{10, 20, 10, 86400, 0} {
		input := withAffinity(input, seconds)
		s = model.Build(input, s)
		if err := p.Sync(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		in(t, w, func() error { return asStranger(func(p *Proxier) error { return p.differs(s) }) })
		found := map[string]bool{}
		if err := p.askChains(p.name, func(c foundChain) { found[c.name] = true }); err != nil {
			t.Fatal(err)
		}
		want := len(p.shape.chains)
		if seconds > 0 {
			want += 4
			if name := fmt.Sprintf("remember-internal4-%d", seconds); !found[name] {
				t.Errorf("there is no chain %s", name)
			}
		}
		if len(found) != want {
			t.Errorf("with an affinity of %d s there are %d chains, want %d", seconds, len(found), want)
		}
	}
}

func withAffinity(input model.Input, seconds int32) model.Input {
	object := serviceObject(3)
	if seconds > 0 {
		object.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		object.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	return input.WithService(object)
}

// TestAdopted holds that what an earlier run left in force is told once, before it is changed, whether the table can stay or not.
func TestAdopted(t *testing.T) {
	w := dptest.NewWorld(t)
	empty := model.Build(model.Input{}.WithNetwork(dptest.Network()), nil)
	left := func(s *model.Snapshot) (text string) {
		t.Helper()
		var p *Proxier
		in(t, w, func() (err error) {
			p, err = New(Options{Adopted: func(left *slots.Table) {
				text += "told"
				for key, f := range left.Frontends {
					text += fmt.Sprintf(" %s:%d %v", key.Addr, key.Port, left.Pools[f.Internal.Pool])
				}
			}})
			return err
		})
		for range 2 {
			if err := p.Sync(t.Context(), s); err != nil {
				t.Error(err)
			}
			p.forget()
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		return text
	}
	input, _ := served(t, w)
	s := model.Build(input, nil)
	if got := left(s); got != "" {
		t.Errorf("nothing was there: %s", got)
	}
	want := fmt.Sprintf("told %s:80 [%s:8080]", clusterIP(1), w.Pods[0].V4)
	if got := left(s); got != want {
		t.Errorf("the same table: %s, want %s", got, want)
	}
	damage := damages()["a rule is added"]
	in(t, w, func() error { return asStranger(damage) })
	if got := left(empty); got != want {
		t.Errorf("a table with a stranger's rule: %s, want %s", got, want)
	}
	if got := left(empty); got != "told" {
		t.Errorf("a table without Services: %s", got)
	}
}
