// Package binder binds pods to nodes. It is not a scheduler: it looks for a node that a pod fits on, spreads pods by
// count, and knows nothing of preferences, pod affinity, topology spread, priorities or preemption. Who needs those runs
// Kubernetes' scheduler instead, with --disable-controllers binder or another schedulerName.
//
// What flows in: Nodes and Pods from shared informers. What flows out: bindings (POST pods/binding), and for a pod that
// fits nowhere the condition PodScheduled=False with an event FailedScheduling.
//
// A pod is bound that has no node, no scheduling gates, is not being deleted and names no scheduler or
// "default-scheduler". A node is for it (plan.go) that is Ready and schedulable, or whose being so it tolerates, matches
// its node selector and required node affinity, has no taint NoSchedule or NoExecute that it does not tolerate, has its
// host ports free, and has what it requests left of what the node states as allocatable: CPU, memory, devices and
// the number of pods.
//
// Invariants: a pod is bound as soon as it is seen, there is no other delay; what is being bound counts as if it were
// bound, so that pods which come together are spread and never crowd a node; a pod that fits nowhere is looked at
// again when a node or a pod changes in a way that may help, never by the clock; objects of informers are not modified.
//
// It refuses to move a pod, or to bind twice: the API decides, by the pod's UID. Tests: plan by table; the controller
// against an API in memory.
package binder

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/endpointd/endpointd/internal/controller/loop"
)

// DefaultWorkers is how many binding requests are in flight at most.
const DefaultWorkers = 16

// A binding that failed is tried again after the first of these, then after twice as long every time, up to the second.
const (
	firstRetry = 10 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// Options configure a Controller. Client and Informers must be set.
type Options struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory // started by the caller, after New
	Recorder  record.EventRecorder            // nil: no events
	Logger    *slog.Logger                    // nil: slog.Default()
	Workers   int                             // 0: DefaultWorkers
}

// Controller binds pods.
type Controller struct {
	client   kubernetes.Interface
	recorder record.EventRecorder
	loop     *loop.Loop
	pods     cache.Store

	mu      sync.Mutex                        // guards what follows
	loads   map[string]*load                  // node → what is on it
	placed  map[types.UID]*placement          // pod → where it is, or is being bound to
	waiting map[types.NamespacedName]struct{} // pods that fit nowhere
}

// placement is a pod that counts on a node.
type placement struct {
	node    string
	demand  demand
	version int64 // of the pod's spec: its generation
}

// New makes a controller and registers it with the informers; nothing is written before Run.
func New(o Options) *Controller {
	if o.Workers == 0 {
		o.Workers = DefaultWorkers
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Recorder == nil {
		o.Recorder = &record.FakeRecorder{}
	}
	c := &Controller{
		client: o.Client, recorder: o.Recorder,
		loop:    loop.New(loop.Options{Workers: o.Workers, FirstRetry: firstRetry, LastRetry: lastRetry, Logger: o.Logger.With("component", "binder")}),
		loads:   map[string]*load{},
		placed:  map[types.UID]*placement{},
		waiting: map[types.NamespacedName]struct{}{},
	}
	core := o.Informers.Core().V1()
	c.pods = core.Pods().Informer().GetStore()
	c.loop.Listen(core.Nodes().Informer(), c.nodeChanged)
	c.loop.Listen(core.Pods().Informer(), c.podChanged)
	return c
}

// Run binds until ctx ends, and returns when its workers have ended and the informers have forgotten the controller. It
// may be called once.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.reconcile) }

func (c *Controller) nodeChanged(old, now any) {
	before, _ := old.(*corev1.Node)
	after, _ := now.(*corev1.Node)
	c.mu.Lock()
	defer c.mu.Unlock()
	if after == nil {
		if l := c.loads[before.Name]; l != nil {
			l.node = nil
			c.forget(before.Name)
		}
		c.retry() // the message counts nodes
		return
	}
	c.load(after.Name).node = after
	if before == nil || !sameForPods(before, after) {
		c.retry()
	}
}

// sameForPods says whether the change, mostly a heartbeat, makes no difference here.
func sameForPods(a, b *corev1.Node) bool {
	return a.Spec.Unschedulable == b.Spec.Unschedulable && readiness(a) == readiness(b) && maps.Equal(a.Labels, b.Labels) &&
		equality.Semantic.DeepEqual(a.Spec.Taints, b.Spec.Taints) && equality.Semantic.DeepEqual(a.Status.Allocatable, b.Status.Allocatable)
}

func (c *Controller) podChanged(old, now any) {
	before, _ := old.(*corev1.Pod)
	pod, _ := now.(*corev1.Pod)
	c.mu.Lock()
	defer c.mu.Unlock()
	if before != nil && (pod == nil || pod.UID != before.UID) {
		c.remove(before.UID)
		delete(c.waiting, keyOf(before))
	}
	switch {
	case pod == nil:
	case finished(pod):
		c.remove(pod.UID)
	case pod.Spec.NodeName != "":
		delete(c.waiting, keyOf(pod))
		c.place(pod, pod.Spec.NodeName)
	case wanted(pod) && (before == nil || before.UID != pod.UID || !sameForNodes(before, pod)):
		c.loop.Add(keyOf(pod))
	}
}

func keyOf(pod *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}

// sameForNodes says whether the change of a pod that is not bound, mostly of its status, makes no difference here.
func sameForNodes(a, b *corev1.Pod) bool {
	return a.Generation == b.Generation && maps.Equal(a.Labels, b.Labels) && equality.Semantic.DeepEqual(a.Spec, b.Spec)
}

// finished says that the pod's containers have ended for good: it takes nothing any more.
func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// wanted says that the pod waits for us.
func wanted(pod *corev1.Pod) bool {
	return pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil && len(pod.Spec.SchedulingGates) == 0 && !finished(pod) &&
		(pod.Spec.SchedulerName == "" || pod.Spec.SchedulerName == corev1.DefaultSchedulerName)
}

// place counts the pod on the node. The caller holds mu.
func (c *Controller) place(pod *corev1.Pod, node string) {
	p := c.placed[pod.UID]
	if p != nil && p.node == node && p.version == pod.Generation {
		return
	}
	if p != nil {
		c.remove(pod.UID)
	}
	p = &placement{node: node, demand: demandOf(pod), version: pod.Generation}
	c.placed[pod.UID] = p
	c.load(node).add(p.demand, 1)
}

// remove counts the pod out and lets others try. The caller holds mu.
func (c *Controller) remove(pod types.UID) {
	p := c.placed[pod]
	if p == nil {
		return
	}
	delete(c.placed, pod)
	c.loads[p.node].add(p.demand, -1)
	c.forget(p.node)
	c.retry()
}

// load is made for a node, or for pods of a Node that is not seen yet. The caller holds mu.
func (c *Controller) load(node string) *load {
	l := c.loads[node]
	if l == nil {
		l = newLoad()
		c.loads[node] = l
	}
	return l
}

// forget drops a load that is about nothing. The caller holds mu.
func (c *Controller) forget(node string) {
	if l := c.loads[node]; l.node == nil && l.pods == 0 {
		delete(c.loads, node)
	}
}

// retry has the pods looked at that fit nowhere. The caller holds mu.
func (c *Controller) retry() {
	for key := range c.waiting {
		c.loop.Add(key)
	}
	clear(c.waiting)
}

// reconcile binds one pod, or says why it can not be.
func (c *Controller) reconcile(ctx context.Context, key types.NamespacedName) error {
	obj, ok, _ := c.pods.GetByKey(key.String())
	if !ok {
		return nil
	}
	pod := obj.(*corev1.Pod)
	if !wanted(pod) {
		return nil
	}
	node, why := c.choose(pod)
	switch {
	case why != "":
		return c.refuse(ctx, pod, why)
	case node == "":
		return nil
	}
	err := c.client.CoreV1().Pods(pod.Namespace).Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{})
	if err == nil {
		c.recorder.Eventf(pod, corev1.EventTypeNormal, "Scheduled", "Successfully assigned %s to %s", key, node)
		return nil
	}
	c.release(pod, node)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) && !c.still(pod) {
		return nil // it is gone, or bound by somebody else, and the watch has shown so
	}
	return fmt.Errorf("bind pod %s to node %s: %w", key, node, err)
}

// choose reserves room on a node. Both results are empty where the pod has got a place since.
func (c *Controller) choose(pod *corev1.Pod) (node, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.placed[pod.UID] != nil {
		return "", ""
	}
	d := demandOf(pod)
	if node, why = plan(pod, d, c.loads); why != "" {
		c.waiting[keyOf(pod)] = struct{}{}
		return "", why
	}
	c.placed[pod.UID] = &placement{node: node, demand: d, version: pod.Generation}
	c.loads[node].add(d, 1)
	return node, ""
}

// release takes a reservation back, unless the watch has shown the pod on its node after all.
func (c *Controller) release(pod *corev1.Pod, node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.placed[pod.UID]; p != nil && p.node == node && c.unbound(pod) {
		c.remove(pod.UID)
	}
}

// unbound says whether the newest version that is known still waits for a node.
func (c *Controller) unbound(pod *corev1.Pod) bool {
	obj, ok, _ := c.pods.GetByKey(keyOf(pod).String())
	if !ok {
		return true
	}
	now := obj.(*corev1.Pod)
	return now.UID != pod.UID || now.Spec.NodeName == ""
}

func (c *Controller) still(pod *corev1.Pod) bool {
	obj, ok, _ := c.pods.GetByKey(keyOf(pod).String())
	return ok && wanted(obj.(*corev1.Pod))
}

// refuse tells the user why the pod waits, once for each reason.
func (c *Controller) refuse(ctx context.Context, pod *corev1.Pod, why string) error {
	for _, have := range pod.Status.Conditions {
		if have.Type == corev1.PodScheduled && have.Status == corev1.ConditionFalse && have.Reason == corev1.PodReasonUnschedulable && have.Message == why {
			return nil
		}
	}
	c.recorder.Event(pod, corev1.EventTypeWarning, "FailedScheduling", why)
	next := pod.DeepCopy()
	condition := corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: why,
		LastTransitionTime: metav1.Now(), ObservedGeneration: pod.Generation,
	}
	i := slices.IndexFunc(next.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodScheduled })
	if i < 0 {
		next.Status.Conditions = append(next.Status.Conditions, condition)
	} else {
		if next.Status.Conditions[i].Status == condition.Status {
			condition.LastTransitionTime = next.Status.Conditions[i].LastTransitionTime
		}
		next.Status.Conditions[i] = condition
	}
	_, err := c.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) && strings.Contains(err.Error(), "UID") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pod %s: write that it fits nowhere: %w", keyOf(pod), err)
	}
	return nil
}
