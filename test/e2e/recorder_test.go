package e2e

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/endpointd/endpointd/internal/testkit"
)

// recorder follows the slices of one Service through a watch, as a proxy does, and keeps what it would have led to after
// every single event.
type recorder struct {
	t    *testing.T
	mu   sync.Mutex // guards what follows
	now  map[string]discovery.EndpointSlice
	seen []string // what [ready] says of now, after each event
	err  error
}

// record begins with what is there.
func (s *space) record(service string) *recorder {
	s.Helper()
	selector := metav1.ListOptions{LabelSelector: discovery.LabelServiceName + "=" + service}
	api := s.client.DiscoveryV1().EndpointSlices(s.name)
	list, err := api.List(s.Context(), selector)
	check(s.T, err)
	r := &recorder{t: s.T, now: map[string]discovery.EndpointSlice{}}
	for _, slice := range list.Items {
		r.now[slice.Name] = slice
	}
	r.seen = []string{ready(list.Items...)}
	selector.ResourceVersion = list.ResourceVersion
	w, err := api.Watch(s.Context(), selector)
	check(s.T, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event := range w.ResultChan() {
			r.take(event)
		}
	}()
	s.Cleanup(func() { w.Stop(); <-done })
	return r
}

func (r *recorder) take(event watch.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slice, ok := event.Object.(*discovery.EndpointSlice)
	if !ok {
		r.err = fmt.Errorf("watch of slices: %v %v", event.Type, event.Object)
		return
	}
	if event.Type == watch.Deleted {
		delete(r.now, slice.Name)
	} else {
		r.now[slice.Name] = *slice
	}
	r.seen = append(r.seen, ready(slices.Collect(maps.Values(r.now))...))
}

// until waits until slices of that manager alone lead to want, and returns what was led to on the way.
func (r *recorder) until(manager, want string) []string {
	r.t.Helper()
	var seen []string
	testkit.Await(r.t, patience, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		list := slices.Collect(maps.Values(r.now))
		if got, by := ready(list...), managers(list); r.err == nil && (got != want || by != manager) {
			return fmt.Errorf("slices lead to %q (by %s), want %q (by %s); so far: %q", got, by, want, manager, r.seen)
		}
		seen = slices.Clone(r.seen)
		return nil
	})
	if r.err != nil {
		r.t.Fatal(r.err)
	}
	return seen
}

// neverEmpty is until, and fails if there was a moment without any endpoint.
func (r *recorder) neverEmpty(manager, want string) {
	r.t.Helper()
	if seen := r.until(manager, want); slices.Contains(seen, "") {
		r.t.Errorf("there was a moment without endpoints: %q", seen)
	}
}
