package nodelife

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
)

func (c *Controller) nodeChanged(old, now any) {
	before, _ := old.(*corev1.Node)
	node, _ := now.(*corev1.Node)
	c.mu.Lock()
	defer c.mu.Unlock()
	if node == nil || before != nil && before.UID != node.UID {
		name := before.Name
		c.detector.nodeGone(name)
		delete(c.taintSince, name)
		delete(c.notReady, name)
		delete(c.given, name)
		if len(c.byNode[name]) > 0 {
			c.known[name] = struct{}{}
		}
		c.addPods(name)
		for _, other := range c.nodeStore.List() { // for the range that is free now
			c.nodes.Add(nodeKey(other.(*corev1.Node).Name))
		}
		before = nil
	}
	if node == nil {
		return
	}
	at := time.Now()
	delete(c.missing, node.Name)
	delete(c.known, node.Name)
	if before == nil {
		c.detector.nodeSeen(node.Name, hasTaint(node, corev1.TaintNodeUnreachable), at)
	}
	c.noteReadiness(node, at)
	if before == nil || !equality.Semantic.DeepEqual(before.Spec.Taints, node.Spec.Taints) {
		c.noteTaints(before == nil, node, at)
		c.addPods(node.Name)
	}
	if len(node.Spec.PodCIDRs) > 0 && (before == nil || !slices.Equal(before.Spec.PodCIDRs, node.Spec.PodCIDRs)) {
		c.noteRanges(node)
	}
	if before == nil || before.Spec.Unschedulable != node.Spec.Unschedulable || condition(before, corev1.NodeReady) != condition(node, corev1.NodeReady) ||
		!equality.Semantic.DeepEqual(before.Spec, node.Spec) {
		c.nodes.Add(nodeKey(node.Name))
	}
}

// noteReadiness keeps since when the agent says that it is not ready. The caller holds mu.
func (c *Controller) noteReadiness(node *corev1.Node, at time.Time) {
	if condition(node, corev1.NodeReady) != corev1.ConditionFalse {
		delete(c.notReady, node.Name)
		return
	}
	if _, ok := c.notReady[node.Name]; !ok {
		c.notReady[node.Name] = at
		c.nodes.AddAfter(nodeKey(node.Name), notReadyGrace)
	}
}

// noteTaints keeps since when pods are to leave. A taint that was there before us says it itself, to the second. The caller
// holds mu.
func (c *Controller) noteTaints(first bool, node *corev1.Node, at time.Time) {
	was, is := c.taintSince[node.Name], map[taintKey]time.Time{}
	for _, t := range node.Spec.Taints {
		if t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		key, since := taintKey{t.Key, t.Value}, at
		if known, ok := was[key]; ok {
			since = known
		} else if first && t.TimeAdded != nil && t.TimeAdded.Time.Before(at) {
			since = t.TimeAdded.Time
		}
		is[key] = since
	}
	if len(is) > 0 {
		c.taintSince[node.Name] = is
	} else {
		delete(c.taintSince, node.Name)
	}
}

// noteRanges keeps who has which addresses, and has those looked at that share some. The caller holds mu.
func (c *Controller) noteRanges(node *corev1.Node) {
	mine := prefixes(node.Spec.PodCIDRs)
	c.given[node.Name] = mine
	for name, theirs := range c.given {
		if name != node.Name && overlap(mine, theirs) {
			c.nodes.Add(nodeKey(name))
		}
	}
}

// addPods has all pods of a node looked at. The caller holds mu.
func (c *Controller) addPods(node string) {
	for key := range c.byNode[node] {
		c.pods.Add(key)
	}
}

func (c *Controller) podChanged(old, now any) {
	before, _ := old.(*corev1.Pod)
	pod, _ := now.(*corev1.Pod)
	c.mu.Lock()
	defer c.mu.Unlock()
	if before != nil && (pod == nil || before.UID != pod.UID || before.Spec.NodeName != pod.Spec.NodeName) {
		c.forgetPod(keyOf(before), before.Spec.NodeName)
	}
	if pod == nil {
		return
	}
	key, node := keyOf(pod), pod.Spec.NodeName
	c.noteEnd(key, pod)
	if node == "" {
		return
	}
	on := c.byNode[node]
	if on == nil {
		on = map[types.NamespacedName]struct{}{}
		c.byNode[node] = on
	}
	_, known := on[key]
	on[key] = struct{}{}
	if _, exists, _ := c.nodeStore.GetByKey(node); !exists || len(c.taintSince[node]) > 0 && (!known || !equality.Semantic.DeepEqual(before.Spec.Tolerations, pod.Spec.Tolerations)) {
		c.pods.Add(key)
	}
	if !podReady(pod) {
		delete(c.marked, key)
	} else if h := c.detector.nodes[node]; h.judged() && h.silent {
		c.nodes.Add(nodeKey(node)) // the last words of the agent
	}
}

// forgetPod: the caller holds mu.
func (c *Controller) forgetPod(key types.NamespacedName, node string) {
	delete(c.ended, key)
	delete(c.marked, key)
	delete(c.byNode[node], key)
	if len(c.byNode[node]) == 0 {
		delete(c.byNode, node)
		delete(c.missing, node)
		delete(c.known, node)
	}
}

// noteEnd counts pods that have ended. The caller holds mu.
func (c *Controller) noteEnd(key types.NamespacedName, pod *corev1.Pod) {
	if !finished(pod) {
		delete(c.ended, key)
		return
	}
	if c.ended[key] = pod.CreationTimestamp.Time; len(c.ended) > c.maxTerminated {
		c.pods.Add(types.NamespacedName{}) // collect
	}
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func podReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// condition is a condition's status, "" where there is none.
func condition(node *corev1.Node, kind corev1.NodeConditionType) corev1.ConditionStatus {
	for _, c := range node.Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return ""
}

func hasTaint(node *corev1.Node, key string) bool {
	for _, t := range node.Spec.Taints {
		if t.Key == key {
			return true
		}
	}
	return false
}
