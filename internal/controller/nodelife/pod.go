package nodelife

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// reconcilePod deletes a pod that its node's taints drive out, or whose Node is gone. The empty key collects pods that have
// ended.
func (c *Controller) reconcilePod(ctx context.Context, key types.NamespacedName) error {
	if key.Name == "" {
		return c.collect(ctx)
	}
	obj, ok, _ := c.podStore.GetByKey(key.String())
	if !ok {
		return nil
	}
	pod := obj.(*corev1.Pod)
	if pod.Spec.NodeName == "" {
		return nil
	}
	if obj, ok, _ := c.nodeStore.GetByKey(pod.Spec.NodeName); ok {
		return c.evict(ctx, pod, obj.(*corev1.Node))
	}
	return c.orphan(ctx, pod)
}

// evict deletes the pod when its time on a tainted node is over, and sees to it again when it is not over yet.
func (c *Controller) evict(ctx context.Context, pod *corev1.Pod, node *corev1.Node) error {
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror || pod.DeletionTimestamp != nil {
		return nil
	}
	c.mu.Lock()
	since := maps.Clone(c.taintSince[node.Name])
	c.mu.Unlock()
	at, leaves := leaving(pod.Spec.Tolerations, node.Spec.Taints, since)
	if !leaves {
		return nil
	}
	if wait := time.Until(at); wait > 0 {
		c.pods.AddAfter(keyOf(pod), wait)
		return nil
	}
	c.recorder.Event(pod, corev1.EventTypeNormal, "TaintManagerEviction", "Marking for deletion Pod "+keyOf(pod).String())
	if err := c.disrupt(ctx, pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint", false); err != nil {
		return err
	}
	return c.delete(ctx, pod, metav1.DeleteOptions{})
}

// leaving is when the pod has to go: at once for a taint that it does not tolerate, and after the shortest of the times for
// which it tolerates one, counted from when that taint came.
func leaving(tolerations []corev1.Toleration, taints []corev1.Taint, since map[taintKey]time.Time) (at time.Time, leaves bool) {
	for i := range taints {
		t := &taints[i]
		from, known := since[taintKey{t.Key, t.Value}]
		if t.Effect != corev1.TaintEffectNoExecute || !known { // not known: it has gone since
			continue
		}
		j := slices.IndexFunc(tolerations, func(o corev1.Toleration) bool { return o.ToleratesTaint(logr.Discard(), t, true) })
		end := from
		if j >= 0 {
			seconds := tolerations[j].TolerationSeconds
			if seconds == nil {
				continue
			}
			end = from.Add(time.Duration(max(0, *seconds)) * time.Second)
		}
		if !leaves || end.Before(at) {
			at, leaves = end, true
		}
	}
	return at, leaves
}

// orphan deletes a pod by force whose Node is gone: nobody will say that its containers have ended.
func (c *Controller) orphan(ctx context.Context, pod *corev1.Pod) error {
	node := pod.Spec.NodeName
	c.mu.Lock()
	if _, known := c.known[node]; !known && pod.Status.HostIP == "" && pod.Status.StartTime == nil {
		c.mu.Unlock()
		return nil // placed by hand; only an agent says where and since when a pod is
	}
	since, waits := c.missing[node]
	if !waits {
		since = time.Now()
		c.missing[node] = since
	}
	c.mu.Unlock()
	if wait := time.Until(since.Add(orphanGrace)); wait > 0 {
		c.pods.AddAfter(keyOf(pod), wait)
		return nil
	}
	switch _, err := c.client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{}); {
	case err == nil:
		return nil // the watch will show it
	case !notFound(err):
		return fmt.Errorf("look whether node %s of pod %s exists: %w", node, keyOf(pod), err)
	}
	if err := c.disrupt(ctx, pod, "DeletionByPodGC", "PodGC: node no longer exists", !finished(pod)); err != nil {
		return err
	}
	return c.delete(ctx, pod, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))})
}

// disrupt says in the status why the pod is going to be deleted (KEP-3329).
func (c *Controller) disrupt(ctx context.Context, pod *corev1.Pod, reason, message string, failed bool) error {
	status := map[string]any{"conditions": []corev1.PodCondition{{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastTransitionTime: metav1.Now(), ObservedGeneration: pod.Generation,
	}}}
	if failed {
		status["phase"] = corev1.PodFailed
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
	if err != nil {
		return err
	}
	_, err = c.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
	if err != nil && !gone(err) {
		return fmt.Errorf("pod %s: write why it is deleted: %w", keyOf(pod), err)
	}
	return nil
}

// delete deletes this pod, not another of its name.
func (c *Controller) delete(ctx context.Context, pod *corev1.Pod, o metav1.DeleteOptions) error {
	o.Preconditions = &metav1.Preconditions{UID: &pod.UID}
	if err := c.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, o); err != nil && !gone(err) {
		return fmt.Errorf("delete pod %s: %w", keyOf(pod), err)
	}
	return nil
}

// collect deletes the oldest pods that have ended, beyond what is kept.
func (c *Controller) collect(ctx context.Context) error {
	c.mu.Lock()
	ended := slices.SortedFunc(maps.Keys(c.ended), func(a, b types.NamespacedName) int {
		return cmp.Or(c.ended[a].Compare(c.ended[b]), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	c.mu.Unlock()
	for _, key := range ended[:max(0, len(ended)-c.maxTerminated)] {
		obj, ok, _ := c.podStore.GetByKey(key.String())
		if !ok {
			continue
		}
		if pod := obj.(*corev1.Pod); finished(pod) {
			if err := c.delete(ctx, pod, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
				return err
			}
		}
	}
	return nil
}
