// Package watch keeps a copy in memory of the API objects that the node agent acts on.
//
// In: one list and watch of one resource, with selectors. Out: [Store.Get] and [Store.List] for any goroutine, and a
// function that is told of each change. It is client-go's Reflector with a store of its own; what differs from an
// informer is the pause after failures, which ends within a second, so that the agent is back a second after
// the API is.
//
// Invariants: stale beats nothing, so an API that is away changes nothing in the store, and when it is back only the
// differences are told, in order, each exactly once, from one goroutine; what a call of Changed is told can be read
// from the store by then; Synced is closed after the first list was told. Objects are shared: nobody modifies them.
// When Run returns, nothing of it goes on.
//
// It refuses to write, to index and to queue. [Connection] says how the agent reaches the API: what a cut link does to
// requests is decided there.
//
// Test it with go test -race in this folder: a server in memory goes away, comes back, forgets and hangs, in fake time.
package watch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// The pause between two attempts. With the jitter, the longest is shorter than a second.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 750 * time.Millisecond
	jitter     = 0.2
	// calm is how long a watch must have lasted for the pauses to begin with the first again.
	calm = 5 * time.Second
)

// listTimeout ends a list that hangs. A watch ends with its connection.
const listTimeout = 30 * time.Second

// Object is a pointer to an API object, such as *corev1.Pod.
type Object interface {
	comparable
	metav1.Object
	runtime.Object
}

// Source lists and watches. Make it with [From].
type Source struct {
	List  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	Watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// From makes a Source of a typed client, such as client.CoreV1().Pods("").
func From[L runtime.Object](client interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}) Source {
	return Source{
		List: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := client.List(ctx, o)
			if err != nil { // not a nil *L in an interface
				return nil, err //nolint:wrapcheck // the reflector looks at it
			}
			return list, nil
		},
		Watch: client.Watch,
	}
}

// Options configure a Store of T.
type Options[T Object] struct {
	Name   string // what is watched, for logs: "pods"
	Source Source
	// Fields and Labels select, as in kubectl --field-selector and --selector. "" = everything.
	Fields, Labels string
	// Changed is told of every change; the zero T stands for "not there". Nil = nobody. It is called from one goroutine
	// and holds up further changes.
	// An object that was replaced by another of the same name, seen late, is a deletion and then an addition.
	Changed func(was, now T)
	// Transform may modify an object before it is stored. managedFields are gone already. Nil = as it is.
	Transform func(T)
	// Thin keeps nothing of an object but its metadata's namespace, name, uid and resourceVersion: that is all that Get and List give and that was
	// says; now is whole. A was that is gone has the version at which it went. For those who keep in their own way what they are told.
	Thin bool
	// Seen is told, after Changed, up to which resourceVersion everything was told. Nil = nobody. Called from the goroutine of Changed.
	Seen func(resourceVersion string)
	// Hold is called before the differences of a list are told, and what it returns after them: between the two, the changes do not make sense
	// one by one. Nil = nobody. Called from the goroutine of Changed.
	Hold func() (release func())
	// ListFirst never asks the server to stream the initial list. For clients in memory, which cannot.
	ListFirst bool
	Logger    *slog.Logger // nil = none
}

// Store is the copy. Make it with [New], fill it with Run.
type Store[T Object] struct {
	o      Options[T]
	log    *slog.Logger
	synced chan struct{}
	idle   chan struct{} // closed when ended is true and calls is 0

	mu      sync.RWMutex // guards the fields below
	objects map[types.NamespacedName]held[T]
	lost    time.Time // when the API went away; zero = it is there
	calls   int       // requests under way: the reflector does not wait for a list that it has given up
	ended   bool      // no more requests
}

// held is an object in the store. With Thin, whole is zero.
type held[T Object] struct {
	whole   T
	uid     types.UID
	version string
}

func (s *Store[T]) hold(obj T) held[T] {
	h := held[T]{whole: obj, uid: obj.GetUID(), version: obj.GetResourceVersion()}
	if s.o.Thin {
		h.whole = *new(T)
	}
	return h
}

// object is what the store gives for what it holds.
func (s *Store[T]) object(name types.NamespacedName, h held[T]) T {
	if !s.o.Thin {
		return h.whole
	}
	obj := newOf[T]()
	obj.SetNamespace(name.Namespace)
	obj.SetName(name.Name)
	obj.SetUID(h.uid)
	obj.SetResourceVersion(h.version)
	return obj
}

// New makes an empty Store.
func New[T Object](o Options[T]) *Store[T] {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Store[T]{o: o, log: log.With("watch", o.Name), synced: make(chan struct{}), idle: make(chan struct{}), objects: map[types.NamespacedName]held[T]{}}
}

// Get returns an object by namespace ("" where the kind has none) and name.
func (s *Store[T]) Get(namespace, name string) (T, bool) {
	key := types.NamespacedName{Namespace: namespace, Name: name}
	s.mu.RLock()
	h, ok := s.objects[key]
	s.mu.RUnlock()
	if !ok {
		return *new(T), false
	}
	return s.object(key, h), true
}

// List returns all objects by namespace and name.
func (s *Store[T]) List() []T {
	s.mu.RLock()
	all := make([]T, 0, len(s.objects))
	for name, h := range s.objects {
		all = append(all, s.object(name, h))
	}
	s.mu.RUnlock()
	slices.SortFunc(all, func(a, b T) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return all
}

// Synced is closed when the first list is in the store and Changed was told.
func (s *Store[T]) Synced() <-chan struct{} { return s.synced }

// HasSynced says whether Synced is closed.
func (s *Store[T]) HasSynced() bool {
	select {
	case <-s.synced:
		return true
	default:
		return false
	}
}

// Lost says since when the API does not answer; zero = it does.
func (s *Store[T]) Lost() time.Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.lost
}

// Run keeps the copy until ctx ends, and returns nil when all of its goroutines have. Call it once.
func (s *Store[T]) Run(ctx context.Context) error {
	// What upstream logs is of no use to an operator: it repeats itself, and says nothing when the API is back.
	quiet := logr.Discard()
	r := cache.NewReflectorWithOptions(&source[T]{s}, newOf[T](), &sink[T]{s}, cache.ReflectorOptions{
		Name:   s.o.Name,
		Logger: &quiet,
		Backoff: &wait.Backoff{
			Duration: firstPause, Cap: lastPause, Factor: 2, Jitter: jitter,
			Steps: 10, // more than it takes to reach the cap
		},
	})
	ctx = logr.NewContext(ctx, quiet)
	for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, lastPause) {
		start := time.Now()
		_ = r.ListAndWatchWithContext(ctx) // logged where requests are made, below
		if time.Since(start) > calm {
			pause = firstPause
		}
		select {
		case <-time.After(wait.Jitter(pause, jitter)):
		case <-ctx.Done():
		}
	}
	s.end()
	return nil
}

// begin counts a request; it refuses one when Run ends.
func (s *Store[T]) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.calls++
	return true
}

// finish is for each begin.
func (s *Store[T]) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls--; s.ended && s.calls == 0 {
		close(s.idle)
	}
}

// end waits for the requests under way.
func (s *Store[T]) end() {
	s.mu.Lock()
	s.ended = true
	calls := s.calls
	s.mu.Unlock()
	if calls > 0 {
		<-s.idle
	}
}

// newOf makes an empty object for a pointer type.
func newOf[T Object]() T { return reflect.New(reflect.TypeFor[T]().Elem()).Interface().(T) }

// source is the store as a cache.ListerWatcher: it adds selectors and time limits, and notes how requests end.
type source[T Object] struct{ s *Store[T] }

func (c *source[T]) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	if !c.s.begin() {
		return nil, context.Canceled
	}
	defer c.s.finish()
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	c.s.selectors(&o)
	list, err := c.s.o.Source.List(ctx, o)
	c.s.note(ctx, err)
	return list, err
}

func (c *source[T]) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	if !c.s.begin() {
		return nil, context.Canceled
	}
	defer c.s.finish()
	c.s.selectors(&o)
	w, err := c.s.o.Source.Watch(ctx, o)
	if err != nil && o.SendInitialEvents != nil {
		// The reflector answers a refused connection here with a pause that does not end with ctx, and any other error
		// with a list. The list will fail too, and its pause ends. An expired version it must see.
		if apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return nil, err //nolint:wrapcheck // the reflector looks at it
		}
		return nil, errors.New(err.Error())
	}
	c.s.note(ctx, err)
	return w, err
}

// List and Watch make it a cache.ListerWatcher; the reflector uses those with a context.
func (c *source[T]) List(o metav1.ListOptions) (runtime.Object, error) {
	return c.ListWithContext(context.Background(), o)
}

// Watch is like List.
func (c *source[T]) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return c.WatchWithContext(context.Background(), o)
}

// IsWatchListSemanticsUnSupported is how the reflector asks for ListFirst.
func (c *source[T]) IsWatchListSemanticsUnSupported() bool { return c.s.o.ListFirst }

func (s *Store[T]) selectors(o *metav1.ListOptions) {
	o.FieldSelector, o.LabelSelector = s.o.Fields, s.o.Labels
}

// note logs when the API is lost and when it is back, once each.
func (s *Store[T]) note(ctx context.Context, err error) {
	if errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	away := err != nil && !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err)
	s.mu.Lock()
	since := s.lost
	switch {
	case away && since.IsZero():
		s.lost = time.Now()
	case !away:
		s.lost = time.Time{}
	}
	s.mu.Unlock()
	switch {
	case away && since.IsZero():
		s.log.Warn("cannot watch, so what was seen last stands until it works again", "error", err)
	case !away && !since.IsZero():
		s.log.Info("watching again", "after", time.Since(since).Round(time.Millisecond))
	}
}

// sink is the store as the reflector writes it. Only the reflector's goroutine uses it.
type sink[T Object] struct{ s *Store[T] }

func (k *sink[T]) Add(obj any) error    { return k.put(obj) }
func (k *sink[T]) Update(obj any) error { return k.put(obj) }
func (k *sink[T]) Resync() error        { return nil }

// UpdateResourceVersion makes it a cache.ResourceVersionUpdater: it is called after each event, and for bookmarks.
func (k *sink[T]) UpdateResourceVersion(version string) {
	if k.s.o.Seen != nil {
		k.s.o.Seen(version)
	}
}

func (k *sink[T]) Delete(obj any) error {
	gone, ok := obj.(T)
	if !ok {
		return fmt.Errorf("watch %s: a deleted %T is none of its objects", k.s.o.Name, obj)
	}
	k.s.remove(nameOf(gone), gone.GetResourceVersion())
	return nil
}

func (k *sink[T]) put(obj any) error {
	now, ok := obj.(T)
	if !ok {
		return fmt.Errorf("watch %s: %T is none of its objects", k.s.o.Name, obj)
	}
	k.s.put(now)
	return nil
}

// Replace takes a list as the whole truth and tells the differences: first what is gone, so that names and addresses are
// free again, then the rest in the list's order.
func (k *sink[T]) Replace(list []any, version string) error {
	listed := make(map[types.NamespacedName]bool, len(list))
	for _, obj := range list {
		now, ok := obj.(T)
		if !ok {
			return fmt.Errorf("watch %s: %T in the list is none of its objects", k.s.o.Name, obj)
		}
		listed[nameOf(now)] = true
	}
	if k.s.o.Hold != nil {
		defer k.s.o.Hold()()
	}
	for _, name := range k.s.names() {
		if !listed[name] {
			k.s.remove(name, version)
		}
	}
	for _, obj := range list {
		if now := obj.(T); !k.s.has(now) {
			k.s.put(now)
		}
	}
	k.UpdateResourceVersion(version)
	if !k.s.HasSynced() {
		close(k.s.synced)
	}
	return nil
}

// names are those of all objects, in order.
func (s *Store[T]) names() []types.NamespacedName {
	s.mu.RLock()
	names := slices.Collect(maps.Keys(s.objects))
	s.mu.RUnlock()
	slices.SortFunc(names, func(a, b types.NamespacedName) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return names
}

// has says whether the store holds this very version.
func (s *Store[T]) has(obj T) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	h, ok := s.objects[nameOf(obj)]
	return ok && h.uid == obj.GetUID() && h.version == obj.GetResourceVersion()
}

// put stores an object under its name, and tells what changed.
func (s *Store[T]) put(now T) {
	now.SetManagedFields(nil)
	if s.o.Transform != nil {
		s.o.Transform(now)
	}
	name, next := nameOf(now), s.hold(now)
	s.mu.RLock()
	was, ok := s.objects[name]
	s.mu.RUnlock()
	if ok && was.uid != next.uid { // another of the same name
		s.remove(name, next.version)
		ok = false
	}
	s.mu.Lock()
	s.objects[name] = next
	s.mu.Unlock()
	if s.o.Changed == nil {
		return
	}
	var before T
	if ok {
		before = s.object(name, was)
	}
	s.o.Changed(before, now)
}

// remove forgets an object that went at a version, and tells of it if there was one.
func (s *Store[T]) remove(name types.NamespacedName, version string) {
	s.mu.Lock()
	was, ok := s.objects[name]
	delete(s.objects, name)
	s.mu.Unlock()
	if !ok || s.o.Changed == nil {
		return
	}
	if s.o.Thin {
		was.version = version
	}
	s.o.Changed(s.object(name, was), *new(T))
}

func nameOf[T Object](obj T) types.NamespacedName {
	return types.NamespacedName{Namespace: obj.GetNamespace(), Name: obj.GetName()}
}
