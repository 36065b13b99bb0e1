package controllertest

import (
	"fmt"
	"slices"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"
)

// selection is what a list or a watch asks for.
type selection struct {
	namespace string // "" for all
	labels    labels.Selector
	fields    fields.Selector
}

func selectionOf(ns string, opts metav1.ListOptions) (selection, error) {
	sel := selection{namespace: ns}
	var err error
	if sel.labels, err = labels.Parse(opts.LabelSelector); err != nil {
		return sel, apierrors.NewBadRequest(err.Error())
	}
	if sel.fields, err = fields.ParseSelector(opts.FieldSelector); err != nil {
		return sel, apierrors.NewBadRequest(err.Error())
	}
	known := fieldsOf(&corev1.Pod{})
	for _, r := range sel.fields.Requirements() {
		if !known.Has(r.Field) {
			return sel, apierrors.NewBadRequest("controllertest knows no field selector " + r.Field)
		}
	}
	return sel, nil
}

func fieldsOf(obj object) fields.Set {
	f := fields.Set{"metadata.name": obj.GetName(), "metadata.namespace": obj.GetNamespace()}
	if pod, ok := obj.(*corev1.Pod); ok {
		f["spec.nodeName"], f["status.phase"] = pod.Spec.NodeName, string(pod.Status.Phase)
	}
	return f
}

func (s selection) matches(obj object) bool {
	return obj != nil && (s.namespace == "" || s.namespace == obj.GetNamespace()) &&
		s.labels.Matches(labels.Set(obj.GetLabels())) && s.fields.Matches(fieldsOf(obj))
}

// event gives the change as this selection sees it: an object that starts to
// match was added, one that stops to match was deleted.
func (s selection) event(c change) (watch.Event, bool) {
	before, now := s.matches(c.before), s.matches(c.object) && c.event != watch.Deleted
	kind := watch.Modified
	switch {
	case !before && !now:
		return watch.Event{}, false
	case !before:
		kind = watch.Added
	case !now:
		kind = watch.Deleted
	}
	return watch.Event{Type: kind, Object: copyOf(c.object)}, true
}

func (a *API) reactWatch(action clienttesting.Action) (bool, watch.Interface, error) {
	var opts metav1.ListOptions
	if w, ok := action.(clienttesting.WatchActionImpl); ok {
		opts = w.ListOptions
	}
	w, err := a.watch(action.GetResource(), action.GetNamespace(), opts)
	if err != nil {
		return true, nil, err
	}
	return true, w, nil
}

// watch begins after the resourceVersion of opts, or with what there is now.
func (a *API) watch(gvr schema.GroupVersionResource, ns string, opts metav1.ListOptions) (watch.Interface, error) {
	sel, err := selectionOf(ns, opts)
	if err != nil {
		return nil, err
	}
	w := &watcher{api: a, gvr: gvr, sel: sel, result: make(chan watch.Event), stopped: make(chan struct{})}
	a.mu.Lock()
	defer a.mu.Unlock()
	w.expired = a.expired
	w.next = a.revision + 1
	var first []watch.Event
	switch opts.ResourceVersion {
	case "", "0":
		for _, obj := range a.list(gvr, sel) {
			first = append(first, watch.Event{Type: watch.Added, Object: copyOf(obj)})
		}
	default:
		after, err := strconv.ParseUint(opts.ResourceVersion, 10, 64)
		if err != nil {
			return nil, apierrors.NewBadRequest("resourceVersion: " + err.Error())
		}
		if after < a.compacted {
			return nil, apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", after, a.compacted))
		}
		w.next = after + 1
	}
	go w.run(first)
	return w, nil
}

// watcher is one watch. Its goroutine ends with Stop, or when the API is
// compacted.
type watcher struct {
	api     *API
	gvr     schema.GroupVersionResource
	sel     selection
	next    uint64 // the first revision not yet delivered
	result  chan watch.Event
	expired chan struct{}
	stopped chan struct{}
	once    sync.Once
}

func (w *watcher) ResultChan() <-chan watch.Event { return w.result }

func (w *watcher) Stop() { w.once.Do(func() { close(w.stopped) }) }

func (w *watcher) run(pending []watch.Event) {
	defer close(w.result)
	for {
		for _, event := range pending {
			select {
			case w.result <- event:
			case <-w.expired:
				return
			case <-w.stopped:
				return
			}
		}
		news, more, ok := w.news()
		if !ok {
			return
		}
		if pending = news; len(pending) > 0 {
			continue
		}
		select {
		case <-more:
		case <-w.expired:
			return
		case <-w.stopped:
			return
		}
	}
}

// news gives the events not yet delivered, and a channel that is closed with
// the next write. It is not ok where some of the events are forgotten.
func (w *watcher) news() (events []watch.Event, more chan struct{}, ok bool) {
	w.api.mu.Lock()
	defer w.api.mu.Unlock()
	if w.next <= w.api.compacted {
		return nil, nil, false
	}
	history := w.api.history[w.gvr]
	i, _ := slices.BinarySearchFunc(history, w.next, func(c change, revision uint64) int {
		return int(int64(c.revision) - int64(revision))
	})
	for _, c := range history[i:] {
		if event, ok := w.sel.event(c); ok {
			events = append(events, event)
		}
	}
	w.next = w.api.revision + 1
	return events, w.api.changed, true
}
