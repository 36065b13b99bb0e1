// Package controllertest is an API server in memory for the tests of
// controllers: client-go's fake clientset, with the behaviour that controllers
// rely on and that its own tracker lacks.
//
// What flows in: requests of one or more clients ([API.Client]). What flows out:
// answers, and watch events to informers. Requests are counted by client
// ([Writes]), so a test can give the controller one client and itself another.
//
// As a real server it: gives every write one resourceVersion out of one growing
// sequence; refuses an update of an old version, a wrong UID and unmet
// preconditions; carries out generateName; leaves an object that an update does
// not change alone; lets watches begin at any version, with label and field
// selectors, without losing events however slow the reader is; keeps objects
// with finalizers until these are gone, and Pods until their grace is over;
// refuses to create anything in a Namespace that is being deleted; refuses to
// change the addressType of an EndpointSlice.
//
// Unlike a real server it: knows no other validation and no defaults; lets a
// test choose uid, creationTimestamp and deletionTimestamp; takes spec and status
// together outside of the status subresource; collects no garbage; refuses
// server-side apply, dry runs and other subresources with an error.
//
// Names and UIDs it gives are the same in every run with the same order of
// requests. Objects handed in or out are copies. Test it with go test in this
// folder.
package controllertest

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
)

// API is the store behind the clients. Make it with [NewAPI].
type API struct {
	mu        sync.Mutex                                                      // guards all of the below
	revision  uint64                                                          // the resourceVersion of the last write
	objects   map[schema.GroupVersionResource]map[types.NamespacedName]object // as last written
	history   map[schema.GroupVersionResource][]change                        // in order
	compacted uint64                                                          // history begins after this revision
	changed   chan struct{}                                                   // closed and replaced with every write
	expired   chan struct{}                                                   // closed and replaced by Compact
}

// object is any API object. Stored ones are never modified.
type object interface {
	runtime.Object
	metav1.Object
}

// change is one write, as watches show it.
type change struct {
	revision uint64
	event    watch.EventType
	object   object
	before   object // nil for an addition
}

// NewAPI makes an API that holds objs. It panics on an object that cannot be
// created: that is a fault of the test.
func NewAPI(objs ...runtime.Object) *API {
	a := &API{
		revision: 1, // 0 means something else to watches
		objects:  map[schema.GroupVersionResource]map[types.NamespacedName]object{},
		history:  map[schema.GroupVersionResource][]change{},
		changed:  make(chan struct{}),
		expired:  make(chan struct{}),
	}
	for _, obj := range objs {
		kinds, _, err := scheme.Scheme.ObjectKinds(obj)
		if err != nil {
			panic(fmt.Sprintf("seed %T: %v", obj, err))
		}
		gvr, _ := meta.UnsafeGuessKindToResource(kinds[0])
		o := obj.DeepCopyObject().(object)
		o.SetResourceVersion("")
		if _, err := a.create(gvr, o.GetNamespace(), o, metav1.CreateOptions{}); err != nil {
			panic(fmt.Sprintf("seed %s %s: %v", kinds[0].Kind, o.GetName(), err))
		}
	}
	return a
}

// NewClient is the only client of a new API that holds objs.
func NewClient(objs ...runtime.Object) *fake.Clientset { return NewAPI(objs...).Client() }

// Client makes one more client, with a log of requests of its own. A reactor
// that is prepended to it goes before the API, for instance to let requests fail.
func (a *API) Client() *fake.Clientset {
	c := fake.NewSimpleClientset()
	c.PrependReactor("*", "*", a.react)
	c.PrependWatchReactor("*", a.reactWatch)
	return c
}

// Writes counts the requests of one client that were meant to change something,
// successful or not: "verb resource" → number, with the subresource behind a
// slash.
func Writes(c *fake.Clientset) map[string]int {
	n := map[string]int{}
	for _, action := range c.Actions() {
		switch action.GetVerb() {
		case "get", "list", "watch":
			continue
		}
		resource := action.GetResource().Resource
		if sub := action.GetSubresource(); sub != "" {
			resource += "/" + sub
		}
		n[action.GetVerb()+" "+resource]++
	}
	return n
}

// Revision is the resourceVersion of the last write.
func (a *API) Revision() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strconv.FormatUint(a.revision, 10)
}

// Compact forgets the history and ends all watches, so that every informer has
// to list again, as after a long break of its connection.
func (a *API) Compact() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.history)
	a.compacted = a.revision
	close(a.expired)
	a.expired = make(chan struct{})
}

// Eventually waits until met returns nil, and returns its last error when ctx
// ends before that. It asks after every write, and between writes because
// informers take a moment to hear of them.
func (a *API) Eventually(ctx context.Context, met func() error) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		a.mu.Lock()
		changed := a.changed
		a.mu.Unlock()
		err := met()
		if err == nil {
			return nil
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// commit stores next, or removes before where next is nil, and tells the
// watches. It takes ownership of next and returns what was stored. The caller
// holds mu.
func (a *API) commit(gvr schema.GroupVersionResource, before, next object) object {
	a.revision++
	c := change{revision: a.revision, event: watch.Modified, object: next, before: before}
	switch {
	case next == nil:
		c.event, c.object = watch.Deleted, before.DeepCopyObject().(object)
	case before == nil:
		c.event = watch.Added
	}
	c.object.SetResourceVersion(strconv.FormatUint(a.revision, 10))
	name := types.NamespacedName{Namespace: c.object.GetNamespace(), Name: c.object.GetName()}
	if next == nil {
		delete(a.objects[gvr], name)
	} else {
		if a.objects[gvr] == nil {
			a.objects[gvr] = map[types.NamespacedName]object{}
		}
		a.objects[gvr][name] = next
	}
	a.history[gvr] = append(a.history[gvr], c)
	close(a.changed)
	a.changed = make(chan struct{})
	return c.object
}

// list gives the objects that sel matches, by namespace and name.
func (a *API) list(gvr schema.GroupVersionResource, sel selection) []object {
	var found []object
	for _, obj := range a.objects[gvr] {
		if sel.matches(obj) {
			found = append(found, obj)
		}
	}
	slices.SortFunc(found, func(x, y object) int {
		return cmp.Or(cmp.Compare(x.GetNamespace(), y.GetNamespace()), cmp.Compare(x.GetName(), y.GetName()))
	})
	return found
}

func copyOf(obj object) object { return obj.DeepCopyObject().(object) }

// emptyOf makes a new object of the same type.
func emptyOf(obj object) object {
	return reflect.New(reflect.TypeOf(obj).Elem()).Interface().(object)
}
