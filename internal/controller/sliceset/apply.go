package sliceset

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	discoveryclient "k8s.io/client-go/kubernetes/typed/discovery/v1"
)

// inFlight bounds the requests that one Apply has under way: enough to hide the
// latency of a write to etcd behind others, few enough not to starve other
// Services.
const inFlight = 8

// Apply sends planned writes and reports each result to the Set. Writes of one
// verb go in parallel, the verbs one after the other. It returns the joined
// errors of the writes that failed and that are worth another try: a slice that
// cannot be created because its namespace is going away is not.
func Apply(ctx context.Context, client discoveryclient.EndpointSlicesGetter, s *Set, writes []Write) error {
	var errs []error
	for len(writes) > 0 {
		n := 1
		for n < len(writes) && writes[n].Op == writes[0].Op {
			n++
		}
		errs = append(errs, applyAll(ctx, client, s, writes[:n]))
		writes = writes[n:]
	}
	return errors.Join(errs...)
}

func applyAll(ctx context.Context, client discoveryclient.EndpointSlicesGetter, s *Set, writes []Write) error {
	got := make([]*discovery.EndpointSlice, len(writes))
	errs := make([]error, len(writes))
	if len(writes) == 1 {
		got[0], errs[0] = send(ctx, client, writes[0])
	} else {
		var wg sync.WaitGroup
		slots := make(chan struct{}, inFlight)
		for i, w := range writes {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				got[i], errs[i] = send(ctx, client, w)
			})
		}
		wg.Wait()
	}
	for i, w := range writes {
		s.Done(w, got[i], errs[i])
		switch {
		case errs[i] == nil:
		case w.Op == Delete && apierrors.IsNotFound(errs[i]): // somebody else was faster
			errs[i] = nil
		case w.Op == Create && apierrors.HasStatusCause(errs[i], corev1.NamespaceTerminatingCause):
			errs[i] = nil
		default:
			name := w.Object.Name
			if name == "" {
				name = w.Object.GenerateName + "…"
			}
			errs[i] = fmt.Errorf("%s EndpointSlice %s/%s: %w", w.Op, w.Object.Namespace, name, errs[i])
		}
	}
	return errors.Join(errs...)
}

func send(ctx context.Context, client discoveryclient.EndpointSlicesGetter, w Write) (*discovery.EndpointSlice, error) {
	c := client.EndpointSlices(w.Object.Namespace)
	switch w.Op {
	case Create:
		return c.Create(ctx, w.Object, metav1.CreateOptions{})
	case Update:
		return c.Update(ctx, w.Object, metav1.UpdateOptions{})
	default:
		uid := w.Object.UID
		return nil, c.Delete(ctx, w.Object.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	}
}
