package nodelife

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func notFound(err error) bool { return apierrors.IsNotFound(err) }

// reconcileNode brings what the API says of a node in line with what is known of it.
func (c *Controller) reconcileNode(ctx context.Context, key types.NamespacedName) error {
	obj, ok, _ := c.nodeStore.GetByKey(key.Name)
	if !ok {
		return nil
	}
	node := obj.(*corev1.Node)
	c.mu.Lock()
	now := time.Now()
	v := c.detector.verdict(node.Name, now)
	since, notReady := c.notReady[node.Name]
	c.mu.Unlock()
	evictNotReady := notReady && now.Sub(since) >= notReadyGrace

	// Pods at the same time: both matter within the three seconds.
	var podsErr error
	var writing sync.WaitGroup
	if v.silent {
		writing.Go(func() { podsErr = c.podsNotReady(ctx, node.Name) })
	}
	version, err := c.writeTaints(ctx, node, wantTaints(node, v, evictNotReady))
	if err == nil {
		err = c.writeConditions(ctx, node, version, v.silent)
	}
	writing.Wait()
	if err := errors.Join(err, podsErr); err != nil {
		return err
	}
	return c.allocate(ctx, node)
}

// wantTaints are the taints of ours that the node is to have.
func wantTaints(node *corev1.Node, v verdict, evictNotReady bool) []corev1.Taint {
	var want []corev1.Taint
	add := func(key string, evict bool) {
		want = append(want, corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule})
		if evict {
			want = append(want, corev1.Taint{Key: key, Effect: corev1.TaintEffectNoExecute})
		}
	}
	if node.Spec.Unschedulable {
		add(corev1.TaintNodeUnschedulable, false)
	}
	switch {
	case v.silent:
		add(corev1.TaintNodeUnreachable, v.evict)
	case condition(node, corev1.NodeReady) == corev1.ConditionFalse:
		add(corev1.TaintNodeNotReady, evictNotReady)
	}
	if !v.judged { // not ours to say
		for _, t := range node.Spec.Taints {
			if t.Key == corev1.TaintNodeUnreachable {
				want = append(want, t)
			}
		}
	}
	return want
}

func ours(t corev1.Taint) bool {
	return t.Key == corev1.TaintNodeUnschedulable || t.Key == corev1.TaintNodeUnreachable || t.Key == corev1.TaintNodeNotReady
}

// writeTaints keeps the taints of others, and the time of those that stay. It gives the version of the Node after it, which
// has nobody else's changes.
func (c *Controller) writeTaints(ctx context.Context, node *corev1.Node, want []corev1.Taint) (version string, err error) {
	next := slices.DeleteFunc(slices.Clone(node.Spec.Taints), func(t corev1.Taint) bool {
		return ours(t) && !slices.ContainsFunc(want, func(w corev1.Taint) bool { return w.MatchTaint(&t) })
	})
	at := metav1.Now()
	for _, w := range want {
		if !slices.ContainsFunc(next, func(t corev1.Taint) bool { return w.MatchTaint(&t) }) {
			w.TimeAdded = &at
			next = append(next, w)
		}
	}
	if equality.Semantic.DeepEqual(next, node.Spec.Taints) || len(next) == 0 && len(node.Spec.Taints) == 0 {
		return node.ResourceVersion, nil
	}
	// Bound to what was looked at, lest a taint of somebody else is lost. Merging replaces the list.
	patch := map[string]any{"metadata": map[string]any{"uid": node.UID, "resourceVersion": node.ResourceVersion}, "spec": map[string]any{"taints": next}}
	written, err := c.patchNode(ctx, node.Name, types.MergePatchType, patch)
	if err != nil {
		return "", about("taint", node.Name, err)
	}
	return written.ResourceVersion, nil
}

func (c *Controller) patchNode(ctx context.Context, name string, kind types.PatchType, patch any, sub ...string) (*corev1.Node, error) {
	body, err := json.Marshal(patch)
	if err != nil {
		return nil, err
	}
	return c.client.CoreV1().Nodes().Patch(ctx, name, kind, body, metav1.PatchOptions{}, sub...)
}

// about names the node in an error, and drops the one that says that it is gone.
func about(what, node string, err error) error {
	if err == nil || notFound(err) {
		return nil
	}
	return fmt.Errorf("%s node %s: %w", what, node, err)
}

// unknown are the conditions that only the agent can tell. The network is not among them, as upstream.
var unknown = [...]corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure}

// writeConditions makes those of a silent node Unknown, and tells of podCIDRs that overlap.
func (c *Controller) writeConditions(ctx context.Context, node *corev1.Node, version string, silent bool) error {
	at := metav1.Now()
	var changed []corev1.NodeCondition
	if silent {
		for _, kind := range unknown {
			if s := condition(node, kind); s != corev1.ConditionUnknown {
				n := corev1.NodeCondition{
					Type: kind, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown", Message: "The agent stopped posting node status.",
					LastTransitionTime: at, LastHeartbeatTime: heartbeat(node, kind),
				}
				if s == "" {
					n.Reason, n.Message = "NodeStatusNeverUpdated", "The agent never posted node status."
				}
				changed = append(changed, n)
			}
		}
	}
	wasReady := condition(node, corev1.NodeReady) == corev1.ConditionTrue
	conflict := c.conflict(node)
	if n, change := conflictCondition(node, conflict, at); change {
		changed = append(changed, n)
		if conflict != "" {
			c.recorder.Event(node, corev1.EventTypeWarning, conflictReason, conflict)
		}
	}
	if len(changed) == 0 {
		return nil
	}
	// Only as long as the agent has not spoken meanwhile.
	patch := map[string]any{"metadata": map[string]any{"uid": node.UID, "resourceVersion": version}, "status": map[string]any{"conditions": changed}}
	if _, err := c.patchNode(ctx, node.Name, types.StrategicMergePatchType, patch, "status"); err != nil {
		return about("status of", node.Name, err)
	}
	if silent && wasReady {
		c.recorder.Eventf(node, corev1.EventTypeNormal, "NodeNotReady", "Node %s status is now: NodeNotReady", node.Name)
	}
	return nil
}

func heartbeat(node *corev1.Node, kind corev1.NodeConditionType) metav1.Time {
	for _, c := range node.Status.Conditions {
		if c.Type == kind {
			return c.LastHeartbeatTime
		}
	}
	return node.CreationTimestamp
}

// podsNotReady takes the node's pods out of endpoints. Only the condition Ready changes, as upstream.
func (c *Controller) podsNotReady(ctx context.Context, node string) error {
	c.mu.Lock()
	var ready []*corev1.Pod
	for key := range c.byNode[node] {
		obj, ok, _ := c.podStore.GetByKey(key.String())
		if !ok {
			continue
		}
		if pod := obj.(*corev1.Pod); podReady(pod) && c.marked[key] != pod.ResourceVersion {
			ready = append(ready, pod)
		}
	}
	c.mu.Unlock()
	patch := func(pod *corev1.Pod) error {
		body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": map[string]any{"conditions": []any{
			map[string]any{"type": corev1.PodReady, "status": corev1.ConditionFalse, "lastTransitionTime": metav1.Now()},
		}}})
		if err != nil {
			return err
		}
		_, err = c.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
		if err == nil {
			c.mu.Lock()
			if _, exists := c.byNode[node][keyOf(pod)]; exists {
				c.marked[keyOf(pod)] = pod.ResourceVersion
			}
			c.mu.Unlock()
			c.recorder.Event(pod, corev1.EventTypeWarning, "NodeNotReady", "Node is not ready")
			return nil
		}
		if gone(err) {
			return nil
		}
		return fmt.Errorf("pod %s of a node that is not ready: %w", keyOf(pod), err)
	}
	const parallel = 32
	queue, errs := make(chan *corev1.Pod), make(chan error, parallel)
	for range parallel {
		go func() {
			var failed error
			for pod := range queue {
				failed = cmp.Or(patch(pod), failed)
			}
			errs <- failed
		}()
	}
	for _, pod := range ready {
		queue <- pod
	}
	close(queue)
	var failed []error
	for range parallel {
		failed = append(failed, <-errs)
	}
	return errors.Join(failed...)
}

// gone: the pod does not exist, or is another one of its name.
func gone(err error) bool {
	return notFound(err) || apierrors.IsConflict(err) && strings.Contains(err.Error(), "UID")
}

// conflictReason is of the condition NetworkUnavailable of a node whose podCIDRs overlap an older node's.
const conflictReason = "PodCIDRConflict"

// conflict says with which older node this one shares addresses; "" with none.
func (c *Controller) conflict(node *corev1.Node) string {
	mine := prefixes(node.Spec.PodCIDRs)
	if len(mine) == 0 {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for name, theirs := range c.given {
		if name != node.Name && overlap(mine, theirs) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		obj, ok, _ := c.nodeStore.GetByKey(name)
		if !ok {
			continue
		}
		other := obj.(*corev1.Node)
		if cmp.Or(other.CreationTimestamp.Compare(node.CreationTimestamp.Time), cmp.Compare(other.Name, node.Name)) < 0 {
			return fmt.Sprintf("podCIDRs %s overlap %s of node %s: give this node another --pod-cidr, delete its Node object and restart its agent",
				strings.Join(node.Spec.PodCIDRs, ","), strings.Join(other.Spec.PodCIDRs, ","), name)
		}
	}
	return ""
}

// conflictCondition is what the node's condition has to become, if it has to change.
func conflictCondition(node *corev1.Node, conflict string, at metav1.Time) (corev1.NodeCondition, bool) {
	n := corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: conflictReason, Message: conflict, LastTransitionTime: at, LastHeartbeatTime: at}
	i := slices.IndexFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeNetworkUnavailable })
	has := i >= 0 && node.Status.Conditions[i].Reason == conflictReason && node.Status.Conditions[i].Status == corev1.ConditionTrue
	if conflict == "" {
		n.Status, n.Reason, n.Message = corev1.ConditionFalse, "PodCIDRFree", "podCIDRs overlap no other node's"
		return n, has
	}
	return n, !has || node.Status.Conditions[i].Message != conflict
}

// allocate gives a Node that has no podCIDRs its part of the ranges.
func (c *Controller) allocate(ctx context.Context, node *corev1.Node) error {
	if len(node.Spec.PodCIDRs) > 0 || len(c.podCIDRs) == 0 || node.DeletionTimestamp != nil {
		return nil
	}
	c.allocating.Lock() // one at a time, so that a failed write gives its range back before the next one chooses
	defer c.allocating.Unlock()
	c.mu.Lock()
	var used []netip.Prefix
	for name, theirs := range c.given {
		if name == node.Name {
			c.mu.Unlock()
			return nil // the watch has not shown it yet, or just did
		}
		used = append(used, theirs...)
	}
	c.mu.Unlock()
	var mine []netip.Prefix
	var texts []string
	for _, cluster := range c.podCIDRs {
		p, err := free(cluster, used)
		if err != nil {
			c.recorder.Event(node, corev1.EventTypeWarning, "CIDRNotAvailable", err.Error())
			return nil // until a Node goes
		}
		mine, texts = append(mine, p), append(texts, p.String())
	}
	c.mu.Lock()
	c.given[node.Name] = mine // before the watch may say that the Node has gone
	c.mu.Unlock()
	patch := map[string]any{"metadata": map[string]any{"uid": node.UID}, "spec": map[string]any{"podCIDR": texts[0], "podCIDRs": texts}}
	_, err := c.patchNode(ctx, node.Name, types.StrategicMergePatchType, patch)
	if err == nil {
		return nil
	}
	c.takeBack(node.Name)
	if apierrors.IsInvalid(err) || apierrors.IsConflict(err) {
		return nil // the agent has set it a moment ago, or it is another Node: the watch brings it
	}
	return about("podCIDR of", node.Name, err)
}

// takeBack leaves to a node the ranges that the watch has shown.
func (c *Controller) takeBack(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.given, node)
	if obj, ok, _ := c.nodeStore.GetByKey(node); ok && len(obj.(*corev1.Node).Spec.PodCIDRs) > 0 {
		c.given[node] = prefixes(obj.(*corev1.Node).Spec.PodCIDRs)
	}
}
