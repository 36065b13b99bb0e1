package endpoints

import (
	"maps"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Handlers of informer events. Each finds the Services that an event concerns
// and notes it there; none waits for anything but the mutex.

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func (c *Controller) serviceChanged(old, now any) {
	before, _ := old.(*corev1.Service)
	svc, _ := now.(*corev1.Service)
	c.mu.Lock()
	defer c.mu.Unlock()
	if svc == nil {
		key := nameOf(before)
		c.index.setService(key, nil)
		delete(c.auto, key)
		c.note(key, func(in *inbox) { in.all, in.deleted = true, true })
		return
	}
	if before != nil && before.UID == svc.UID && (before.DeletionTimestamp == nil) == (svc.DeletionTimestamp == nil) &&
		reflect.DeepEqual(before.Spec, svc.Spec) && maps.Equal(before.Labels, svc.Labels) && maps.Equal(before.Annotations, svc.Annotations) {
		return // only its status
	}
	key := nameOf(svc)
	selector := svc.Spec.Selector
	if ruleOf(svc) != serve {
		selector = nil
	}
	c.index.setService(key, selector)
	if hintModeOf(svc) == zonesByCPU {
		c.auto[key] = struct{}{}
	} else {
		delete(c.auto, key)
	}
	c.note(key, func(in *inbox) { in.all, in.deleted = true, false })
}

func (c *Controller) podChanged(old, now any) {
	before, _ := old.(*corev1.Pod)
	pod, _ := now.(*corev1.Pod)
	if before != nil && pod != nil && !matters(before, pod) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if pod == nil {
		c.index.deletePod(nameOf(before), func(svc types.NamespacedName) { c.notePod(svc, before.Name) })
		return
	}
	c.index.setPod(nameOf(pod), pod.Labels, pod.Spec.NodeName, func(svc types.NamespacedName) { c.notePod(svc, pod.Name) })
}

func (c *Controller) nodeChanged(old, now any) {
	before, _ := old.(*corev1.Node)
	node, _ := now.(*corev1.Node)
	if before != nil && node != nil &&
		maps.Equal(before.Labels, node.Labels) && nodeReady(before.Status.Conditions) == nodeReady(node.Status.Conditions) &&
		equality.Semantic.DeepEqual(before.Status.Allocatable.Cpu(), node.Status.Allocatable.Cpu()) {
		return // a heartbeat
	}
	var nodes []*corev1.Node
	for _, obj := range c.nodes.List() {
		nodes = append(nodes, obj.(*corev1.Node))
	}
	shares := sharesOf(nodes)

	c.mu.Lock()
	defer c.mu.Unlock()
	if before == nil || node == nil || before.Labels[corev1.LabelTopologyZone] != node.Labels[corev1.LabelTopologyZone] {
		name := ""
		if node != nil {
			name = node.Name
		} else {
			name = before.Name
		}
		c.index.servicesOnNode(name, c.notePod)
	}
	if !shares.equal(c.shares) {
		c.shares = shares
		for svc := range c.auto {
			c.note(svc, func(*inbox) {})
		}
	}
}

func (c *Controller) endpointsChanged(old, now any) {
	ep, _ := now.(*corev1.Endpoints)
	if ep == nil {
		before, _ := old.(*corev1.Endpoints)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.note(nameOf(before), func(in *inbox) { in.object, in.endpoints = true, nil })
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(nameOf(ep), func(in *inbox) { in.object, in.endpoints = true, ep })
}

func (c *Controller) sliceChanged(old, now any) {
	before, _ := old.(*discovery.EndpointSlice)
	slice, _ := now.(*discovery.EndpointSlice)
	c.mu.Lock()
	defer c.mu.Unlock()
	if before != nil && (slice == nil || serviceOf(before) != serviceOf(slice) || manager(before) != manager(slice)) {
		c.noteSlice(before, false)
	}
	if slice != nil {
		// One that waits for its finalizers serves nobody any more.
		c.noteSlice(slice, slice.DeletionTimestamp == nil)
	}
}

// noteSlice tells the Service of a slice that the slice exists, or not (or not
// as one of its kind). The caller holds c.mu.
func (c *Controller) noteSlice(slice *discovery.EndpointSlice, exists bool) {
	svc := serviceOf(slice)
	if svc.Name == "" {
		return
	}
	switch manager(slice) {
	case sliceManager:
		c.note(svc, func(in *inbox) {
			if in.slices == nil {
				in.slices = map[string]*discovery.EndpointSlice{}
			}
			in.slices[slice.Name] = nil
			if exists {
				in.slices[slice.Name] = slice
			}
		})
	case mirrorManager:
		c.note(svc, func(in *inbox) {
			if in.mirrored == nil {
				in.mirrored = map[string]bool{}
			}
			in.mirrored[slice.Name] = exists
		})
	}
}

func serviceOf(slice *discovery.EndpointSlice) types.NamespacedName {
	return types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discovery.LabelServiceName]}
}

func manager(slice *discovery.EndpointSlice) string { return slice.Labels[discovery.LabelManagedBy] }
