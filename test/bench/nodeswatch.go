package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// fleetView is what a consumer of the API sees of pods, their endpoints and nodes.
type fleetView struct {
	stop func()

	mu     sync.Mutex                 // guards what follows
	slices map[string][]shownEndpoint // slice → its ready endpoints
	ready  map[string]string          // pod → address of its ready endpoint
	pods   map[string]seenPod         // pod → how its object is
	nodes  map[string]bool            // node → it is Ready
	waits  []*wait
}

type shownEndpoint struct{ pod, address string }

type seenPod struct {
	node           string
	ready, leaving bool
	restarts       int32
	firstSeen      time.Time
	readySince     time.Time // when it was first seen ready
}

// A wait is for the first event after which something is true.
type wait struct {
	what string
	true func() bool    // called with the view's lock
	at   chan time.Time // one value
}

// viewFleet watches by informers: when the server ends a watch that a busy machine was too slow for, they go on with another.
func viewFleet(ctx context.Context, client kubernetes.Interface) (*fleetView, error) {
	ctx, cancel := context.WithCancel(ctx)
	v := &fleetView{slices: map[string][]shownEndpoint{}, ready: map[string]string{}, pods: map[string]seenPod{}, nodes: map[string]bool{}}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace), informers.WithTransform(stripManagedFields))
	v.stop = func() { cancel(); factory.Shutdown() }
	for _, informer := range []cache.SharedIndexInformer{
		factory.Discovery().V1().EndpointSlices().Informer(), factory.Core().V1().Pods().Informer(), factory.Core().V1().Nodes().Informer(),
	} {
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(object any) { v.take(time.Now(), object, false) },
			UpdateFunc: func(_, object any) { v.take(time.Now(), object, false) },
			DeleteFunc: func(object any) {
				if unknown, ok := object.(cache.DeletedFinalStateUnknown); ok {
					object = unknown.Obj
				}
				v.take(time.Now(), object, true)
			},
		})
		if err != nil {
			cancel()
			return nil, err
		}
	}
	factory.Start(ctx.Done())
	for kind, ok := range factory.WaitForCacheSync(ctx.Done()) {
		if !ok {
			v.close()
			return nil, fmt.Errorf("list %v: %w", kind, ctx.Err())
		}
	}
	return v, nil
}

func (v *fleetView) close() { v.stop() }

func (v *fleetView) take(at time.Time, object any, deleted bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch o := object.(type) {
	case *discovery.EndpointSlice:
		v.putSlice(o, deleted)
	case *corev1.Pod:
		v.putPod(at, o, deleted)
	case *corev1.Node:
		v.nodes[o.Name] = !deleted && hasCondition(o.Status.Conditions)
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
	p.restarts = 0
	for i := range pod.Status.ContainerStatuses {
		p.restarts += pod.Status.ContainerStatuses[i].RestartCount
	}
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
	v.waits = append(v.waits, w)
	return w
}

// seen returns when the event came that made it true.
func (v *fleetView) seen(ctx context.Context, w *wait, longest time.Duration) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	select {
	case at := <-w.at:
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
