// Package loop is what every controller of ours has around its reconciler:
// registrations with informers, a queue of keys, and workers.
//
// What flows in: events of informers, to the functions given to [Loop.Listen],
// which find the objects that an event concerns and [Loop.Add] their keys. What
// flows out: calls of the reconciler.
//
// Invariants: no two workers hold the same key; a key added while it is being
// reconciled is reconciled once more afterwards, so what happens meanwhile is
// taken together; there is no other delay, except after an error, which comes
// back later and later. When Run returns, its workers have ended and the
// informers, which may live longer, have forgotten the loop.
//
// It refuses to know what a reconciler does. Tests: in this folder, with fake
// time.
package loop

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// Options configure a Loop; all must be set.
type Options struct {
	Workers               int           // reconciles at the same time
	FirstRetry, LastRetry time.Duration // after an error, doubling from one to the other
	Logger                *slog.Logger
}

// Loop runs one reconciler.
type Loop struct {
	workers  int
	log      *slog.Logger
	queue    workqueue.TypedRateLimitingInterface[types.NamespacedName]
	handlers []handler
}

type handler struct {
	informer cache.SharedIndexInformer
	reg      cache.ResourceEventHandlerRegistration
}

// New makes a loop that does nothing until Run.
func New(o Options) *Loop {
	return &Loop{workers: o.Workers, log: o.Logger, queue: workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](o.FirstRetry, o.LastRetry))}
}

// Listen has changed called with every event of the informer: old is nil for a
// new object, now is nil for a deleted one. changed must not wait for anything
// but short critical sections. Where the informer is running already, it is
// called from this moment on: what it needs must be there before.
func (l *Loop) Listen(informer cache.SharedIndexInformer, changed func(old, now any)) {
	reg, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { changed(nil, obj) },
		UpdateFunc: changed,
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			changed(obj, nil)
		},
	})
	if err != nil { // only on an informer that has been stopped
		panic(fmt.Sprintf("listen on a stopped informer: %v", err))
	}
	l.handlers = append(l.handlers, handler{informer, reg})
}

// Add has the key reconciled, soon.
func (l *Loop) Add(key types.NamespacedName) { l.queue.Add(key) }

// AddAfter has the key reconciled when d has passed.
func (l *Loop) AddAfter(key types.NamespacedName, d time.Duration) { l.queue.AddAfter(key, d) }

// Len is how many keys wait for a worker.
func (l *Loop) Len() int { return l.queue.Len() }

// Run calls reconcile for every key that is added, once the informers are
// synced, until ctx ends. It may be called once, and always returns ctx's error.
func (l *Loop) Run(ctx context.Context, reconcile func(context.Context, types.NamespacedName) error) error {
	defer l.stopListening()
	defer l.queue.ShutDown()
	var synced []cache.DoneChecker
	for _, h := range l.handlers {
		synced = append(synced, h.reg.HasSyncedChecker())
	}
	if !cache.WaitFor(ctx, "", synced...) {
		return ctx.Err()
	}
	var wg sync.WaitGroup
	for range l.workers {
		wg.Go(func() {
			for l.next(ctx, reconcile) {
			}
		})
	}
	<-ctx.Done()
	l.queue.ShutDown()
	wg.Wait()
	return ctx.Err()
}

func (l *Loop) stopListening() {
	for _, h := range l.handlers {
		if err := h.informer.RemoveEventHandler(h.reg); err != nil {
			l.log.Warn("stop listening", "err", err)
		}
	}
}

// next reconciles one key and says whether there may be another.
func (l *Loop) next(ctx context.Context, reconcile func(context.Context, types.NamespacedName) error) bool {
	key, quit := l.queue.Get()
	if quit {
		return false
	}
	defer l.queue.Done(key)
	if ctx.Err() != nil {
		return true // a stopped queue is emptied before it quits
	}
	err := reconcile(ctx, key)
	switch {
	case err == nil:
		l.queue.Forget(key)
	case ctx.Err() != nil:
	default:
		level := slog.LevelWarn
		if apierrors.IsConflict(err) { // somebody else wrote at the same moment; the watch will show what
			level = slog.LevelDebug
		}
		l.log.Log(ctx, level, "reconcile, will try again", "service", key, "err", err)
		l.queue.AddRateLimited(key)
	}
	return true
}
