package binder

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/resource"
	schedulinghelpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Why a node is not for a pod, in the words of Kubernetes' scheduler.
const (
	reasonUnschedulable = "node(s) were unschedulable"
	reasonAffinity      = "node(s) didn't match Pod's node affinity/selector"
	reasonTaints        = "node(s) had untolerated taint(s)"
	reasonPorts         = "node(s) didn't have free ports for the requested pod ports"
	reasonPods          = "Too many pods"
	noNodes             = "no nodes available to schedule pods"
)

// demand is what a pod takes of a node.
type demand struct {
	requests map[corev1.ResourceName]int64 // CPU in thousandths, others in units; positive
	ports    []hostPort
	group    string // pods of one owner, or of the same labels, are to be spread; "" is none
}

type hostPort struct {
	ip    string // "" is all
	proto corev1.Protocol
	port  int32
}

func demandOf(pod *corev1.Pod) demand {
	d := demand{requests: map[corev1.ResourceName]int64{}, group: groupOf(pod)}
	for name, quantity := range resource.PodRequests(pod, resource.PodResourcesOptions{}) {
		if n := amount(name, quantity); n > 0 {
			d.requests[name] = n
		}
	}
	// Ports of containers that start before the others are taken, too, while those run; sidecars keep them.
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range containers {
			for _, p := range c.Ports {
				if p.HostPort == 0 {
					continue
				}
				port := hostPort{ip: p.HostIP, proto: cmp.Or(p.Protocol, corev1.ProtocolTCP), port: p.HostPort}
				if port.ip == "0.0.0.0" || port.ip == "::" {
					port.ip = ""
				}
				if !slices.Contains(d.ports, port) {
					d.ports = append(d.ports, port)
				}
			}
		}
	}
	return d
}

func amount(name corev1.ResourceName, q apiresource.Quantity) int64 {
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// groupOf names the pods among which this one is spread: those of its controller, else those in its namespace with the
// same labels, which are in the same Services.
func groupOf(pod *corev1.Pod) string {
	if owner := metav1.GetControllerOf(pod); owner != nil {
		return string(owner.UID)
	}
	if len(pod.Labels) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(pod.Namespace)
	for _, key := range slices.Sorted(maps.Keys(pod.Labels)) {
		fmt.Fprintf(&b, "/%q=%q", key, pod.Labels[key])
	}
	return b.String()
}

// load is a node and what the pods on it take.
type load struct {
	node     *corev1.Node // nil where pods are bound to a name that no Node has
	pods     int
	requests map[corev1.ResourceName]int64
	ports    map[hostPort]int
	groups   map[string]int
}

func newLoad() *load {
	return &load{requests: map[corev1.ResourceName]int64{}, ports: map[hostPort]int{}, groups: map[string]int{}}
}

// add counts a pod in, or with sign -1 out.
func (l *load) add(d demand, sign int) {
	l.pods += sign
	for name, n := range d.requests {
		count(l.requests, name, n*int64(sign))
	}
	for _, port := range d.ports {
		count(l.ports, port, sign)
	}
	if d.group != "" {
		count(l.groups, d.group, sign)
	}
}

func count[K comparable, N int | int64](m map[K]N, key K, n N) {
	if m[key] += n; m[key] == 0 {
		delete(m, key)
	}
}

// plan chooses the node for the pod: of those that it fits, the one with the fewest pods of its group, then with the
// fewest pods, then the first by name. Where it fits none, node is "" and why says so.
func plan(pod *corev1.Pod, d demand, loads map[string]*load) (node, why string) {
	affinity := nodeaffinity.GetRequiredNodeAffinity(pod)
	var best *load
	reasons, total := map[string]int{}, 0
	for _, l := range loads {
		if l.node == nil {
			continue
		}
		total++
		if failed := filter(pod, d, affinity, l); len(failed) > 0 {
			for _, reason := range failed {
				reasons[reason]++
			}
			continue
		}
		if best == nil || better(d, l, best) < 0 {
			best = l
		}
	}
	switch {
	case best != nil:
		return best.node.Name, ""
	case total == 0:
		return "", noNodes
	}
	var parts []string
	for reason, n := range reasons {
		parts = append(parts, fmt.Sprintf("%d %s", n, reason))
	}
	slices.Sort(parts)
	return "", fmt.Sprintf("0/%d nodes are available: %s. `kubectl describe nodes` shows their labels, taints and what is allocated.", total, strings.Join(parts, ", "))
}

// better is negative where a is to be preferred.
func better(d demand, a, b *load) int {
	return cmp.Or(cmp.Compare(a.groups[d.group], b.groups[d.group]), cmp.Compare(a.pods, b.pods), cmp.Compare(a.node.Name, b.node.Name))
}

// filter says why the pod can not be on the node. The first of node, selector, taints, ports and resources that fails is
// told, as the scheduler does; of resources all.
func filter(pod *corev1.Pod, d demand, affinity nodeaffinity.RequiredNodeAffinity, l *load) []string {
	switch {
	case l.node.Spec.Unschedulable && untolerated(pod, []corev1.Taint{{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}}):
		return []string{reasonUnschedulable}
	case !matches(affinity, l.node):
		return []string{reasonAffinity}
	case untolerated(pod, taintsOf(l.node)):
		return []string{reasonTaints}
	case d.conflicts(l):
		return []string{reasonPorts}
	}
	var reasons []string
	if limit, ok := l.node.Status.Allocatable[corev1.ResourcePods]; ok && int64(l.pods) >= limit.Value() {
		reasons = append(reasons, reasonPods)
	}
	for name, want := range d.requests {
		limit, stated := l.node.Status.Allocatable[name]
		// A node that says nothing about CPU or memory has no bounds; one that says nothing about a device has none of it.
		if !stated && !strings.Contains(string(name), "/") {
			continue
		}
		if l.requests[name]+want > amount(name, limit) {
			reasons = append(reasons, "Insufficient "+string(name))
		}
	}
	return reasons
}

func matches(affinity nodeaffinity.RequiredNodeAffinity, node *corev1.Node) bool {
	ok, err := affinity.Match(node)
	return ok && err == nil // a term that can not be parsed matches nothing
}

// taintsOf are the node's, and where it is not ready the one that says so: the node controller may not have got to it.
func taintsOf(node *corev1.Node) []corev1.Taint {
	switch readiness(node) {
	case corev1.ConditionTrue:
		return node.Spec.Taints
	case corev1.ConditionFalse:
		return append(slices.Clip(node.Spec.Taints), corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule})
	default:
		return append(slices.Clip(node.Spec.Taints), corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoSchedule})
	}
}

// readiness is the condition Ready, Unknown where there is none.
func readiness(node *corev1.Node) corev1.ConditionStatus {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return corev1.ConditionUnknown
}

func untolerated(pod *corev1.Pod, taints []corev1.Taint) bool {
	if len(taints) == 0 {
		return false
	}
	_, found := schedulinghelpers.FindMatchingUntoleratedTaint(logr.Discard(), taints, pod.Spec.Tolerations, func(t *corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	}, true)
	return found
}

// conflicts says whether a host port is taken: by the same address, or where one of the two is all addresses.
func (d demand) conflicts(l *load) bool {
	for _, want := range d.ports {
		for have := range l.ports {
			if want.port == have.port && want.proto == have.proto && (want.ip == have.ip || want.ip == "" || have.ip == "") {
				return true
			}
		}
	}
	return false
}
