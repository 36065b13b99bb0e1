package traffic

import (
	"context"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/node/watch"
)

// Options of a Traffic. Node, Client, Set and Wait are needed.
type Options struct {
	Node   string // name of this node
	Client kubernetes.Interface
	// Addrs are the node's, primary first; empty = the InternalIPs of its Node.
	Addrs []netip.Addr
	// PodCIDRs are the ranges of this node's pods; empty = its Node's.
	PodCIDRs []netip.Prefix
	// ClusterCIDRs are the ranges of all nodes' pods; empty = those of all Nodes.
	ClusterCIDRs []netip.Prefix
	NodePorts    NodePortAddrs
	// Interfaces lists the addresses of this machine; nil = as the kernel says.
	Interfaces func() ([]netip.Addr, error)

	// Set and Wait are those of a [dataplane.Runner].
	Set  func(*model.Snapshot)
	Wait func(ctx context.Context, revision uint64) error
	// Programmed is told, after Set, of each Service that is not as it was because EndpointSlices say so, and when the oldest change was that had these
	// be written, as far as their controller tells: mostly in whole seconds. It must not block. Nil = nobody.
	Programmed func(s *model.Service, trigger time.Time)
	// Peers returns when the other nodes have in force what EndpointSlices said up to a resourceVersion, or ctx ends. Nil = there are none.
	Peers func(ctx context.Context, version uint64)

	// ServiceChanged is told of each Service; nil stands for "not there". It must not block. Nil = nobody.
	ServiceChanged func(name types.NamespacedName, now *corev1.Service)
	// NodeChanged is told of each change of a Node, as in watch.Options. Nil = nobody.
	NodeChanged func(was, now *corev1.Node)

	// ListFirst is watch.Options.ListFirst, for clients in memory.
	ListFirst bool
	Logger    *slog.Logger // nil = none
}

// Traffic is what the package makes. All its methods may be called concurrently.
type Traffic struct {
	o        Options
	log      *slog.Logger
	services *watch.Store[*corev1.Service]
	slices   *watch.Store[*discoveryv1.EndpointSlice]
	nodes    *watch.Store[*corev1.Node]
	ranges   *watch.Store[*networkingv1.ServiceCIDR]
	asked    chan struct{} // closed when it is known whether ranges can be read, and if so, they were
	wake     chan struct{} // holds one token if there is something to build

	mu      sync.Mutex // guards all below
	in      model.Input
	ready   bool            // everything was listed
	holds   int             // lists that are being compared
	network bool            // the Network may be another
	local   []netip.Addr    // addresses of this machine, if NodePorts wants them
	members map[string]info // node → what the Network needs of it
	seen    uint64          // resourceVersion up to which slices are in in
	current *model.Snapshot // as built last; nil before
	built   uint64          // resourceVersion up to which slices are in current
	facts   map[string]fact // UID of a pod → what this node knows better
	own     map[sliceKey][]mention
	late    triggers
	turned  chan struct{} // closed when one of current, built and own changes, and replaced
}

type sliceKey struct{ namespace, name string }

// New makes a Traffic that does nothing before Run.
func New(o Options) *Traffic {
	t := &Traffic{
		o: o, log: o.Logger, asked: make(chan struct{}), wake: make(chan struct{}, 1), turned: make(chan struct{}),
		members: map[string]info{}, facts: map[string]fact{}, own: map[sliceKey][]mention{}, network: true,
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	if t.o.Interfaces == nil {
		t.o.Interfaces = interfaces
	}
	t.services = watch.New(watch.Options[*corev1.Service]{
		Name: "services", Source: watch.From(o.Client.CoreV1().Services("")), Thin: true, ListFirst: o.ListFirst, Logger: o.Logger,
		Changed: t.serviceChanged, Hold: t.hold,
	})
	t.slices = watch.New(watch.Options[*discoveryv1.EndpointSlice]{
		Name: "endpointslices", Source: watch.From(o.Client.DiscoveryV1().EndpointSlices("")), Thin: true, ListFirst: o.ListFirst, Logger: o.Logger,
		Changed: t.sliceChanged, Hold: t.hold, Seen: t.slicesSeen,
	})
	t.nodes = watch.New(watch.Options[*corev1.Node]{
		Name: "nodes", Source: watch.From(o.Client.CoreV1().Nodes()), Transform: slim, ListFirst: o.ListFirst, Logger: o.Logger,
		Changed: t.nodeChanged, Hold: t.hold,
	})
	t.ranges = watch.New(watch.Options[*networkingv1.ServiceCIDR]{
		Name: "servicecidrs", Source: watch.From(o.Client.NetworkingV1().ServiceCIDRs()), ListFirst: o.ListFirst, Logger: o.Logger,
		Changed: func(_, _ *networkingv1.ServiceCIDR) { t.change(t.networkChanged) }, Hold: t.hold,
	})
	return t
}

// Nodes are all Nodes, without what nobody here needs of them.
func (t *Traffic) Nodes() *watch.Store[*corev1.Node] { return t.nodes }

// Snapshot is the newest, nil before everything was listed. It may not be in force yet.
func (t *Traffic) Snapshot() *model.Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.current
}

// Run watches and builds until ctx ends, and returns nil then.
func (t *Traffic) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { _ = t.services.Run(ctx) }) // none of them fails
	work.Go(func() { _ = t.slices.Run(ctx) })
	work.Go(func() { _ = t.nodes.Run(ctx) })
	work.Go(func() { t.watchRanges(ctx) })
	work.Go(func() { t.awaitLists(ctx) })
	if t.o.NodePorts.needInterfaces() {
		t.lookAtInterfaces()
		work.Go(func() { t.watchInterfaces(ctx) })
	}
	forget := time.NewTicker(forgetPeriod)
	defer forget.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
			t.build()
		case <-forget.C:
			t.forget()
		}
	}
}

// awaitLists allows the first Snapshot when everything was listed.
func (t *Traffic) awaitLists(ctx context.Context) {
	for _, synced := range []<-chan struct{}{t.services.Synced(), t.slices.Synced(), t.nodes.Synced(), t.asked} {
		select {
		case <-synced:
		case <-ctx.Done():
			return
		}
	}
	t.change(func() { t.ready = true })
}

// build makes the next Snapshot of all that was seen by now, if there is something new.
func (t *Traffic) build() {
	t.mu.Lock()
	if !t.ready || t.holds > 0 || !t.settleNetwork() {
		t.mu.Unlock()
		return
	}
	in, seen, was, triggers := t.in, t.seen, t.current, t.late
	t.late = nil
	t.mu.Unlock()
	now := model.Build(in, was)
	if now != was {
		t.o.Set(now)
	}
	t.programmed(was, now, triggers)
	t.mu.Lock()
	t.current, t.built = now, seen
	t.turn()
	t.mu.Unlock()
}

// change runs f with the lock and has what it did be built.
func (t *Traffic) change(f func()) {
	t.mu.Lock()
	f()
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default: // one Snapshot has it all
	}
}

// turn tells those who wait that something is new. t.mu is held.
func (t *Traffic) turn() {
	close(t.turned)
	t.turned = make(chan struct{})
}

// hold keeps changes that do not make sense one by one out of Snapshots until it is released.
func (t *Traffic) hold() (release func()) {
	t.mu.Lock()
	t.holds++
	t.mu.Unlock()
	return func() { t.change(func() { t.holds-- }) }
}

func (t *Traffic) serviceChanged(was, now *corev1.Service) {
	var name types.NamespacedName
	if now != nil {
		name = types.NamespacedName{Namespace: now.Namespace, Name: now.Name}
		t.change(func() { t.in = t.in.WithService(now) })
	} else {
		name = types.NamespacedName{Namespace: was.Namespace, Name: was.Name}
		t.change(func() { t.in = t.in.WithoutService(model.ServiceKey(name)) })
	}
	if t.o.ServiceChanged != nil {
		t.o.ServiceChanged(name, now)
	}
}

func (t *Traffic) sliceChanged(was, now *discoveryv1.EndpointSlice) {
	t.change(func() {
		if now != nil {
			t.in = t.in.WithSlice(now)
			t.triggered(now)
			t.note(sliceKey{now.Namespace, now.Name}, t.mentions(now), versionOf(now.ResourceVersion))
			return
		}
		t.in = t.in.WithoutSlice(was.Namespace, was.Name)
		t.note(sliceKey{was.Namespace, was.Name}, nil, versionOf(was.ResourceVersion))
	})
}

func (t *Traffic) slicesSeen(version string) {
	t.change(func() { t.seen = max(t.seen, versionOf(version)) })
}

// versionOf reads a resourceVersion: a decimal that grows (KEP-5504). Where it is none, nothing can be said about order.
func versionOf(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
