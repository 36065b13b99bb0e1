package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
)

const (
	namespace      = "bench"
	podsPerService = 10
	nodes          = 10
	writers        = 16 // concurrent requests of a load; on two cores more are not faster
	serviceLabel   = "service"
	fleetLabel     = "fleet" // every pod has it: what the one big Service selects
	bigService     = "all"
)

// A load is what is on the API: Services 0 … services-1 with ten ready pods each, or one Service of all pods.
type load struct {
	services int
	big      bool
	pods     []pod
	made     int // pods ever made: the next one's name and address
}

type pod struct{ name, service string }

// serviceOf is the Service whose endpoints show the pod.
func (l *load) serviceOf(p pod) string {
	if l.big {
		return bigService
	}
	return p.service
}

// scale says which targets are about such a load.
func (l *load) scale() scale {
	switch {
	case !l.big:
		return manyServices
	case len(l.pods) < 10_000:
		return oneService
	}
	return fullService
}

// each calls do for 0 … n-1 with at most writers at once, and stops at the first error.
func each(ctx context.Context, n int, do func(context.Context, int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var working sync.WaitGroup
	for range min(n, writers) {
		working.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	working.Wait()
	return context.Cause(ctx)
}

// prepare makes the namespace and the nodes.
func prepare(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	for i := range nodes {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i), Labels: map[string]string{
			corev1.LabelHostname: nodeName(i), corev1.LabelTopologyZone: "zone-" + strconv.Itoa(i%3),
		}}}
		if _, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

func nodeName(i int) string { return "node-" + strconv.Itoa(i%nodes) }

// grow brings the load to so many Services of ten pods each.
func (l *load) grow(ctx context.Context, client kubernetes.Interface, services int) error {
	if l.big || services < l.services {
		return fmt.Errorf("a load of %d Services cannot become one of %d", l.services, services)
	}
	name := func(i int) string { return "s" + strconv.Itoa(i) }
	first := l.services
	err := each(ctx, services-first, func(ctx context.Context, i int) error {
		return createService(ctx, client, name(first+i), map[string]string{serviceLabel: name(first + i)})
	})
	if err != nil {
		return err
	}
	number := l.made
	made := make([]pod, (services-first)*podsPerService)
	err = each(ctx, len(made), func(ctx context.Context, i int) error {
		made[i] = pod{name: "p" + strconv.Itoa(number+i), service: name(first + i/podsPerService)}
		return createPod(ctx, client, made[i], number+i)
	})
	l.pods, l.made, l.services = append(l.pods, made...), number+len(made), services
	return err
}

// merge replaces the Services by one that selects all pods. No controller may run.
func (l *load) merge(ctx context.Context, client kubernetes.Interface) error {
	err := each(ctx, l.services, func(ctx context.Context, i int) error {
		return client.CoreV1().Services(namespace).Delete(ctx, "s"+strconv.Itoa(i), metav1.DeleteOptions{})
	})
	if err != nil {
		return err
	}
	l.big = true
	return createService(ctx, client, bigService, map[string]string{fleetLabel: "yes"})
}

// clear deletes all slices and Endpoints, so that a contender makes its own. No controller may run.
func (l *load) clear(ctx context.Context, client kubernetes.Interface) error {
	if err := client.DiscoveryV1().EndpointSlices(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return err
	}
	return client.CoreV1().Endpoints(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
}

// replace makes a new ready pod for each one and then deletes the old, as fast as the API takes it.
func (l *load) replace(ctx context.Context, client kubernetes.Interface) error {
	number := l.made
	l.made += len(l.pods)
	now := int64(0)
	return each(ctx, len(l.pods), func(ctx context.Context, i int) error {
		old := l.pods[i]
		l.pods[i] = pod{name: "p" + strconv.Itoa(number+i), service: old.service}
		if err := createPod(ctx, client, l.pods[i], number+i); err != nil {
			return err
		}
		return client.CoreV1().Pods(namespace).Delete(ctx, old.name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	})
}

func createService(ctx context.Context, client kubernetes.Interface, name string, selector map[string]string) error {
	_, err := client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{Selector: selector, Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP},
		}},
	}, metav1.CreateOptions{})
	return err
}

// createPod makes a pod and says of it what its node's agent would: it runs, has an address and is ready.
func createPod(ctx context.Context, client kubernetes.Interface, p pod, number int) error {
	pods := client.CoreV1().Pods(namespace)
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.name, Labels: map[string]string{serviceLabel: p.service, fleetLabel: "yes"}},
		Spec: corev1.PodSpec{NodeName: nodeName(number), Containers: []corev1.Container{
			{Name: "web", Image: "example.test/web", Ports: []corev1.ContainerPort{{ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}},
		}},
	}
	created, err := pods.Create(ctx, object, metav1.CreateOptions{})
	for apierrors.IsForbidden(err) && ctx.Err() == nil { // the namespace's ServiceAccount is about to be made
		created, err = pods.Create(ctx, object, metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	address := podAddress(number)
	now := metav1.NewTime(time.Now())
	created.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}}, StartTime: &now,
		Conditions: []corev1.PodCondition{
			{Type: corev1.PodInitialized, Status: corev1.ConditionTrue, LastTransitionTime: now},
			{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now},
			{Type: corev1.ContainersReady, Status: corev1.ConditionTrue, LastTransitionTime: now},
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: now},
		},
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "web", Ready: true, Image: "example.test/web",
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		}},
	}
	_, err = pods.UpdateStatus(ctx, created, metav1.UpdateOptions{})
	return err
}

// podAddress is the number-th address from 10.128.0.1 on.
func podAddress(number int) string {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 10<<24|128<<16+uint32(number)+1)
	return netip.AddrFrom4(b).String()
}
