package endpoints

import (
	"maps"

	"k8s.io/apimachinery/pkg/types"
)

// index answers which Services select a pod and which pods a Service selects,
// in time proportional to the labels and the answer, not to the cluster: every
// Service is filed under one label of its selector (its pivot), every pod under
// each of its labels. Not safe for concurrent use.
type index struct {
	services map[types.NamespacedName]filedService
	pods     map[types.NamespacedName]filedPod
	byPivot  map[label]map[string]struct{} // pivot label → names of Services
	byLabel  map[label]map[string]struct{} // label → names of pods
	byNode   map[string]map[types.NamespacedName]struct{}
}

// label is one label of one namespace.
type label struct{ namespace, key, value string }

type filedService struct {
	selector map[string]string
	pivot    label
}

type filedPod struct {
	labels map[string]string
	node   string
}

func newIndex() *index {
	return &index{
		services: map[types.NamespacedName]filedService{},
		pods:     map[types.NamespacedName]filedPod{},
		byPivot:  map[label]map[string]struct{}{},
		byLabel:  map[label]map[string]struct{}{},
		byNode:   map[string]map[types.NamespacedName]struct{}{},
	}
}

// setService files a Service under its selector; an empty one selects nothing.
func (x *index) setService(svc types.NamespacedName, selector map[string]string) {
	if old, ok := x.services[svc]; ok {
		if maps.Equal(old.selector, selector) {
			return
		}
		remove(x.byPivot, old.pivot, svc.Name)
		delete(x.services, svc)
	}
	if len(selector) == 0 {
		return
	}
	// The least crowded label, so that a label which all Services share does
	// not make every pod a candidate for every Service.
	var pivot label
	best := -1
	for k, v := range selector {
		l := label{svc.Namespace, k, v}
		if n := len(x.byPivot[l]); best < 0 || n < best || n == best && k < pivot.key {
			pivot, best = l, n
		}
	}
	x.services[svc] = filedService{selector: selector, pivot: pivot}
	add(x.byPivot, pivot, svc.Name)
}

// setPod files a pod under its labels and its node and calls touched for every
// Service that selected it or does so now.
func (x *index) setPod(pod types.NamespacedName, labels map[string]string, node string, touched func(types.NamespacedName)) {
	old, known := x.pods[pod]
	same := known && maps.Equal(old.labels, labels)
	if known && !same {
		x.servicesOf(pod.Namespace, old.labels, touched)
		for k, v := range old.labels {
			if labels[k] != v {
				remove(x.byLabel, label{pod.Namespace, k, v}, pod.Name)
			}
		}
	}
	if known && old.node != node {
		remove(x.byNode, old.node, pod)
	}
	x.servicesOf(pod.Namespace, labels, touched)
	if !same {
		for k, v := range labels {
			add(x.byLabel, label{pod.Namespace, k, v}, pod.Name)
		}
	}
	if node != "" && (!known || old.node != node) {
		add(x.byNode, node, pod)
	}
	x.pods[pod] = filedPod{labels: labels, node: node}
}

// deletePod takes a pod out and calls touched for every Service that selected it.
func (x *index) deletePod(pod types.NamespacedName, touched func(types.NamespacedName)) {
	old, ok := x.pods[pod]
	if !ok {
		return
	}
	x.servicesOf(pod.Namespace, old.labels, touched)
	for k, v := range old.labels {
		remove(x.byLabel, label{pod.Namespace, k, v}, pod.Name)
	}
	remove(x.byNode, old.node, pod)
	delete(x.pods, pod)
}

// servicesOf calls found for every Service that selects a pod with these labels.
func (x *index) servicesOf(namespace string, labels map[string]string, found func(types.NamespacedName)) {
	for k, v := range labels {
		for name := range x.byPivot[label{namespace, k, v}] {
			svc := types.NamespacedName{Namespace: namespace, Name: name}
			if selects(x.services[svc].selector, labels) {
				found(svc)
			}
		}
	}
}

// podsOf calls found with the name of every pod that the selector selects.
func (x *index) podsOf(namespace string, selector map[string]string, found func(name string)) {
	if len(selector) == 0 {
		return
	}
	var candidates map[string]struct{}
	first := true
	for k, v := range selector {
		if set := x.byLabel[label{namespace, k, v}]; first || len(set) < len(candidates) {
			candidates, first = set, false
		}
	}
	for name := range candidates {
		if selects(selector, x.pods[types.NamespacedName{Namespace: namespace, Name: name}].labels) {
			found(name)
		}
	}
}

// servicesOnNode calls found for every Service that selects a pod of the node,
// with the pod.
func (x *index) servicesOnNode(node string, found func(svc types.NamespacedName, pod string)) {
	for pod := range x.byNode[node] {
		x.servicesOf(pod.Namespace, x.pods[pod].labels, func(svc types.NamespacedName) { found(svc, pod.Name) })
	}
}

// selects reports whether a Service with this selector takes a pod with these
// labels. No selector takes no pod (core/v1 ServiceSpec).
func selects(selector, labels map[string]string) bool {
	if len(selector) == 0 {
		return false
	}
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func add[K, V comparable](sets map[K]map[V]struct{}, k K, v V) {
	set := sets[k]
	if set == nil {
		set = map[V]struct{}{}
		sets[k] = set
	}
	set[v] = struct{}{}
}

func remove[K, V comparable](sets map[K]map[V]struct{}, k K, v V) {
	set := sets[k]
	delete(set, v)
	if len(set) == 0 {
		delete(sets, k)
	}
}
