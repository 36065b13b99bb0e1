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

// watchTime is longer than any run: the server must not end our watch.
const watchTime = int64(4 * 3600)

// observer is a consumer of EndpointSlices and Endpoints. It counts the writes, and says when something is first seen.
type observer struct {
	stop    context.CancelFunc
	running sync.WaitGroup

	mu        sync.Mutex                          // guards what follows
	slices    map[string]*discovery.EndpointSlice // by name
	ready     map[string]int                      // pod → ready endpoints that lead to it, never 0
	endpoints map[string]*corev1.Endpoints        // by name
	counts    counts
	want      *expectation
	changed   chan struct{} // closed with every event, and replaced
	err       error
}

// counts are of writes, as a watch shows them, and of the protobuf sizes of what was written.
type counts struct {
	slices, endpoints          int
	sliceBytes, endpointsBytes int
}

func (c counts) minus(before counts) counts {
	return counts{
		slices: c.slices - before.slices, endpoints: c.endpoints - before.endpoints,
		sliceBytes: c.sliceBytes - before.sliceBytes, endpointsBytes: c.endpointsBytes - before.endpointsBytes,
	}
}

// expectation is that a pod is shown as ready, or not.
type expectation struct {
	pod, service     string
	ready            bool
	slice, endpoints chan time.Time // one value each: when it was seen
}

// observe lists and then watches until stop.
func observe(ctx context.Context, client kubernetes.Interface) (*observer, error) {
	ctx, cancel := context.WithCancel(ctx)
	o := &observer{
		stop: cancel, slices: map[string]*discovery.EndpointSlice{}, ready: map[string]int{},
		endpoints: map[string]*corev1.Endpoints{}, changed: make(chan struct{}),
	}
	slices := client.DiscoveryV1().EndpointSlices(namespace)
	objects := client.CoreV1().Endpoints(namespace)
	sliceList, err := slices.List(ctx, metav1.ListOptions{})
	if err != nil {
		cancel()
		return nil, err
	}
	objectList, err := objects.List(ctx, metav1.ListOptions{})
	if err != nil {
		cancel()
		return nil, err
	}
	for i := range sliceList.Items {
		o.putSlice(sliceList.Items[i].Name, &sliceList.Items[i])
	}
	for i := range objectList.Items {
		o.endpoints[objectList.Items[i].Name] = &objectList.Items[i]
	}
	timeout := watchTime
	sliceWatch, err := slices.Watch(ctx, metav1.ListOptions{ResourceVersion: sliceList.ResourceVersion, TimeoutSeconds: &timeout})
	if err != nil {
		cancel()
		return nil, err
	}
	objectWatch, err := objects.Watch(ctx, metav1.ListOptions{ResourceVersion: objectList.ResourceVersion, TimeoutSeconds: &timeout})
	if err != nil {
		cancel()
		sliceWatch.Stop()
		return nil, err
	}
	for _, w := range []watch.Interface{sliceWatch, objectWatch} {
		o.running.Go(func() {
			defer w.Stop()
			o.read(ctx, w)
		})
	}
	return o, nil
}

func (o *observer) close() {
	o.stop()
	o.running.Wait()
}

func (o *observer) read(ctx context.Context, w watch.Interface) {
	for event := range w.ResultChan() {
		o.take(time.Now(), event)
	}
	if ctx.Err() == nil {
		o.fail(errors.New("a watch ended"))
	}
}

func (o *observer) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = errors.Join(o.err, err)
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *observer) take(at time.Time, event watch.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch object := event.Object.(type) {
	case *discovery.EndpointSlice:
		o.counts.slices++
		if event.Type == watch.Deleted {
			object = &discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: object.Name}}
		} else {
			o.counts.sliceBytes += object.Size()
		}
		o.putSlice(object.Name, object)
		if w := o.want; w != nil && w.inSlice(object) {
			tell(w.slice, at)
		}
	case *corev1.Endpoints:
		o.counts.endpoints++
		if event.Type == watch.Deleted {
			delete(o.endpoints, object.Name)
			break
		}
		o.counts.endpointsBytes += object.Size()
		o.endpoints[object.Name] = object
		if w := o.want; w != nil && object.Name == w.service && inEndpoints(object, w.pod) == w.ready {
			tell(w.endpoints, at)
		}
	default:
		o.err = errors.Join(o.err, apierrors.FromObject(event.Object))
	}
	close(o.changed)
	o.changed = make(chan struct{})
}

// putSlice replaces what is known of one slice. The caller holds o.mu, or is alone.
func (o *observer) putSlice(name string, now *discovery.EndpointSlice) {
	if before := o.slices[name]; before != nil {
		for i := range before.Endpoints {
			if pod, ready := endpointOf(&before.Endpoints[i]); ready {
				if o.ready[pod]--; o.ready[pod] == 0 {
					delete(o.ready, pod)
				}
			}
		}
	}
	for i := range now.Endpoints {
		if pod, ready := endpointOf(&now.Endpoints[i]); ready {
			o.ready[pod]++
		}
	}
	o.slices[name] = now
}

func tell(to chan time.Time, at time.Time) {
	select {
	case to <- at:
	default: // seen before
	}
}

func endpointOf(e *discovery.Endpoint) (pod string, ready bool) {
	if e.TargetRef != nil {
		pod = e.TargetRef.Name
	}
	return pod, e.Conditions.Ready == nil || *e.Conditions.Ready
}

func (e *expectation) inSlice(slice *discovery.EndpointSlice) bool {
	for i := range slice.Endpoints {
		if pod, ready := endpointOf(&slice.Endpoints[i]); pod == e.pod && ready == e.ready {
			return true
		}
	}
	return false
}

// inEndpoints says whether the object has the pod among its ready addresses.
func inEndpoints(object *corev1.Endpoints, pod string) bool {
	if object == nil {
		return false
	}
	for _, subset := range object.Subsets {
		for i := range subset.Addresses {
			if ref := subset.Addresses[i].TargetRef; ref != nil && ref.Name == pod {
				return true
			}
		}
	}
	return false
}

// expect is for one flip: the next state of a pod. endpoints says whether the Endpoints have the pod now.
func (o *observer) expect(pod, service string, ready bool) (e *expectation, endpoints bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.want = &expectation{pod: pod, service: service, ready: ready, slice: make(chan time.Time, 1), endpoints: make(chan time.Time, 1)}
	return o.want, inEndpoints(o.endpoints[service], pod)
}

func (o *observer) written() counts {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.counts
}

// await waits until done, which is called after events with o.mu held, says so.
func (o *observer) await(ctx context.Context, what string, longest time.Duration, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	for {
		o.mu.Lock()
		ok, err, changed := done(), o.err, o.changed
		o.mu.Unlock()
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s: not seen within %v: %w", what, longest, ctx.Err())
		}
	}
}

// settled says whether the slices lead to exactly these pods, all of them ready. The caller holds o.mu.
func (o *observer) settled(pods []pod) bool {
	if len(o.ready) != len(pods) {
		return false
	}
	for _, p := range pods {
		if o.ready[p.name] != 1 {
			return false
		}
	}
	return true
}

// maxAddresses is how many addresses an Endpoints object holds.
const maxAddresses = 1000

// settledEndpoints says the same of the Endpoints objects, which hold no more than a thousand addresses of a Service.
func (o *observer) settledEndpoints(l *load) bool {
	want := map[string]int{}
	for _, p := range l.pods {
		want[l.serviceOf(p)]++
	}
	for service, n := range want {
		object := o.endpoints[service]
		if object == nil {
			return false
		}
		have := 0
		for _, subset := range object.Subsets {
			for i := range subset.Addresses {
				ref := subset.Addresses[i].TargetRef
				if ref == nil || o.ready[ref.Name] != 1 {
					return false
				}
			}
			have += len(subset.Addresses)
		}
		if have != min(n, maxAddresses) {
			return false
		}
	}
	return true
}
