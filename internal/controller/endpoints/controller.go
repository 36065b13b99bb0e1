// Package endpoints makes the EndpointSlices and the Endpoints of Services that
// have a selector. It is the one writer of both: what kube-controller-manager
// has two controllers for is one reconciler here, so the two never disagree.
//
// What flows in: Services, Pods, Nodes, EndpointSlices and Endpoints from
// shared informers. What flows out: creates, updates and deletes through the
// API, as few as the change needs. Semantics: spec §3.2, read from Kubernetes
// v1.37; so a pod on a node that does not exist is in Endpoints and not in a
// slice, as there.
//
// How a change travels: a handler finds the Services that it concerns (index)
// and notes it in each one's inbox; a worker takes the inbox, brings the changed
// pods into the Service's desired state (derive, service), plans (sliceset,
// object: pure) and sends the writes, slices first. There is no batching delay:
// what happens while a Service's writes are in flight waits for them and goes
// into the next ones together. Only a Service whose changes keep coming faster
// than its writes get done is given a pause between them (pace).
//
// What a Service gets when it changes (rule):
//
//	selector set, type not ExternalName   slices and Endpoints follow the pods; what somebody edits,
//	                                      deletes or adds under our label is put right
//	selector changed                      the new pods replace the old ones in the same slices
//	selector removed                      the Endpoints object stays as it is and loses our label: it is the
//	                                      user's now. Our slices go once the mirrored ones are there, or at
//	                                      once if nothing is to be mirrored
//	selector added                        slices and Endpoints follow the pods; hand-written Endpoints of the
//	                                      same name are taken over. The mirrored slices go once ours are there
//	type becomes ExternalName             our slices, and Endpoints with our label, are deleted
//	ExternalName becomes another type     as if the Service were new
//	becomes headless or gets an address   the label service.kubernetes.io/headless follows
//	a second IP family is added           slices of that family are made, the others are not written
//	a family is removed                   its slices are deleted
//	deleted and made anew                 slices of the old Service (by owner UID) are replaced
//	deleted                               our slices and the Endpoints of its name are deleted
//	deleted while nobody watched          our slices, and Endpoints with our label, are deleted
//	hand-written slices beside ours       are never touched
//
// Invariants: objects from informers are never modified; a Service's state
// belongs to the worker that holds its key; a failed write is planned again from
// what is then true.
//
// It refuses to copy hand-written Endpoints into slices (package mirror) and to
// probe anything. Tests: derive, hints, object and index by table and fuzz; the
// controller against a fake API by transition, by number of writes and by a
// random walk that is compared with an oracle.
package endpoints

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/endpointd/endpointd/internal/controller/loop"
)

// A failed Service is tried again after the first of these, then after twice as
// long every time, up to the second.
const (
	firstRetry = 10 * time.Millisecond
	lastRetry  = time.Minute
)

// DefaultWorkers is how many Services are reconciled at the same time. Work is
// waiting for writes, so it may exceed the number of cores; etcd commits
// concurrent writes together.
const DefaultWorkers = 16

// Options configure a Controller. Client and Informers must be set.
type Options struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory // started by the caller, after New
	Recorder  record.EventRecorder            // nil: no events
	Logger    *slog.Logger                    // nil: slog.Default()
	Workers   int                             // 0: DefaultWorkers
}

// Controller keeps EndpointSlices and Endpoints of Services with a selector.
type Controller struct {
	client   kubernetes.Interface
	recorder record.EventRecorder
	loop     *loop.Loop
	busy     atomic.Int32       // reconciles under way
	heard    func(old, now any) // nil but in tests: called when a handler is done with an event

	services, pods, nodes cache.Store

	mu     sync.Mutex // guards what follows
	index  *index
	inbox  map[types.NamespacedName]*inbox   // Service → what happened since its last reconcile
	states map[types.NamespacedName]*service // Service → state; its content belongs to the worker that holds the key
	auto   map[types.NamespacedName]struct{} // Services whose hints depend on all nodes
	shares zoneShares
}

// inbox is what happened to a Service since it was last reconciled.
type inbox struct {
	all       bool                                // the Service itself changed: look at every pod
	deleted   bool                                // its deletion was seen, not just its absence
	pods      map[string]struct{}                 // pods that changed, by name
	slices    map[string]*discovery.EndpointSlice // our slices, newest version; nil: gone
	mirrored  map[string]bool                     // slices of the mirroring controller → it exists
	endpoints *corev1.Endpoints                   // newest version; nil: gone
	object    bool                                // endpoints is set
}

// New makes a controller and registers it with the informers; nothing is
// written before Run.
func New(o Options) *Controller {
	if o.Workers == 0 {
		o.Workers = DefaultWorkers
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Recorder == nil {
		o.Recorder = &record.FakeRecorder{}
	}
	c := &Controller{
		client: o.Client, recorder: o.Recorder,
		loop:   loop.New(loop.Options{Workers: o.Workers, FirstRetry: firstRetry, LastRetry: lastRetry, Logger: o.Logger.With("component", "endpoints")}),
		index:  newIndex(),
		inbox:  map[types.NamespacedName]*inbox{},
		states: map[types.NamespacedName]*service{},
		auto:   map[types.NamespacedName]struct{}{},
		shares: sharesOf(nil),
	}
	core := o.Informers.Core().V1()
	// First what the handlers read: they are called as soon as they are known.
	c.services, c.pods, c.nodes = core.Services().Informer().GetStore(), core.Pods().Informer().GetStore(), core.Nodes().Informer().GetStore()
	c.listen(core.Services().Informer(), c.serviceChanged)
	c.listen(core.Pods().Informer(), c.podChanged)
	c.listen(core.Nodes().Informer(), c.nodeChanged)
	c.listen(core.Endpoints().Informer(), c.endpointsChanged)
	c.listen(o.Informers.Discovery().V1().EndpointSlices().Informer(), c.sliceChanged)
	return c
}

func (c *Controller) listen(informer cache.SharedIndexInformer, changed func(old, now any)) {
	c.loop.Listen(informer, func(old, now any) {
		changed(old, now)
		if c.heard != nil {
			c.heard(old, now)
		}
	})
}

// Run reconciles until ctx ends, and returns when its workers have ended and
// the informers have forgotten the controller. It may be called once.
func (c *Controller) Run(ctx context.Context) error {
	return c.loop.Run(ctx, func(ctx context.Context, key types.NamespacedName) error {
		c.busy.Add(1)
		defer c.busy.Add(-1)
		err := c.reconcile(ctx, key)
		if err != nil {
			c.pending(key)
		}
		return err
	})
}

// note puts something into a Service's inbox. The caller holds c.mu.
func (c *Controller) note(svc types.NamespacedName, write func(*inbox)) {
	in := c.inbox[svc]
	if in == nil {
		in = &inbox{}
		c.inbox[svc] = in
	}
	write(in)
	c.loop.Add(svc)
}

func (c *Controller) notePod(svc types.NamespacedName, pod string) {
	c.note(svc, func(in *inbox) {
		if in.pods == nil {
			in.pods = map[string]struct{}{}
		}
		in.pods[pod] = struct{}{}
	})
}

// pending marks that there is something left to do for a Service.
func (c *Controller) pending(key types.NamespacedName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inbox[key] == nil {
		c.inbox[key] = &inbox{}
	}
}

// hasNews says whether something happened to the Service since its inbox was
// taken.
func (c *Controller) hasNews(key types.NamespacedName) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inbox[key] != nil
}

// idle says that nothing is left to be done about what the handlers were told.
func (c *Controller) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.inbox) == 0 && c.busy.Load() == 0
}

// take empties a Service's inbox, unless its writes are to pause: then it gives
// how long.
func (c *Controller) take(key types.NamespacedName) (*inbox, *service, zoneShares, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.states[key]
	if st == nil {
		st = newService(key)
		c.states[key] = st
	}
	if wait := st.pace.hold(time.Now()); wait > 0 {
		return nil, nil, zoneShares{}, wait
	}
	in := c.inbox[key]
	if in == nil {
		in = &inbox{}
	}
	delete(c.inbox, key)
	return in, st, c.shares, 0
}

// reconcile makes one Service's slices and Endpoints what they should be.
func (c *Controller) reconcile(ctx context.Context, key types.NamespacedName) error {
	in, st, shares, wait := c.take(key)
	if wait > 0 {
		c.loop.AddAfter(key, wait)
		return nil
	}
	for name, slice := range in.slices {
		if slice == nil {
			st.set.ObserveDelete(name)
		} else {
			st.set.Observe(slice)
		}
	}
	for name, exists := range in.mirrored {
		if exists {
			st.mirrored[name] = struct{}{}
		} else {
			delete(st.mirrored, name)
		}
	}
	if in.object {
		st.obj.observe(in.endpoints)
	}
	svc, _ := get[*corev1.Service](c.services, key)
	st.deleted = svc == nil && (st.deleted || in.deleted)
	switch ruleOf(svc) {
	case serve:
		return c.serve(ctx, st, svc, in, shares)
	case handOver:
		return c.handOver(ctx, st)
	case withdraw:
		return c.withdraw(ctx, st, false)
	default:
		if err := c.withdraw(ctx, st, st.deleted); err != nil {
			return err
		}
		c.forget(key)
		return nil
	}
}

// forget drops the state of a Service that does not exist, unless something has
// happened to it meanwhile.
func (c *Controller) forget(key types.NamespacedName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inbox[key] == nil {
		delete(c.states, key)
	}
}

func (c *Controller) serve(ctx context.Context, st *service, svc *corev1.Service, in *inbox, shares zoneShares) error {
	pods := in.pods
	if in.all || st.src == nil {
		pods = c.allPods(st, svc)
		st.src = newSource(svc)
	}
	if !st.known {
		st.known = true
		st.triggeredAt(svc.CreationTimestamp.Time)
	}
	for name := range pods {
		pod, ok := get[*corev1.Pod](c.pods, types.NamespacedName{Namespace: st.key.Namespace, Name: name})
		var node *corev1.Node
		if ok && pod.Spec.NodeName != "" {
			node, _ = get[*corev1.Node](c.nodes, types.NamespacedName{Name: pod.Spec.NodeName})
		}
		st.takePod(name, pod, node)
	}
	for _, e := range st.allocateHints(shares) {
		c.tellHints(svc, e)
	}
	st.set.SetMeta(st.meta())
	return c.write(ctx, st, svc, len(in.pods))
}

// allPods is the pods that the Service selects now and those it did.
func (c *Controller) allPods(st *service, svc *corev1.Service) map[string]struct{} {
	pods := make(map[string]struct{}, len(st.pods))
	for name := range st.pods {
		pods[name] = struct{}{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.index.podsOf(svc.Namespace, svc.Spec.Selector, func(name string) { pods[name] = struct{}{} })
	return pods
}

// handOver leaves a Service without selector to its user.
func (c *Controller) handOver(ctx context.Context, st *service) error {
	st.dropPods()
	if st.set.Slices() > 0 && (len(st.mirrored) > 0 || !st.willBeMirrored()) {
		st.set.SetMeta(st.withoutSlices())
		if _, err := c.writeSlices(ctx, st, nil); err != nil {
			return err
		}
	}
	return c.disown(ctx, st)
}

// withdraw removes what the Service had from us; with its Endpoints whoever
// wrote them, if whatever says so.
func (c *Controller) withdraw(ctx context.Context, st *service, whatever bool) error {
	st.dropPods()
	st.set.SetMeta(st.withoutSlices())
	_, err := c.writeSlices(ctx, st, nil)
	if ep := st.obj.seen; ep != nil && (whatever || ep.Labels[managedByLabel] == managedByValue) {
		err = errors.Join(err, c.deleteObject(ctx, st))
	}
	return err
}

func (c *Controller) tellHints(svc *corev1.Service, e hintEvent) {
	switch {
	case e.off:
		c.recorder.Eventf(svc, corev1.EventTypeWarning, "TopologyAwareHintsDisabled", "Topology Aware Hints has been disabled, addressType: %s", e.family)
	case e.problem != "":
		c.recorder.Eventf(svc, corev1.EventTypeWarning, "TopologyAwareHintsDisabled", "%s, addressType: %s", e.problem, e.family)
	default:
		c.recorder.Eventf(svc, corev1.EventTypeNormal, "TopologyAwareHintsEnabled", "Topology Aware Hints has been enabled, addressType: %s", e.family)
	}
}

// get looks an object up in an informer's store.
func get[T any](store cache.Store, key types.NamespacedName) (obj T, ok bool) {
	name := key.Name
	if key.Namespace != "" {
		name = key.Namespace + "/" + key.Name
	}
	found, ok, _ := store.GetByKey(name)
	if ok {
		obj, ok = found.(T)
	}
	return obj, ok
}
