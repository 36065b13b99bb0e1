package traffic_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/node/apitest"
	"github.com/endpointd/endpointd/internal/node/traffic"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// kernel is a Proxier that remembers what is in force.
type kernel struct {
	mu       sync.Mutex
	inForce  *model.Snapshot
	syncs    int
	failures int           // of the next Syncs
	takes    time.Duration // each Sync
}

func (k *kernel) Sync(ctx context.Context, s *model.Snapshot) error {
	k.mu.Lock()
	takes := k.takes
	k.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.syncs++
	if k.failures > 0 {
		k.failures--
		return errors.New("the kernel said no")
	}
	k.inForce = s
	return nil
}

// be changes how it is from now on.
func (k *kernel) be(takes time.Duration, failures int) (syncs int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.takes, k.failures = takes, failures
	return k.syncs
}

func (*kernel) Verify(context.Context) (bool, error) { return false, nil }
func (*kernel) Close() error                         { return nil }
func (*kernel) Remove(context.Context) error         { return nil }

// leads says where the ClusterIP of Service web leads, e.g. "10.244.1.2 10.244.1.3"; "-" without a Snapshot or the Service.
func (k *kernel) leads() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return leads(k.inForce)
}

func leads(s *model.Snapshot) string {
	if s == nil {
		return "-"
	}
	web := s.Service(model.ServiceKey{Namespace: "default", Name: "web"})
	if web == nil {
		return "-"
	}
	var addrs []string
	for _, e := range web.Ports[0].Frontends[0].Internal.Endpoints {
		addrs = append(addrs, e.Addr().String())
	}
	return strings.Join(addrs, " ")
}

// world is a Traffic of node n, behind a server in memory and before a kernel in memory. Use it in testing/synctest.
type world struct {
	t       *testing.T
	api     *controllertest.API
	server  *apitest.Server
	user    kubernetes.Interface // writes past the server
	kernel  *kernel
	runner  *dataplane.Runner
	traffic *traffic.Traffic
	peers   chan uint64 // versions that peers were asked about

	mu   sync.Mutex
	sets []string // what leads said of each Snapshot
}

func newWorld(t *testing.T, change func(*world, *traffic.Options), objects ...runtime.Object) *world {
	w := &world{t: t, api: controllertest.NewAPI(objects...), kernel: &kernel{}, peers: make(chan uint64, 10)}
	w.user, w.server = w.api.Client(), apitest.New(w.api)
	w.runner = dataplane.NewRunner(dataplane.RunnerOptions{Proxiers: []dataplane.Proxier{w.kernel}, Logger: slog.New(slog.DiscardHandler)})
	o := traffic.Options{
		Node: "n", Client: w.server.Client(), Wait: w.runner.Wait, ListFirst: true,
		Set: func(s *model.Snapshot) {
			w.mu.Lock()
			w.sets = append(w.sets, leads(s))
			w.mu.Unlock()
			w.runner.Set(s)
		},
		Peers: func(_ context.Context, version uint64) { w.peers <- version },
	}
	if change != nil {
		change(w, &o)
	}
	w.traffic = traffic.New(o)
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	for _, run := range []func(context.Context) error{w.runner.Run, w.traffic.Run} {
		work.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		work.Wait()
		w.server.Close()
	})
	return w
}

// wants waits for all that can happen now, and compares what is in force.
func (w *world) wants(want string) {
	w.t.Helper()
	synctest.Wait()
	if got := w.kernel.leads(); got != want {
		w.t.Errorf("web leads to %q, want %q", got, want)
	}
}

func (w *world) slice(endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	w.t.Helper()
	s, err := w.user.DiscoveryV1().EndpointSlices("default").Update(w.t.Context(), slice("web-1", endpoints...), metav1.UpdateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func node(name, podCIDR string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: "zone-of-" + name}},
		Spec:       corev1.NodeSpec{PodCIDR: podCIDR, PodCIDRs: []string{podCIDR}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}},
	}
}

func service(name, ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
}

func slice(name string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
		Ports: []discoveryv1.EndpointPort{{Name: new(""), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}},
	}
}

// pod is an endpoint on a node.
func pod(uid, addr, node string, ready, terminating bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses: []string{addr}, NodeName: &node, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: uid, UID: types.UID(uid)},
		Conditions: discoveryv1.EndpointConditions{Ready: new(ready && !terminating), Serving: &ready, Terminating: &terminating},
	}
}

func ready(uid, addr string) discoveryv1.Endpoint { return pod(uid, addr, "n", true, false) }

func TestChangesAreInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, node("n", "10.244.1.0/24"), service("web", "10.96.0.7"), slice("web-1", ready("a", "10.244.1.2")))
		w.wants("10.244.1.2")
		w.slice(ready("a", "10.244.1.2"), pod("b", "10.244.2.3", "m", true, false))
		w.wants("10.244.1.2 10.244.2.3")
		if err := w.user.DiscoveryV1().EndpointSlices("default").Delete(t.Context(), "web-1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.wants("")
		if err := w.user.CoreV1().Services("default").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.wants("-")
	})
}

// What an earlier run left in force goes on until all is known: each kind of object may come last.
func TestNoSnapshotBeforeEverythingIsListed(t *testing.T) {
	for _, late := range []string{"services", "endpointslices", "nodes", "servicecidrs"} {
		t.Run(late, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, func(w *world, o *traffic.Options) {
					o.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
					w.server.Hang(func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/"+late) })
				}, node("n", "10.244.1.0/24"), service("web", "10.96.0.7"), slice("web-1", ready("a", "10.244.1.2")))
				<-time.After(5 * time.Second)
				w.wants("-")
				if s := w.traffic.Snapshot(); s != nil {
					t.Errorf("Snapshot %d", s.Revision)
				}
				w.server.Hang(nil)
				<-time.After(time.Minute)
				w.wants("10.244.1.2")
				if len(w.sets) != 1 {
					t.Errorf("Snapshots lead to %q, want one", w.sets)
				}
			})
		})
	}
}

func TestBurstIsFolded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, node("n", "10.244.1.0/24"), service("web", "10.96.0.7"), slice("web-1"))
		w.wants("")
		before := w.kernel.be(time.Second, 0)
		for i := range 100 {
			w.slice(ready("a", fmt.Sprintf("10.244.1.%d", i+2)))
		}
		<-time.After(3 * time.Second)
		w.wants("10.244.1.101")
		if n := w.kernel.be(0, 0) - before; n > 2 {
			t.Errorf("%d Syncs of one burst, want 2", n)
		}
	})
}

// A list that is compared is no series of changes: an endpoint that moved to another slice meanwhile is not gone in between.
func TestListIsOneChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, node("n", "10.244.1.0/24"), service("web", "10.96.0.7"), slice("web-1", ready("a", "10.244.1.2")))
		w.wants("10.244.1.2")
		w.server.Down()
		slices := w.user.DiscoveryV1().EndpointSlices("default")
		if err := slices.Delete(t.Context(), "web-1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := slices.Create(t.Context(), slice("web-2", ready("a", "10.244.1.2"), ready("b", "10.244.1.3")), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.api.Compact()
		<-time.After(time.Minute)
		w.wants("10.244.1.2") // the API is away, which is no news
		w.server.Up()
		<-time.After(time.Second)
		w.wants("10.244.1.2 10.244.1.3")
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, leads := range w.sets {
			if leads == "" {
				t.Errorf("Snapshots lead to %q, one of them nowhere", w.sets)
			}
		}
	})
}

func TestSyncThatFailsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, node("n", "10.244.1.0/24"), service("web", "10.96.0.7"), slice("web-1", ready("a", "10.244.1.2")))
		w.wants("10.244.1.2")
		w.kernel.be(0, 3)
		s := w.slice(ready("a", "10.244.1.9"))
		w.wants("10.244.1.2")
		if err := w.traffic.Acknowledged(t.Context(), version(t, s)); err != nil {
			t.Error(err)
		}
		w.wants("10.244.1.9")
	})
}

func version(t *testing.T, s *discoveryv1.EndpointSlice) uint64 {
	t.Helper()
	var n uint64
	if _, err := fmt.Sscan(s.ResourceVersion, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestFactsOfThisNodeNeedNoAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, node("n", "10.244.1.0/24"), service("web", "10.96.0.7"), slice("web-1", ready("a", "10.244.1.2"), ready("b", "10.244.1.3")))
		w.wants("10.244.1.2 10.244.1.3")
		w.server.Down()
		w.traffic.Down("a", model.LocalDead)
		w.wants("10.244.1.3")
		w.traffic.Up("a")
		w.wants("10.244.1.2 10.244.1.3")
		w.traffic.Down("a", model.LocalDraining)
		w.wants("10.244.1.3")
		w.traffic.Down("b", model.LocalNotReady)
		w.wants("10.244.1.2") // it drains, and is better than nothing

		// A pod that is over stays down while a slice names it, and some time more.
		w.traffic.Down("b", model.LocalDead)
		w.traffic.Down("a", model.LocalDead)
		w.traffic.Forget("a")
		<-time.After(10 * time.Minute)
		w.wants("")
		w.server.Up()
		w.slice(ready("c", "10.244.1.4"))
		<-time.After(10 * time.Minute)
		w.slice(ready("c", "10.244.1.4"), ready("a", "10.244.1.2")) // which never happens, but says whether it was forgotten
		w.wants("10.244.1.2 10.244.1.4")
	})
}

func TestAcknowledgedWaitsForWhatIsInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, node("n", "10.244.1.0/24"), service("web", "10.96.0.7"), slice("web-1", ready("a", "10.244.1.2")))
		w.kernel.be(time.Second, 0)
		s := w.slice(ready("a", "10.244.1.9"))
		if err := w.traffic.Acknowledged(t.Context(), version(t, s)); err != nil {
			t.Fatal(err)
		}
		w.wants("10.244.1.9")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.traffic.Acknowledged(ctx, version(t, s)+1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("what nobody has said yet: %v", err)
		}
		// A slice that the model has no use for is in force, too.
		other := slice("other")
		other.Labels = nil
		other, err := w.user.DiscoveryV1().EndpointSlices("default").Create(t.Context(), other, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.traffic.Acknowledged(t.Context(), version(t, other)); err != nil {
			t.Error(err)
		}
	})
}

func TestDrainEndsWhenEverybodyHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, node("n", "10.244.1.0/24"), service("web", "10.96.0.7"), slice("web-1", ready("a", "10.244.1.2"), ready("b", "10.244.1.3")))
		w.wants("10.244.1.2 10.244.1.3")
		w.traffic.Down("a", model.LocalDraining)
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			w.traffic.Drain(t.Context(), "a")
		}()
		<-time.After(time.Second)
		w.slice(ready("a", "10.244.1.2"), ready("b", "10.244.1.3"), ready("c", "10.244.1.4"))
		<-time.After(time.Second)
		select {
		case <-drained:
			t.Fatal("drained, while the API says that it is ready")
		default:
		}
		left := w.slice(pod("a", "10.244.1.2", "n", true, true), ready("b", "10.244.1.3"))
		w.slice(pod("a", "10.244.1.2", "n", true, true), ready("b", "10.244.1.3"), ready("c", "10.244.1.4"))
		asked := <-w.peers
		since := time.Now()
		<-drained
		if took := time.Since(since); took != 100*time.Millisecond {
			t.Errorf("the program got %v to accept the last connections", took)
		}
		if asked != version(t, left) {
			t.Errorf("peers were asked about version %d, want that of the slice that said so first, %d", asked, version(t, left))
		}
		w.traffic.Drain(t.Context(), "nobody") // returns
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		w.traffic.Drain(ctx, "b") // ends with ctx
		if len(w.peers) != 0 {
			t.Error("peers were asked about a pod that is ready, or none")
		}
	})
}

func TestNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")}
		w := newWorld(t, func(_ *world, o *traffic.Options) {
			o.NodePorts, _ = traffic.ParseNodePortAddrs([]string{"all"})
			o.Interfaces = func() ([]netip.Addr, error) {
				mu.Lock()
				defer mu.Unlock()
				return addrs, nil
			}
		}, node("m", "10.244.2.0/24"))
		wants := func(want string) {
			t.Helper()
			<-time.After(3 * time.Second)
			got := "nothing"
			if s := w.traffic.Snapshot(); s != nil {
				n := s.Network
				got = fmt.Sprint(n.Node, " ", n.Zone, " ", n.NodePortAddrs, n.PodCIDRs, n.ClusterCIDRs)
			}
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		}
		wants("nothing") // without an address of its own a node can do nothing
		if _, err := w.user.CoreV1().Nodes().Create(t.Context(), node("n", "10.244.1.0/24"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		wants("n zone-of-n [192.0.2.1 198.51.100.1] [10.244.1.0/24] [10.244.1.0/24 10.244.2.0/24]")
		mu.Lock()
		addrs = addrs[:2]
		mu.Unlock()
		if err := w.user.CoreV1().Nodes().Delete(t.Context(), "m", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		wants("n zone-of-n [192.0.2.1] [10.244.1.0/24] [10.244.1.0/24]")
		if err := w.user.CoreV1().Nodes().Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		wants("n zone-of-n [192.0.2.1] [10.244.1.0/24] [10.244.1.0/24]")
	})
}
