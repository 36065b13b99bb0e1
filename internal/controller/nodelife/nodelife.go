// Package nodelife looks after nodes: it notices those that fall silent, taints them, takes their pods out of endpoints
// and away, gives nodes their part of the pod range, and clears up after Nodes that are gone.
//
// What flows in: Nodes and Pods from shared informers, Leases of kube-node-lease from one of its own. What flows out,
// through the API: conditions and taints of Nodes, podCIDRs, the Ready condition of pods, deletions of pods.
//
// Failure detection (detector.go). A node whose agent renewed its Lease once is silent when no renewal was seen for 2.75 s
// (1¼ of the Lease's duration where that is more: a kubelet has 50 s). Before that is said, the Lease is read from the API:
// where it is newer, the watch is late and the node lives; where it can not be read, the API is late, and everybody gets a
// fresh period. So it is when the detector itself did not run for a second. When nobody of several nodes is heard of any more, everybody gets one more
// period, and then all are called silent, but no pod is evicted until the first is back and the others had a period for it.
// A Node that has no Lease is somebody's by hand, and left as it is.
//
// What follows:
//
//	silent             conditions Unknown; taint unreachable; its pods Ready=False, so that endpoints leave, all at once
//	back               the taint goes; the agent itself writes Ready and the pods
//	Ready=False        taint not-ready, with NoExecute after 10 s, for an agent that starts says so; its pods are its own to tell
//	cordoned           taint unschedulable
//	taint NoExecute    pods that do not tolerate it are deleted, those that do for tolerationSeconds then; mirror pods stay
//	no podCIDR         the next free part of each range; overlaps are told by event and condition on the younger Node
//	Node gone          after 10 s and a look at the API its pods are deleted by force; those that somebody placed on a name
//	                   that was never a Node, and that no agent ever had, are left as they are
//	12,500 ended pods  the oldest ones beyond that are deleted
//
// Invariants: nothing waits for a poll; what is due at a time has a timer for that time; objects of informers are not
// modified; state is rebuilt for each term of leadership, where a node that was called silent stays so until it renews.
//
// It refuses to restart, power off or delete nodes. Tests: the detector by table with given time, the controller against an
// API in memory with fake time.
package nodelife

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	coordinationinformers "k8s.io/client-go/informers/coordination/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/endpointd/endpointd/internal/controller/loop"
)

const (
	nodeWorkers = 16
	podWorkers  = 16
	// What failed is tried again after the first of these, then after twice as long every time, up to the second.
	firstRetry = 10 * time.Millisecond
	lastRetry  = 10 * time.Second

	// leaseTimeout bounds the look at a Lease before its node is called silent. An API that takes longer is late itself.
	leaseTimeout = 200 * time.Millisecond
	// notReadyGrace is how long an agent may say that it is not ready before its pods are evicted.
	notReadyGrace = 10 * time.Second
	// orphanGrace is how long a Node may be missing before its pods are deleted (upstream: 40 s).
	orphanGrace = 10 * time.Second
	// DefaultMaxTerminated is upstream's.
	DefaultMaxTerminated = 12500
)

// Options configure a Controller. Client, Informers and Leases must be set.
type Options struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory // started by the caller, after New
	// Leases are those of kube-node-lease, see NewLeases; run by the caller.
	Leases   cache.SharedIndexInformer
	Recorder record.EventRecorder // nil: no events
	Logger   *slog.Logger         // nil: slog.Default()
	// PodCIDRs are what nodes get their ranges from: none, one, or one of each family.
	PodCIDRs []netip.Prefix
	// MaxTerminated pods are kept; 0: DefaultMaxTerminated.
	MaxTerminated int
}

// NewLeases is an informer of the Leases of nodes.
func NewLeases(client kubernetes.Interface) cache.SharedIndexInformer {
	return coordinationinformers.NewLeaseInformer(client, corev1.NamespaceNodeLease, 0, cache.Indexers{})
}

// Controller looks after nodes.
type Controller struct {
	client        kubernetes.Interface
	recorder      record.EventRecorder
	log           *slog.Logger
	podCIDRs      []netip.Prefix
	maxTerminated int
	nodes, pods   *loop.Loop
	leases        *loop.Loop // has no keys: it only listens
	nodeStore     cache.Store
	podStore      cache.Store
	allocating    sync.Mutex // held from choosing a range until the API has it

	mu         sync.Mutex // guards what follows
	detector   *detector
	byNode     map[string]map[types.NamespacedName]struct{} // node → its pods
	taintSince map[string]map[taintKey]time.Time            // node → NoExecute taints and since when
	notReady   map[string]time.Time                         // node → since when it says that it is not ready
	missing    map[string]time.Time                         // node that pods name and that does not exist → since when
	known      map[string]struct{}                          // nodes that pods name and that existed once
	marked     map[types.NamespacedName]string              // pod → version that was marked not ready, until the watch shows it
	ended      map[types.NamespacedName]time.Time           // pods that have ended → when they were made
	given      map[string][]netip.Prefix                    // node → ranges that it has, also those not yet seen
}

// taintKey is what a toleration sees of a taint.
type taintKey struct{ key, value string }

// New makes a controller and registers it with the informers; nothing is written before Run.
func New(o Options) *Controller {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Recorder == nil {
		o.Recorder = &record.FakeRecorder{}
	}
	if o.MaxTerminated == 0 {
		o.MaxTerminated = DefaultMaxTerminated
	}
	log := o.Logger.With("component", "nodes")
	newLoop := func(workers int) *loop.Loop {
		return loop.New(loop.Options{Workers: workers, FirstRetry: firstRetry, LastRetry: lastRetry, Logger: log})
	}
	c := &Controller{
		client: o.Client, recorder: o.Recorder, log: log, podCIDRs: o.PodCIDRs, maxTerminated: o.MaxTerminated,
		nodes: newLoop(nodeWorkers), pods: newLoop(podWorkers), leases: newLoop(0),
		detector: newDetector(), byNode: map[string]map[types.NamespacedName]struct{}{}, taintSince: map[string]map[taintKey]time.Time{},
		notReady: map[string]time.Time{}, missing: map[string]time.Time{}, known: map[string]struct{}{}, marked: map[types.NamespacedName]string{}, ended: map[types.NamespacedName]time.Time{}, given: map[string][]netip.Prefix{},
	}
	core := o.Informers.Core().V1()
	c.nodeStore, c.podStore = core.Nodes().Informer().GetStore(), core.Pods().Informer().GetStore()
	c.nodes.Listen(core.Nodes().Informer(), c.nodeChanged)
	c.pods.Listen(core.Pods().Informer(), c.podChanged)
	c.leases.Listen(o.Leases, c.leaseChanged)
	return c
}

// Run works until ctx ends, and returns when its workers have ended and the informers have forgotten the controller. It may
// be called once.
func (c *Controller) Run(ctx context.Context) error {
	var running sync.WaitGroup
	running.Go(func() { _ = c.leases.Run(ctx, nil) })
	running.Go(func() { _ = c.pods.Run(ctx, c.reconcilePod) })
	running.Go(func() { c.detect(ctx) })
	err := c.nodes.Run(ctx, c.reconcileNode)
	running.Wait()
	return err
}

func nodeKey(name string) types.NamespacedName { return types.NamespacedName{Name: name} }

func keyOf(pod *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}

// detect runs the detector.
func (c *Controller) detect(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		c.mu.Lock()
		suspects, graceOver, wait := c.detector.advance(time.Now())
		versions := map[string]string{}
		for _, name := range suspects {
			versions[name] = c.detector.nodes[name].lease.ResourceVersion
		}
		c.mu.Unlock()
		for _, name := range graceOver {
			c.nodes.Add(nodeKey(name))
		}
		if len(suspects) > 0 {
			c.judge(ctx, suspects, versions)
			wait = 0
		}
		timer.Reset(wait)
	}
}

// judge asks the API about the Leases of suspects, all at once, and calls them silent unless it says otherwise.
func (c *Controller) judge(ctx context.Context, suspects []string, versions map[string]string) {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	type answer struct {
		alive bool
		err   error
	}
	answers := make([]answer, len(suspects))
	var asking sync.WaitGroup
	for i, name := range suspects {
		asking.Go(func() { answers[i].alive, answers[i].err = c.alive(ctx, name, versions[name]) })
	}
	asking.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for i, answer := range answers {
		switch {
		case answer.err != nil:
			c.log.Warn("the API does not answer in time: silence says nothing about nodes", "node", suspects[i], "err", answer.err)
			c.detector.doubt(now)
			return
		case answer.alive:
			c.log.Warn("the watch of Leases is late", "node", suspects[i])
			c.detector.node(suspects[i]).heard = now
		}
	}
	silent := c.detector.declare(suspects, now)
	for _, name := range silent {
		c.log.Info("node is silent", "node", name)
		c.nodes.Add(nodeKey(name))
	}
	if len(silent) > 0 && c.detector.disrupted() {
		c.log.Warn("all nodes are silent: no pod is evicted")
		c.addJudged()
	}
}

// addJudged has all nodes looked at. The caller holds mu.
func (c *Controller) addJudged() {
	for name, h := range c.detector.nodes {
		if h.judged() {
			c.nodes.Add(nodeKey(name))
		}
	}
}

// alive says whether the API has a newer Lease than the one that was seen.
func (c *Controller) alive(ctx context.Context, name, version string) (bool, error) {
	lease, err := c.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, name, metav1.GetOptions{})
	if notFound(err) {
		return false, nil
	}
	return err == nil && lease.ResourceVersion != version, err
}

func (c *Controller) leaseChanged(old, now any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lease, _ := now.(*coordinationv1.Lease)
	if lease == nil {
		c.detector.leaseGone(old.(*coordinationv1.Lease).Name)
		return
	}
	disrupted := c.detector.disrupted()
	if c.detector.leaseSeen(lease, time.Now()) {
		c.log.Info("node is back", "node", lease.Name)
		c.nodes.Add(nodeKey(lease.Name))
		if disrupted {
			c.addJudged()
		}
	}
}
