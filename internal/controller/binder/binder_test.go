package binder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// world is a binder on an API in memory, in a bubble where time is free.
type world struct {
	*testing.T
	user   *fake.Clientset // what tests do
	binder *fake.Clientset // what the binder does
	ctl    *Controller
	events chan string
	binds  atomic.Int32
	fail   atomic.Pointer[error] // of the next binding
	slow   time.Duration         // before every binding
}

func run(t *testing.T, f func(w *world), objs ...runtime.Object) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		api := controllertest.NewAPI(objs...)
		w := &world{T: t, user: api.Client(), binder: api.Client()}
		w.binder.PrependReactor("create", "pods", w.bind)
		recorder := record.NewFakeRecorder(1000)
		w.events = recorder.Events
		factory := informers.NewSharedInformerFactory(api.Client(), 0)
		w.ctl = New(Options{Client: slowClient{w.binder, w}, Informers: factory, Recorder: recorder, Logger: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		factory.Start(ctx.Done())
		done := make(chan error, 1)
		go func() { done <- w.ctl.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
			factory.Shutdown()
		}()
		w.settle()
		f(w)
	})
}

// slowClient takes its time with bindings: outside of the fake, which holds a lock during requests.
type slowClient struct {
	kubernetes.Interface
	w *world
}

type slowCore struct {
	corev1client.CoreV1Interface
	w *world
}

type slowPods struct {
	corev1client.PodInterface
	w *world
}

func (c slowClient) CoreV1() corev1client.CoreV1Interface { return slowCore{c.Interface.CoreV1(), c.w} }

func (c slowCore) Pods(namespace string) corev1client.PodInterface {
	return slowPods{c.CoreV1Interface.Pods(namespace), c.w}
}

func (p slowPods) Bind(ctx context.Context, b *corev1.Binding, o metav1.CreateOptions) error {
	if p.w.slow > 0 {
		<-time.After(p.w.slow)
	}
	return p.PodInterface.Bind(ctx, b, o)
}

// bind is the API server's part: it refuses a pod that is another, has a node or is being deleted.
func (w *world) bind(action clienttesting.Action) (bool, runtime.Object, error) {
	if action.GetSubresource() != "binding" {
		return false, nil, nil
	}
	w.binds.Add(1)
	if err := w.fail.Swap(nil); err != nil {
		return true, nil, *err
	}
	b := action.(clienttesting.CreateActionImpl).Object.(*corev1.Binding)
	pods := w.user.CoreV1().Pods(b.Namespace)
	pod, err := pods.Get(w.Context(), b.Name, metav1.GetOptions{})
	if err != nil {
		return true, nil, err
	}
	if pod.UID != b.UID || pod.Spec.NodeName != "" || pod.DeletionTimestamp != nil {
		return true, nil, apierrors.NewConflict(corev1.Resource("pods/binding"), b.Name, errors.New("already assigned"))
	}
	pod.Spec.NodeName = b.Target.Name
	_, err = pods.Update(w.Context(), pod, metav1.UpdateOptions{})
	return true, nil, err
}

// settle has everything happen that needs no time but retries of the first moment.
func (w *world) settle() {
	<-time.After(time.Millisecond)
	synctest.Wait()
}

func (w *world) create(objs ...runtime.Object) {
	w.Helper()
	for _, obj := range objs {
		var err error
		switch o := obj.(type) {
		case *corev1.Pod:
			_, err = w.user.CoreV1().Pods(o.Namespace).Create(w.Context(), o, metav1.CreateOptions{})
		case *corev1.Node:
			_, err = w.user.CoreV1().Nodes().Create(w.Context(), o, metav1.CreateOptions{})
		}
		if err != nil {
			w.Fatal(err)
		}
	}
	w.settle()
}

func (w *world) changeNode(name string, change func(*corev1.Node)) {
	w.Helper()
	n, err := w.user.CoreV1().Nodes().Get(w.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	change(n)
	if _, err := w.user.CoreV1().Nodes().Update(w.Context(), n, metav1.UpdateOptions{}); err != nil {
		w.Fatal(err)
	}
	w.settle()
}

func (w *world) pod(name string) *corev1.Pod {
	w.Helper()
	p, err := w.user.CoreV1().Pods("default").Get(w.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	return p
}

func (w *world) wantNode(name, node string) {
	w.Helper()
	if got := w.pod(name).Spec.NodeName; got != node {
		w.Errorf("pod %s is on %q, want %q", name, got, node)
	}
}

func (w *world) wantEvent(want string) {
	w.Helper()
	select {
	case got := <-w.events:
		if got != want {
			w.Errorf("event %q, want %q", got, want)
		}
	default:
		if want != "" {
			w.Errorf("no event, want %q", want)
		}
	}
}

func TestBindsAtOnce(t *testing.T) {
	run(t, func(w *world) {
		w.wantNode("early", "a") // it was there before the controller
		w.wantEvent("Normal Scheduled Successfully assigned default/early to a")
		began := time.Now()
		w.create(podOf("p"))
		w.wantNode("p", "b")
		if took := time.Since(began); took > time.Millisecond {
			t.Errorf("took %s", took)
		}
		if n := w.binds.Load(); n != 2 {
			t.Errorf("%d bindings for 2 pods", n)
		}
	}, readyNode("a"), readyNode("b"), podOf("early"))
}

func TestWhoIsNotBound(t *testing.T) {
	gone := metav1.Now()
	for name, change := range map[string]func(*corev1.Pod){
		"another scheduler": func(p *corev1.Pod) { p.Spec.SchedulerName = "mine" },
		"gates":             func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}} },
		"being deleted": func(p *corev1.Pod) {
			p.DeletionTimestamp, p.Finalizers = &gone, []string{"example.org/f"}
		},
		"finished": func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"has one":  func(p *corev1.Pod) { p.Spec.NodeName = "elsewhere" },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(w *world) {
				if n := w.binds.Load(); n != 0 {
					t.Errorf("%d bindings", n)
				}
				w.wantEvent("")
			}, readyNode("a"), podOf("p", change))
		})
	}
}

// A gate that is taken away lets the pod go.
func TestGate(t *testing.T) {
	run(t, func(w *world) {
		p := w.pod("p")
		p.Spec.SchedulingGates = nil
		if _, err := w.user.CoreV1().Pods("default").Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.settle()
		w.wantNode("p", "a")
	}, readyNode("a"), podOf("p", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}} }))
}

// A pod that fits nowhere says why, once, and is bound when something changes that helps; nothing is polled.
func TestUnschedulable(t *testing.T) {
	run(t, func(w *world) {
		w.create(podOf("p", selects("disk", "ssd")))
		why := "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector." + hint
		w.wantEvent("Warning FailedScheduling " + why)
		c := w.pod("p").Status.Conditions
		if len(c) != 1 || c[0].Type != corev1.PodScheduled || c[0].Status != corev1.ConditionFalse || c[0].Reason != "Unschedulable" || c[0].Message != why || c[0].LastTransitionTime.IsZero() {
			t.Errorf("conditions %+v", c)
		}
		since, writes := c[0].LastTransitionTime, controllertest.Writes(w.binder)["update pods/status"]
		<-time.After(time.Hour)
		w.changeNode("a", func(n *corev1.Node) { n.Status.Conditions[0].LastHeartbeatTime = metav1.Now() })
		if n := controllertest.Writes(w.binder)["update pods/status"]; n != writes {
			t.Errorf("%d writes while nothing happened", n-writes)
		}
		w.create(readyNode("b"))
		w.wantEvent("Warning FailedScheduling 0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector." + hint)
		if c := w.pod("p").Status.Conditions; len(c) != 1 || !c[0].LastTransitionTime.Equal(&since) {
			t.Errorf("another reason is another transition: %+v", c)
		}
		w.changeNode("b", labelled("disk", "ssd"))
		w.wantNode("p", "b")
	}, readyNode("a"))
}

func TestWhatHelpsAWaitingPod(t *testing.T) {
	for name, test := range map[string]struct {
		node *corev1.Node
		pod  *corev1.Pod
		help func(*world)
	}{
		"the node gets ready":      {readyNode("a", ready(corev1.ConditionUnknown)), podOf("p"), func(w *world) { w.changeNode("a", ready(corev1.ConditionTrue)) }},
		"the cordon is taken away": {readyNode("a", cordoned), podOf("p"), func(w *world) { w.changeNode("a", func(n *corev1.Node) { n.Spec.Unschedulable = false }) }},
		"the taint is taken away":  {readyNode("a", tainted("t", corev1.TaintEffectNoExecute)), podOf("p"), func(w *world) { w.changeNode("a", func(n *corev1.Node) { n.Spec.Taints = nil }) }},
		"the node states more":     {readyNode("a", has("cpu=1")), podOf("p", requests("cpu=2")), func(w *world) { w.changeNode("a", has("cpu=2")) }},
		"a pod is deleted": {readyNode("a", has("pods=1")), podOf("p"), func(w *world) {
			if err := w.user.CoreV1().Pods("default").Delete(t.Context(), "first", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
				w.Fatal(err)
			}
			w.settle()
		}},
		"a pod ends": {readyNode("a", has("pods=1")), podOf("p"), func(w *world) {
			first := w.pod("first")
			first.Status.Phase = corev1.PodSucceeded
			if _, err := w.user.CoreV1().Pods("default").UpdateStatus(t.Context(), first, metav1.UpdateOptions{}); err != nil {
				w.Fatal(err)
			}
			w.settle()
		}},
		"the pod learns to tolerate": {readyNode("a", tainted("t", corev1.TaintEffectNoSchedule)), podOf("p"), func(w *world) {
			p := w.pod("p")
			tolerates(corev1.Toleration{Operator: corev1.TolerationOpExists})(p)
			p.Generation++
			if _, err := w.user.CoreV1().Pods("default").Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
				w.Fatal(err)
			}
			w.settle()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(w *world) {
				w.create(test.pod)
				w.wantNode("p", "")
				test.help(w)
				w.wantNode("p", "a")
			}, test.node, podOf("first", func(p *corev1.Pod) { p.Spec.NodeName = "a" }))
		})
	}
}

// Pods that come together are spread although none of their bindings has been seen yet, and no node is crowded.
func TestManyAtOnce(t *testing.T) {
	const pods = 300
	var objs []runtime.Object
	for i := range 4 {
		objs = append(objs, readyNode(fmt.Sprintf("n%d", i), has("pods=70")))
	}
	for i := range pods {
		objs = append(objs, podOf(fmt.Sprintf("p%d", i), app("web")))
	}
	run(t, func(w *world) {
		count := map[string]int{}
		list, err := w.user.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list.Items {
			count[p.Spec.NodeName]++
		}
		if len(count) != 5 || count[""] != pods-4*70 {
			t.Errorf("pods by node: %v, want 70 each and the rest nowhere", count)
		}
		if n := w.binds.Load(); n != 4*70 {
			t.Errorf("%d bindings, want one for each of %d pods", n, 4*70)
		}
	}, objs...)
}

// What a failed binding reserved is free again; it is tried again, soon.
func TestBindingFails(t *testing.T) {
	for name, failure := range map[string]error{
		"an error": apierrors.NewInternalError(errors.New("etcd is away")), "a timeout": context.DeadlineExceeded,
		"a conflict": apierrors.NewConflict(corev1.Resource("pods/binding"), "p", errors.New("raced")),
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(w *world) {
				w.fail.Store(&failure)
				w.create(podOf("p"))
				<-time.After(time.Second)
				synctest.Wait()
				w.wantNode("p", "a")
				if n := w.binds.Load(); n != 2 {
					t.Errorf("%d bindings", n)
				}
			}, readyNode("a", has("pods=1")))
		})
	}
}

// A pod that is deleted while it is being bound, and made anew, is bound as the new one.
func TestReplacedWhileBinding(t *testing.T) {
	run(t, func(w *world) {
		w.slow = time.Second
		w.create(podOf("p"))
		if err := w.user.CoreV1().Pods("default").Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.create(podOf("p", func(p *corev1.Pod) { p.UID = types.UID("second") }))
		<-time.After(10 * time.Second)
		synctest.Wait()
		w.wantNode("p", "a")
	}, readyNode("a", has("pods=1")))
}

// Whatever happens in whatever order: no node is crowded, what the controller counts is what is there, and no pod
// waits while there is room.
func TestRandomWalk(t *testing.T) {
	for seed := range uint64(20) {
		run(t, func(w *world) {
			r := rand.New(rand.NewPCG(seed, 1))
			w.slow = time.Duration(r.IntN(3)) * 100 * time.Microsecond
			for step := range 120 {
				w.step(r, step)
			}
			<-time.After(time.Minute)
			synctest.Wait()
			w.checkAll(seed)
		}, readyNode("n0", has("pods=5")))
	}
}

func (w *world) step(r *rand.Rand, step int) {
	name, node := fmt.Sprintf("p%d", r.IntN(30)), fmt.Sprintf("n%d", r.IntN(4))
	switch ctx, pods, nodes := w.Context(), w.user.CoreV1().Pods("default"), w.user.CoreV1().Nodes(); r.IntN(6) {
	case 0, 1, 2:
		_, _ = pods.Create(ctx, podOf(name, app(name[:2]), func(p *corev1.Pod) { p.UID = types.UID(fmt.Sprint(step)) }), metav1.CreateOptions{})
	case 3:
		_ = pods.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))})
	case 4:
		_, _ = nodes.Create(ctx, readyNode(node, has("pods=5")), metav1.CreateOptions{})
	case 5:
		if r.IntN(3) == 0 {
			_ = nodes.Delete(ctx, node, metav1.DeleteOptions{})
		}
	}
	<-time.After(time.Duration(r.IntN(300)) * time.Microsecond)
}

func (w *world) checkAll(seed uint64) {
	list, err := w.user.CoreV1().Pods("").List(w.Context(), metav1.ListOptions{})
	if err != nil {
		w.Fatal(err)
	}
	nodes, err := w.user.CoreV1().Nodes().List(w.Context(), metav1.ListOptions{})
	if err != nil {
		w.Fatal(err)
	}
	on := map[string]int{}
	for _, p := range list.Items {
		on[p.Spec.NodeName]++
	}
	free := 0
	for _, n := range nodes.Items {
		if on[n.Name] > 5 {
			w.Errorf("seed %d: %d pods on %s", seed, on[n.Name], n.Name)
		}
		free += 5 - on[n.Name]
	}
	if on[""] > 0 && free > 0 {
		w.Errorf("seed %d: %d pods wait, and there is room for %d", seed, on[""], free)
	}
	w.ctl.mu.Lock()
	defer w.ctl.mu.Unlock()
	for name, l := range w.ctl.loads {
		if l.pods != on[name] {
			w.Errorf("seed %d: counts %d pods on %s, there are %d", seed, l.pods, name, on[name])
		}
	}
	if len(w.ctl.placed) != len(list.Items)-on[""] || len(w.ctl.waiting) != on[""] {
		w.Errorf("seed %d: %d placed, %d waiting of %d", seed, len(w.ctl.placed), len(w.ctl.waiting), len(list.Items))
	}
}
