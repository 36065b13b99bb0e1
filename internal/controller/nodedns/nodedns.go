// Package nodedns has the DNS servers of the nodes found under one name: the Service kube-dns in kube-system, which every tool expects there.
//
// What flows in: Nodes, that Service and its EndpointSlices from shared informers. What flows out, through the API: the Service if there is none,
// and EndpointSlices that name each node with an agent whose DNS server answers, as its annotation [Annotation] says. An endpoint has a hint for its
// own node (discovery/v1 EndpointHints.forNodes), so that every node answers its own pods, and those of a node without a server ask others.
//
// What happens (rule):
//
//	no Service                        it is made, with the tenth address of each range, where kubelets and agents send pods
//	the Service is edited             it stays as somebody wants it; its ports decide nothing here
//	it has a selector                 somebody else's DNS server has taken over: our slices go
//	node gets or loses the annotation its endpoint comes or goes
//	node is not Ready                 its endpoint is not ready
//	Node gone                         its endpoint goes
//	a slice is edited or deleted      put right
//
// Invariants: objects from informers are never modified; only slices with our managed-by label are touched.
//
// It refuses to know whether DNS answers are right. Tests: plan by table; the controller against an API in memory.
package nodedns

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/endpointd/endpointd/internal/controller/loop"
	"github.com/endpointd/endpointd/internal/controller/sliceset"
)

// What is written that failed is tried again after the first of these, then after twice as long every time, up to the second.
const (
	firstRetry = 10 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// Options configure a Controller. Client, Informers and Addrs must be set.
type Options struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory // started by the caller, after New
	Addrs     []netip.Addr                    // of the Service, one of each family, primary first
	Logger    *slog.Logger                    // nil: slog.Default()
}

// Controller keeps the Service and its slices.
type Controller struct {
	client   kubernetes.Interface
	addrs    []netip.Addr
	loop     *loop.Loop
	services cache.Store
	nodes    cache.Store

	set *sliceset.Set // belongs to the worker

	mu    sync.Mutex
	inbox map[string]*discovery.EndpointSlice // newest versions since the last reconcile; nil = gone or not ours any more
}

// New makes a controller and registers it with the informers; nothing is written before Run.
func New(o Options) *Controller {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	c := &Controller{
		client: o.Client, addrs: o.Addrs,
		loop:  loop.New(loop.Options{Workers: 1, FirstRetry: firstRetry, LastRetry: lastRetry, Logger: o.Logger.With("component", "dns")}),
		set:   sliceset.New(func(_ *discovery.EndpointSlice, e *discovery.Endpoint) string { return nodeOf(e) }),
		inbox: map[string]*discovery.EndpointSlice{},
	}
	core := o.Informers.Core().V1()
	c.services, c.nodes = core.Services().Informer().GetStore(), core.Nodes().Informer().GetStore()
	c.loop.Listen(core.Services().Informer(), c.serviceChanged)
	c.loop.Listen(core.Nodes().Informer(), c.nodeChanged)
	c.loop.Listen(o.Informers.Discovery().V1().EndpointSlices().Informer(), c.sliceChanged)
	return c
}

// Run works until ctx ends, and returns when its worker has ended and the informers have forgotten the controller. It may be called once.
func (c *Controller) Run(ctx context.Context) error {
	c.loop.Add(key()) // there may be no event at all
	return c.loop.Run(ctx, c.reconcile)
}

// key is the Service's.
func key() types.NamespacedName {
	return types.NamespacedName{Namespace: metav1.NamespaceSystem, Name: serviceName}
}

func (c *Controller) serviceChanged(old, now any) {
	if now == nil {
		now = old
	}
	if svc := now.(*corev1.Service); svc.Name == serviceName && svc.Namespace == metav1.NamespaceSystem {
		c.loop.Add(key())
	}
}

func (c *Controller) nodeChanged(old, now any) {
	before, _ := old.(*corev1.Node)
	after, _ := now.(*corev1.Node)
	if serverOf(before) != serverOf(after) {
		c.loop.Add(key())
	}
}

func (c *Controller) sliceChanged(old, now any) {
	before, _ := old.(*discovery.EndpointSlice)
	after, _ := now.(*discovery.EndpointSlice)
	if !isOurs(before) && !isOurs(after) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if isOurs(after) {
		c.inbox[after.Name] = after
	} else {
		c.inbox[before.Name] = nil
	}
	c.loop.Add(key())
}

// reconcile makes the Service if there is none, and its slices what they should be.
func (c *Controller) reconcile(ctx context.Context, key types.NamespacedName) error {
	svc, _ := get(c.services, key)
	if svc == nil {
		made, err := c.client.CoreV1().Services(key.Namespace).Create(ctx, service(c.addrs), metav1.CreateOptions{})
		switch {
		case apierrors.IsAlreadyExists(err):
			return nil // the watch is late
		case err != nil:
			return fmt.Errorf("make Service %s, by which pods find DNS: %w; if another Service has its address, delete that or give it another", key, err)
		}
		svc = made
	}
	for name, slice := range c.take() {
		if slice == nil {
			c.set.Forget(name)
		} else {
			c.set.Observe(slice)
		}
	}
	c.want(svc)
	return sliceset.Apply(ctx, c.client.DiscoveryV1(), c.set, c.set.Plan(time.Time{}))
}

func (c *Controller) take() map[string]*discovery.EndpointSlice {
	c.mu.Lock()
	defer c.mu.Unlock()
	in := c.inbox
	c.inbox = map[string]*discovery.EndpointSlice{}
	return in
}

// want tells the set which endpoints there should be.
func (c *Controller) want(svc *corev1.Service) {
	var nodes []*corev1.Node
	for _, obj := range c.nodes.List() {
		nodes = append(nodes, obj.(*corev1.Node))
	}
	meta, want := plan(svc, nodes)
	c.set.SetMeta(meta)
	for _, k := range c.set.Keys() {
		if want[k] == nil {
			c.set.Want(k, nil)
		}
	}
	for k, w := range want {
		c.set.Want(k, w)
	}
}

func get(store cache.Store, key types.NamespacedName) (*corev1.Service, bool) {
	obj, ok, _ := store.GetByKey(key.String())
	if !ok {
		return nil, false
	}
	return obj.(*corev1.Service), true
}
