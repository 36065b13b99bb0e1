package binder

import (
	"maps"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// readyNode is changed by the functions.
func readyNode(name string, changes ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, change := range changes {
		change(n)
	}
	return n
}

func ready(status corev1.ConditionStatus) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Status.Conditions[0].Status = status }
}

func labelled(key, value string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Labels[key] = value }
}

func tainted(key string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: effect}) }
}

func cordoned(n *corev1.Node) { n.Spec.Unschedulable = true }

func has(amounts ...string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Status.Allocatable = list(amounts...) }
}

// list is of "name=quantity".
func list(amounts ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for _, amount := range amounts {
		name, quantity, _ := strings.Cut(amount, "=")
		l[corev1.ResourceName(name)] = apiresource.MustParse(quantity)
	}
	return l
}

func podOf(name string, changes ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}}
	for _, change := range changes {
		change(p)
	}
	return p
}

func app(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels = map[string]string{"app": name, "tier": "x"} }
}

func requests(amounts ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = list(amounts...) }
}

func listens(ip string, port int32, proto corev1.Protocol) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, corev1.ContainerPort{HostIP: ip, HostPort: port, ContainerPort: port, Protocol: proto})
	}
}

func tolerates(t corev1.Toleration) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Tolerations = append(p.Spec.Tolerations, t) }
}

func selects(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{key: value} }
}

func requires(r ...corev1.NodeSelectorRequirement) func(*corev1.Pod) {
	return affine(corev1.NodeSelectorTerm{MatchExpressions: r})
}

func affine(terms ...corev1.NodeSelectorTerm) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms}}}
	}
}

func rule(key string, op corev1.NodeSelectorOperator, values ...string) corev1.NodeSelectorRequirement {
	return corev1.NodeSelectorRequirement{Key: key, Operator: op, Values: values}
}

const hint = " `kubectl describe nodes` shows their labels, taints and what is allocated."

func TestPlan(t *testing.T) {
	everything := corev1.Toleration{Operator: corev1.TolerationOpExists}
	owned := func(hash string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{UID: "other"}, {UID: "controller", Controller: new(true)}}
			p.Labels = map[string]string{"hash": hash}
		}
	}
	tests := []struct {
		name  string
		nodes []*corev1.Node
		on    map[string][]*corev1.Pod // node → pods
		pod   *corev1.Pod
		want  string // node, or why not without hint
	}{
		{"no nodes", nil, nil, podOf("p"), noNodes},
		{"the first by name", []*corev1.Node{readyNode("b"), readyNode("a")}, nil, podOf("p"), "a"},
		{"the fewest pods", []*corev1.Node{readyNode("a"), readyNode("b")}, map[string][]*corev1.Pod{"a": {podOf("x")}}, podOf("p"), "b"},
		{"the fewest of its labels before the fewest", []*corev1.Node{readyNode("a"), readyNode("b")},
			map[string][]*corev1.Pod{"a": {podOf("1", app("web"))}, "b": {podOf("2"), podOf("3")}}, podOf("p", app("web")), "b"},
		{"other labels are no group", []*corev1.Node{readyNode("a"), readyNode("b")},
			map[string][]*corev1.Pod{"a": {podOf("1", app("db"))}, "b": {podOf("2"), podOf("3")}}, podOf("p", app("web")), "a"},
		{"the fewest of its owner, whatever the labels", []*corev1.Node{readyNode("a"), readyNode("b")},
			map[string][]*corev1.Pod{"a": {podOf("1", owned("1"))}, "b": {podOf("2"), podOf("3")}}, podOf("p", owned("2")), "b"},
		{"pods on a node that does not exist do not make it one", []*corev1.Node{readyNode("b")}, map[string][]*corev1.Pod{"a": nil, "b": {podOf("1")}}, podOf("p"), "b"},

		{"not ready", []*corev1.Node{readyNode("a", ready(corev1.ConditionFalse)), readyNode("b")}, nil, podOf("p"), "b"},
		{"none is ready", []*corev1.Node{readyNode("a", ready(corev1.ConditionFalse)), readyNode("b", ready(corev1.ConditionUnknown)), {ObjectMeta: metav1.ObjectMeta{Name: "c"}}}, nil, podOf("p"),
			"0/3 nodes are available: 3 node(s) had untolerated taint(s)."},
		{"tolerates that it is not ready", []*corev1.Node{readyNode("a", ready(corev1.ConditionFalse))}, nil, podOf("p", tolerates(everything)), "a"},
		{"cordoned", []*corev1.Node{readyNode("a", cordoned)}, nil, podOf("p"), "0/1 nodes are available: 1 node(s) were unschedulable."},
		{"cordoned with its taint", []*corev1.Node{readyNode("a", cordoned, tainted(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule))}, nil, podOf("p"), "0/1 nodes are available: 1 node(s) were unschedulable."},
		{"tolerates the cordon, as DaemonSets", []*corev1.Node{readyNode("a", cordoned)}, nil,
			podOf("p", tolerates(corev1.Toleration{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule})), "a"},

		{"node selector", []*corev1.Node{readyNode("a"), readyNode("b", labelled("disk", "ssd"))}, nil, podOf("p", selects("disk", "ssd")), "b"},
		{"no node has the label", []*corev1.Node{readyNode("a"), readyNode("b", labelled("disk", "hdd"))}, nil, podOf("p", selects("disk", "ssd")),
			"0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."},
		{"In", []*corev1.Node{readyNode("a"), readyNode("b", labelled("k", "2"))}, nil, podOf("p", requires(rule("k", corev1.NodeSelectorOpIn, "1", "2"))), "b"},
		{"NotIn, of those without the label, too", []*corev1.Node{readyNode("a", labelled("k", "2")), readyNode("b")}, nil, podOf("p", requires(rule("k", corev1.NodeSelectorOpNotIn, "1", "2"))), "b"},
		{"Exists", []*corev1.Node{readyNode("a"), readyNode("b", labelled("k", ""))}, nil, podOf("p", requires(rule("k", corev1.NodeSelectorOpExists))), "b"},
		{"DoesNotExist", []*corev1.Node{readyNode("a", labelled("k", "")), readyNode("b")}, nil, podOf("p", requires(rule("k", corev1.NodeSelectorOpDoesNotExist))), "b"},
		{"Gt", []*corev1.Node{readyNode("a", labelled("k", "5")), readyNode("b", labelled("k", "6"))}, nil, podOf("p", requires(rule("k", corev1.NodeSelectorOpGt, "5"))), "b"},
		{"Lt", []*corev1.Node{readyNode("a", labelled("k", "5")), readyNode("b", labelled("k", "4"))}, nil, podOf("p", requires(rule("k", corev1.NodeSelectorOpLt, "5"))), "b"},
		{"all rules of a term", []*corev1.Node{readyNode("a", labelled("k", "1")), readyNode("b", labelled("k", "1"), labelled("l", "1"))}, nil,
			podOf("p", requires(rule("k", corev1.NodeSelectorOpExists), rule("l", corev1.NodeSelectorOpExists))), "b"},
		{"any of the terms", []*corev1.Node{readyNode("a"), readyNode("b", labelled("l", "1"))}, nil,
			podOf("p", affine(corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{rule("k", corev1.NodeSelectorOpExists)}},
				corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{rule("l", corev1.NodeSelectorOpExists)}})), "b"},
		{"by name, as DaemonSets", []*corev1.Node{readyNode("a"), readyNode("b")}, nil,
			podOf("p", affine(corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{rule("metadata.name", corev1.NodeSelectorOpIn, "b")}})), "b"},

		{"NoSchedule", []*corev1.Node{readyNode("a", tainted("t", corev1.TaintEffectNoSchedule)), readyNode("b")}, nil, podOf("p"), "b"},
		{"NoExecute", []*corev1.Node{readyNode("a", tainted("t", corev1.TaintEffectNoExecute)), readyNode("b")}, nil, podOf("p"), "b"},
		{"PreferNoSchedule does not matter", []*corev1.Node{readyNode("a", tainted("t", corev1.TaintEffectPreferNoSchedule))}, nil, podOf("p"), "a"},
		{"a toleration", []*corev1.Node{readyNode("a", tainted("t", corev1.TaintEffectNoSchedule))}, nil, podOf("p", tolerates(corev1.Toleration{Key: "t", Operator: corev1.TolerationOpExists})), "a"},
		{"a toleration of another effect", []*corev1.Node{readyNode("a", tainted("t", corev1.TaintEffectNoSchedule))}, nil,
			podOf("p", tolerates(corev1.Toleration{Key: "t", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})), "0/1 nodes are available: 1 node(s) had untolerated taint(s)."},

		{"the port is taken", []*corev1.Node{readyNode("a"), readyNode("b")}, map[string][]*corev1.Pod{"a": {podOf("1", listens("", 80, ""))}, "b": {podOf("2"), podOf("3")}}, podOf("p", listens("0.0.0.0", 80, corev1.ProtocolTCP)), "b"},
		{"the port is taken everywhere", []*corev1.Node{readyNode("a")}, map[string][]*corev1.Pod{"a": {podOf("1", listens("10.0.0.1", 80, ""))}}, podOf("p", listens("", 80, "")),
			"0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."},
		{"the same port of another protocol", []*corev1.Node{readyNode("a")}, map[string][]*corev1.Pod{"a": {podOf("1", listens("", 80, corev1.ProtocolUDP))}}, podOf("p", listens("", 80, "")), "a"},
		{"the same port of another address", []*corev1.Node{readyNode("a")}, map[string][]*corev1.Pod{"a": {podOf("1", listens("10.0.0.1", 80, ""))}}, podOf("p", listens("10.0.0.2", 80, "")), "a"},

		{"what is left", []*corev1.Node{readyNode("a", has("cpu=1")), readyNode("b", has("cpu=1"))}, map[string][]*corev1.Pod{"a": {podOf("1", requests("cpu=600m"))}, "b": {podOf("2"), podOf("3")}}, podOf("p", requests("cpu=500m")), "b"},
		{"the last bit", []*corev1.Node{readyNode("a", has("cpu=1", "memory=1Gi"))}, map[string][]*corev1.Pod{"a": {podOf("1", requests("cpu=600m"))}}, podOf("p", requests("cpu=400m", "memory=1Gi")), "a"},
		{"too little", []*corev1.Node{readyNode("a", has("cpu=1", "memory=1Gi", "pods=1")), readyNode("b", has("cpu=2"))}, map[string][]*corev1.Pod{"a": {podOf("1", requests("cpu=600m"))}}, podOf("p", requests("cpu=2001m", "memory=2Gi")),
			"0/2 nodes are available: 1 Insufficient memory, 1 Too many pods, 2 Insufficient cpu."},
		{"the node states nothing", []*corev1.Node{readyNode("a")}, nil, podOf("p", requests("cpu=1000", "memory=1Ti")), "a"},
		{"a device that no node has", []*corev1.Node{readyNode("a", has("cpu=1"))}, nil, podOf("p", requests("example.org/gpu=1")), "0/1 nodes are available: 1 Insufficient example.org/gpu."},

		{"every reason is counted", []*corev1.Node{readyNode("a", cordoned), readyNode("b", tainted("t", corev1.TaintEffectNoSchedule), labelled("k", "1")), readyNode("c", labelled("k", "2"))}, nil, podOf("p", selects("k", "1")),
			"0/3 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable."},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			loads := map[string]*load{}
			for _, n := range test.nodes {
				loads[n.Name] = newLoad()
				loads[n.Name].node = n
			}
			for name, pods := range test.on {
				if loads[name] == nil {
					loads[name] = newLoad()
				}
				for _, p := range pods {
					loads[name].add(demandOf(p), 1)
				}
			}
			node, why := plan(test.pod, demandOf(test.pod), loads)
			if got := node + strings.TrimSuffix(why, hint); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// What is added and taken away again leaves nothing.
func TestLoadBalance(t *testing.T) {
	l := newLoad()
	pods := []*corev1.Pod{podOf("1", app("a"), requests("cpu=1", "memory=1Gi"), listens("", 80, "")), podOf("2", app("a"), listens("10.0.0.1", 80, ""), requests("cpu=2"))}
	for _, p := range pods {
		l.add(demandOf(p), 1)
	}
	if l.pods != 2 || !maps.Equal(l.requests, map[corev1.ResourceName]int64{"cpu": 3000, "memory": 1 << 30}) || len(l.ports) != 2 || len(l.groups) != 1 {
		t.Errorf("%+v", l)
	}
	for _, p := range pods {
		l.add(demandOf(p), -1)
	}
	if l.pods != 0 || len(l.requests)+len(l.ports)+len(l.groups) != 0 {
		t.Errorf("left: %+v", l)
	}
}
