package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// fleetView is what a consumer of the API sees of pods, their endpoints and nodes.
type fleetView struct {
	stop    context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex                 // guards what follows
	slices map[string][]shownEndpoint // slice → its ready endpoints
	ready  map[string]string          // pod → address of its ready endpoint
	pods   map[string]seenPod         // pod → how its object is
	nodes  map[string]bool            // node → it is Ready
	waits  []*wait
	err    error
}

type shownEndpoint struct{ pod, address string }

type seenPod struct {
	node           string
	ready, leaving bool
	firstSeen      time.Time
	readySince     time.Time // when it was first seen ready
}

// A wait is for the first event after which something is true.
type wait struct {
	what string
	true func() bool    // called with the view's lock
	at   chan time.Time // one value; closed when there will be none
}

func viewFleet(ctx context.Context, client kubernetes.Interface) (*fleetView, error) {
	ctx, cancel := context.WithCancel(ctx)
	v := &fleetView{stop: cancel, slices: map[string][]shownEndpoint{}, ready: map[string]string{}, pods: map[string]seenPod{}, nodes: map[string]bool{}}
	timeout := watchTime
	o := metav1.ListOptions{TimeoutSeconds: &timeout} // without a version a watch begins with all that is there
	for _, open := range []func() (watch.Interface, error){
		func() (watch.Interface, error) { return client.DiscoveryV1().EndpointSlices(namespace).Watch(ctx, o) },
		func() (watch.Interface, error) { return client.CoreV1().Pods(namespace).Watch(ctx, o) },
		func() (watch.Interface, error) { return client.CoreV1().Nodes().Watch(ctx, o) },
	} {
		w, err := open()
		if err != nil {
			v.close()
			return nil, err
		}
		v.running.Go(func() {
			defer w.Stop()
			for event := range w.ResultChan() {
				v.take(time.Now(), event)
			}
			if ctx.Err() == nil {
				v.fail(errors.New("a watch ended"))
			}
		})
	}
	return v, nil
}

func (v *fleetView) close() {
	v.stop()
	v.running.Wait()
}

func (v *fleetView) fail(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.failLocked(err)
}

func (v *fleetView) failLocked(err error) {
	v.err = errors.Join(v.err, err)
	for _, w := range v.waits {
		close(w.at)
	}
	v.waits = nil
}

func (v *fleetView) take(at time.Time, event watch.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	deleted := event.Type == watch.Deleted
	switch o := event.Object.(type) {
	case *discovery.EndpointSlice:
		v.putSlice(o, deleted)
	case *corev1.Pod:
		v.putPod(at, o, deleted)
	case *corev1.Node:
		v.nodes[o.Name] = !deleted && hasCondition(o.Status.Conditions)
	default:
		v.failLocked(apierrors.FromObject(event.Object))
		return
	}
	kept := v.waits[:0]
	for _, w := range v.waits {
		if !w.true() {
			kept = append(kept, w)
			continue
		}
		w.at <- at
	}
	v.waits = kept
}

func hasCondition(conditions []corev1.NodeCondition) bool {
	for _, c := range conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (v *fleetView) putSlice(slice *discovery.EndpointSlice, deleted bool) {
	for _, e := range v.slices[slice.Name] {
		if v.ready[e.pod] == e.address {
			delete(v.ready, e.pod)
		}
	}
	delete(v.slices, slice.Name)
	if deleted {
		return
	}
	var shown []shownEndpoint
	for i := range slice.Endpoints {
		if pod, ready := endpointOf(&slice.Endpoints[i]); ready && pod != "" && len(slice.Endpoints[i].Addresses) > 0 {
			shown = append(shown, shownEndpoint{pod, slice.Endpoints[i].Addresses[0]})
			v.ready[pod] = slice.Endpoints[i].Addresses[0]
		}
	}
	v.slices[slice.Name] = shown
}

func (v *fleetView) putPod(at time.Time, pod *corev1.Pod, deleted bool) {
	if deleted {
		delete(v.pods, pod.Name)
		return
	}
	p, known := v.pods[pod.Name]
	if !known {
		p.firstSeen = at
	}
	p.node, p.leaving, p.ready = pod.Spec.NodeName, pod.DeletionTimestamp != nil, false
	for _, c := range pod.Status.Conditions {
		p.ready = p.ready || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	}
	if p.ready && p.readySince.IsZero() {
		p.readySince = at
	}
	v.pods[pod.Name] = p
}

// when begins to wait for something. What is true already is told with the next event.
func (v *fleetView) when(what string, is func() bool) *wait {
	w := &wait{what: what, true: is, at: make(chan time.Time, 1)}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil {
		close(w.at)
		return w
	}
	v.waits = append(v.waits, w)
	return w
}

// seen returns when the event came that made it true.
func (v *fleetView) seen(ctx context.Context, w *wait, longest time.Duration) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	select {
	case at, ok := <-w.at:
		if !ok {
			v.mu.Lock()
			defer v.mu.Unlock()
			return at, fmt.Errorf("wait for %s: %w", w.what, v.err)
		}
		return at, nil
	case <-ctx.Done():
		v.mu.Lock()
		defer v.mu.Unlock()
		return time.Time{}, fmt.Errorf("%s: not seen within %v (%d pods, %d ready endpoints): %w", w.what, longest, len(v.pods), len(v.ready), ctx.Err())
	}
}

// until waits for something that may be true already.
func (v *fleetView) until(ctx context.Context, what string, longest time.Duration, is func() bool) error {
	w := v.when(what, is)
	v.mu.Lock()
	already := is()
	v.mu.Unlock()
	if already {
		return nil // the next event takes the wait away
	}
	_, err := v.seen(ctx, w, longest)
	return err
}
