// Package mirror copies hand-written Endpoints into EndpointSlices, so that
// consumers need to read slices only.
//
// What flows in: Services, Endpoints and EndpointSlices from shared informers.
// What flows out: creates, updates and deletes of slices with the label
// endpointslice.kubernetes.io/managed-by=endpointslicemirroring-controller.k8s.io
// through the API, as few as the change needs, and two warnings as events on the
// Endpoints. Semantics: spec §3.2, read from Kubernetes v1.37.
//
// When Endpoints are mirrored: a Service of the same name exists that has no
// selector (nil) and is not of type ExternalName, and the Endpoints have neither
// the label endpointslice.kubernetes.io/skip-mirror=true nor the annotation
// control-plane.alpha.kubernetes.io/leader. The label of the endpoints controller
// (endpoints.kubernetes.io/managed-by) does not matter: without a selector it has
// given them up.
//
// What happens (rule):
//
//	Service or Endpoints created, whichever is last   the slices are made
//	Endpoints changed                                 the slices that it concerns are written, no others
//	all subsets or addresses removed                  all mirrored slices are deleted
//	Endpoints deleted, or their deletion begins       the same
//	Endpoints deleted and made anew                   new slices, then the old ones go: their owner is another
//	label skip-mirror=true or a leader annotation     the same as deleted; taken away again: made anew
//	Service deleted                                   deleted; one that waits for a finalizer still counts
//	type becomes ExternalName                         deleted; becomes another type: made anew
//	becomes headless or gets an address               the label service.kubernetes.io/headless follows
//	selector added                                    the slices stay as they are until one of the endpoints
//	                                                  controller's exists, then they go: no moment without any
//	selector removed                                  the slices are made at once from the Endpoints as they are
//	a mirrored slice is edited or deleted by hand     put right
//	a mirrored slice waits for a finalizer to go      the same as deleted
//	a mirrored slice loses our managed-by label,      it is its new owner's, another one is made
//	or goes to another Service by label
//	a slice gets our managed-by label                 it is ours: put right or deleted
//	the namespace is going away                       what cannot be created is dropped quietly
//	any other failed write                            tried again after 1 s, 2 s … 100 s, without end
//
// How subsets become slices: addresses in several subsets are first brought
// together port by port (not ready wins over ready), then ports that lead to the
// same addresses are one group, as upstream repacks them. A group is one slice
// for each family, or as many as it takes if two of its ports have the same name,
// which a slice cannot hold. At most [Options.MaxEndpointsPerSubset] addresses of
// a group are taken, ready ones first. Slices carry no trigger time.
//
// Invariants: objects from informers are never modified; a Service's state
// belongs to the worker that holds its key; there is no batching delay, what
// happens while a Service's writes are in flight goes into the next ones
// together. It must be the only writer of slices with its label.
//
// It refuses to touch slices of other managers, to write Endpoints, and to say
// anything about the addresses but what the Endpoints say (package external).
// Tests: plan and repack by table and against an oracle; the controller against a
// fake API by transition, by number of writes and by a random walk.
package mirror

import (
	"context"
	"log/slog"
	"sync"
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

// Defaults of Options, the same as upstream's.
const (
	DefaultWorkers               = 5
	DefaultMaxEndpointsPerSubset = 1000
)

// A failed Service is tried again after the first of these, then after twice as
// long every time, up to the second.
const (
	firstRetry = time.Second
	lastRetry  = 100 * time.Second
)

// Options configure a Controller. Client and Informers must be set.
type Options struct {
	Client                kubernetes.Interface
	Informers             informers.SharedInformerFactory // started by the caller, after New
	Recorder              record.EventRecorder            // nil: no events
	Logger                *slog.Logger                    // nil: slog.Default()
	Workers               int                             // 0: DefaultWorkers
	MaxEndpointsPerSubset int                             // 0: DefaultMaxEndpointsPerSubset
}

// Controller keeps the mirrored slices of all Services.
type Controller struct {
	client    kubernetes.Interface
	recorder  record.EventRecorder
	max       int // addresses of one group
	loop      *loop.Loop
	services  cache.Store
	endpoints cache.Store

	mu sync.Mutex // guards what follows
	// inbox is Service → slice → its newest version since the last reconcile, nil
	// for one that is gone or no longer ours.
	inbox map[types.NamespacedName]map[string]*discovery.EndpointSlice
	// states is Service → state, for those that have or had mirrored slices. What
	// is in a state belongs to the worker that holds the key.
	states map[types.NamespacedName]*state
	// theirs is Service → names of the slices that the endpoints controller has
	// made for it.
	theirs map[types.NamespacedName]map[string]struct{}
}

// New makes a controller and registers it with the informers; nothing is
// written before Run.
func New(o Options) *Controller {
	if o.Workers == 0 {
		o.Workers = DefaultWorkers
	}
	if o.MaxEndpointsPerSubset == 0 {
		o.MaxEndpointsPerSubset = DefaultMaxEndpointsPerSubset
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Recorder == nil {
		o.Recorder = &record.FakeRecorder{} // without a channel it drops what it gets
	}
	c := &Controller{
		client: o.Client, recorder: o.Recorder, max: o.MaxEndpointsPerSubset,
		loop:   loop.New(loop.Options{Workers: o.Workers, FirstRetry: firstRetry, LastRetry: lastRetry, Logger: o.Logger.With("component", "mirror")}),
		inbox:  map[types.NamespacedName]map[string]*discovery.EndpointSlice{},
		states: map[types.NamespacedName]*state{},
		theirs: map[types.NamespacedName]map[string]struct{}{},
	}
	core := o.Informers.Core().V1()
	c.services, c.endpoints = core.Services().Informer().GetStore(), core.Endpoints().Informer().GetStore()
	c.loop.Listen(core.Services().Informer(), c.objectChanged)
	c.loop.Listen(core.Endpoints().Informer(), c.objectChanged)
	c.loop.Listen(o.Informers.Discovery().V1().EndpointSlices().Informer(), c.sliceChanged)
	return c
}

// Run reconciles until ctx ends, and returns when its workers have ended and
// the informers have forgotten the controller. It may be called once.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.reconcile) }

// objectChanged is told of Services and Endpoints.
func (c *Controller) objectChanged(old, now any) {
	if now == nil {
		now = old
	}
	switch obj := now.(type) {
	case *corev1.Service:
		c.loop.Add(types.NamespacedName{Namespace: obj.Namespace, Name: obj.Name})
	case *corev1.Endpoints:
		c.loop.Add(types.NamespacedName{Namespace: obj.Namespace, Name: obj.Name})
	}
}

// sliceChanged notes what happened to our slices, and has Services that wait
// for the endpoints controller looked at when it made a slice.
func (c *Controller) sliceChanged(old, now any) {
	before, _ := old.(*discovery.EndpointSlice)
	after, _ := now.(*discovery.EndpointSlice)
	c.mu.Lock()
	defer c.mu.Unlock()
	if isOurs(before) && (!isOurs(after) || serviceOf(before) != serviceOf(after)) {
		c.note(serviceOf(before), before.Name, nil)
	}
	if isOurs(after) {
		c.note(serviceOf(after), after.Name, after)
	}
	if managedBy(before) == endpointsManager {
		c.noteTheirs(before, false)
	}
	if managedBy(after) == endpointsManager {
		c.noteTheirs(after, after.DeletionTimestamp == nil)
	}
}

// noteTheirs keeps which Services have slices of the endpoints controller. The
// caller holds mu.
func (c *Controller) noteTheirs(slice *discovery.EndpointSlice, exists bool) {
	key := serviceOf(slice)
	theirs := c.theirs[key]
	switch _, known := theirs[slice.Name]; {
	case exists == known:
	case exists:
		if theirs == nil {
			theirs = map[string]struct{}{}
			c.theirs[key] = theirs
		}
		theirs[slice.Name] = struct{}{}
		if c.states[key] != nil || c.inbox[key] != nil {
			c.loop.Add(key)
		}
	default:
		if delete(theirs, slice.Name); len(theirs) == 0 {
			delete(c.theirs, key)
		}
	}
}

// note puts the newest version of a slice, or nil for none, into the inbox of
// its Service. The caller holds mu.
func (c *Controller) note(key types.NamespacedName, name string, slice *discovery.EndpointSlice) {
	in := c.inbox[key]
	switch {
	case slice != nil && in == nil:
		in = map[string]*discovery.EndpointSlice{}
		c.inbox[key] = in
		fallthrough
	case slice != nil:
		in[name] = slice
	case c.states[key] == nil:
		// Nobody has heard of the slice yet, and now nobody needs to. So the inbox
		// does not grow while Run has not begun.
		delete(in, name)
		if len(in) == 0 {
			delete(c.inbox, key)
		}
		return
	case in == nil:
		c.inbox[key] = map[string]*discovery.EndpointSlice{name: nil}
	default:
		in[name] = nil
	}
	c.loop.Add(key)
}

// take empties a Service's inbox. The state is nil if the Service has none and
// create does not ask for one.
func (c *Controller) take(key types.NamespacedName, create bool) (*state, map[string]*discovery.EndpointSlice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	in := c.inbox[key]
	delete(c.inbox, key)
	if c.states[key] == nil && (create || len(in) > 0) {
		c.states[key] = newState()
	}
	return c.states[key], in
}

// drop forgets a Service's state. News about it begin a new one.
func (c *Controller) drop(key types.NamespacedName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.states, key)
}
