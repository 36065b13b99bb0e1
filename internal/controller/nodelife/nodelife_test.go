package nodelife

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// world is the controller on an API in memory, with agents that renew their Leases, in a bubble where time is free.
type world struct {
	*testing.T
	api    *controllertest.API
	user   *fake.Clientset
	writer *fake.Clientset
	events chan string
	mu     sync.Mutex // guards alive
	alive  map[string]bool
	down   atomic.Bool // the API fails for the controller's reads
}

func run(t *testing.T, o Options, f func(w *world), objs ...runtime.Object) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		api := controllertest.NewAPI(objs...)
		w := &world{T: t, api: api, user: api.Client(), writer: api.Client(), alive: map[string]bool{}}
		w.writer.PrependReactor("get", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
			if w.down.Load() {
				return true, nil, apierrors.NewInternalError(errors.New("etcd is away"))
			}
			return false, nil, nil
		})
		recorder := record.NewFakeRecorder(10000)
		w.events = recorder.Events
		factory := informers.NewSharedInformerFactory(api.Client(), 0)
		o.Client, o.Informers, o.Leases, o.Recorder, o.Logger = w.writer, factory, NewLeases(api.Client()), recorder, slog.New(slog.DiscardHandler)
		c := New(o)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		factory.Start(ctx.Done())
		running.Go(func() { o.Leases.RunWithContext(ctx) })
		running.Go(func() {
			if err := c.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
		})
		running.Go(func() { w.agents(ctx) })
		defer func() {
			cancel()
			running.Wait()
			factory.Shutdown()
		}()
		w.pass(0)
		f(w)
	})
}

// agents renew the Leases of those that are alive, every half second.
func (w *world) agents(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(500 * time.Millisecond):
		}
		w.mu.Lock()
		for name, alive := range w.alive {
			if alive {
				w.renew(name)
			}
		}
		w.mu.Unlock()
	}
}

func (w *world) renew(name string) {
	leases := w.user.CoordinationV1().Leases("kube-node-lease")
	now := &metav1.MicroTime{Time: time.Now()}
	l, err := leases.Get(w.Context(), name, metav1.GetOptions{})
	if err == nil {
		l.Spec.RenewTime = now
		_, err = leases.Update(w.Context(), l, metav1.UpdateOptions{})
	} else {
		_, err = leases.Create(w.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: coordinationv1.LeaseSpec{RenewTime: now, LeaseDurationSeconds: new(int32(1))}}, metav1.CreateOptions{})
	}
	if err != nil && w.Context().Err() == nil {
		w.Error(err)
	}
}

// start makes agents renew, at once and from then on.
func (w *world) start(names ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range names {
		w.alive[n] = true
		w.renew(n)
	}
}

// kill makes agents silent; their last renewal is now.
func (w *world) kill(names ...string) {
	w.mu.Lock()
	for _, n := range names {
		w.renew(n)
		w.alive[n] = false
	}
	w.mu.Unlock()
	synctest.Wait()
}

func (w *world) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// at lets time pass up to a moment before d, then checks that nothing has happened, and then past it.
func (w *world) at(d time.Duration, before, after func()) {
	w.Helper()
	w.pass(d - time.Millisecond)
	before()
	w.pass(2 * time.Millisecond)
	after()
}

func (w *world) node(name string) *corev1.Node {
	w.Helper()
	n, err := w.user.CoreV1().Nodes().Get(w.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	return n
}

func (w *world) changeNode(name string, change func(*corev1.Node)) {
	w.Helper()
	n := w.node(name)
	change(n)
	if _, err := w.user.CoreV1().Nodes().Update(w.Context(), n, metav1.UpdateOptions{}); err != nil {
		w.Fatal(err)
	}
	synctest.Wait()
}

// state of a node is its Ready condition and its taints.
func (w *world) state(name string) string {
	w.Helper()
	n := w.node(name)
	parts := []string{string(condition(n, corev1.NodeReady))}
	for _, t := range n.Spec.Taints {
		parts = append(parts, strings.TrimPrefix(t.Key, "node.kubernetes.io/")+":"+string(t.Effect))
	}
	slices.Sort(parts[1:])
	return strings.Join(parts, " ")
}

// pods are those that there are: "name", with "!" if not ready, with "†" if being deleted.
func (w *world) pods() string {
	w.Helper()
	list, err := w.user.CoreV1().Pods("").List(w.Context(), metav1.ListOptions{})
	if err != nil {
		w.Fatal(err)
	}
	var out []string
	for i := range list.Items {
		p := &list.Items[i]
		name := p.Name
		if !podReady(p) {
			name += "!"
		}
		if p.DeletionTimestamp != nil {
			name += "†"
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

func (w *world) want(what, got, want string) {
	w.Helper()
	if got != want {
		w.Errorf("%s: %q, want %q", what, got, want)
	}
}

func nodeOf(name string, changes ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, kind := range []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure} {
		status := corev1.ConditionFalse
		if kind == corev1.NodeReady {
			status = corev1.ConditionTrue
		}
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: kind, Status: status})
	}
	for _, change := range changes {
		change(n)
	}
	return n
}

func podOn(node, name string, changes ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{NodeName: node, TerminationGracePeriodSeconds: new(int64(30))},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{
			{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.ContainersReady, Status: corev1.ConditionTrue}}}}
	for _, change := range changes {
		change(p)
	}
	return p
}

func tolerating(key string, seconds *int64) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: seconds})
	}
}

func mirror(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }

const unreachable = corev1.TaintNodeUnreachable

// A silent node: to the millisecond, everything that follows, and what does not.
func TestNodeDies(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.start("a", "b")
		w.pass(10 * time.Second)
		w.want("while alive", w.state("a")+" "+w.pods(), "True daemon elsewhere mirror plain soon")
		if n := controllertest.Writes(w.writer); len(n) > 0 {
			t.Errorf("writes while nothing happened: %v", n)
		}
		w.kill("a")
		w.at(silence, func() { w.want("before", w.state("a")+" "+w.pods(), "True daemon elsewhere mirror plain soon") },
			func() {
				w.want("node", w.state("a"), "Unknown unreachable:NoExecute unreachable:NoSchedule")
				w.want("pods", w.pods(), "daemon! elsewhere mirror! plain!† soon!")
			})
		w.want("the other node", w.state("b"), "True")
		for _, kind := range unknown {
			if s := condition(w.node("a"), kind); s != corev1.ConditionUnknown {
				t.Errorf("%s is %s", kind, s)
			}
		}
		p, err := w.user.CoreV1().Pods("default").Get(t.Context(), "daemon", metav1.GetOptions{})
		if err != nil || len(p.Status.Conditions) != 2 || p.Status.Conditions[1].Status != corev1.ConditionTrue {
			t.Errorf("other conditions of the pod: %v, %v", p.Status.Conditions, err)
		}
		// soon tolerates it for five seconds, from the taint on.
		w.at(5*time.Second-time.Millisecond, func() { w.want("before 5 s", w.pods(), "daemon! elsewhere mirror! plain!† soon!") },
			func() { w.want("after 5 s", w.pods(), "daemon! elsewhere mirror! plain!† soon!†") })
		// The agent is back: the taints go with its first renewal; Ready is its own to say.
		w.start("a")
		w.pass(0)
		w.want("back", w.state("a"), "Unknown")
		w.changeNode("a", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionTrue })
		w.pass(time.Minute)
		w.want("at last", w.state("a"), "True")
	}, nodeOf("a"), nodeOf("b"),
		podOn("a", "plain"), podOn("a", "mirror", mirror), podOn("a", "daemon", tolerating(unreachable, nil)),
		podOn("a", "soon", tolerating(unreachable, new(int64(5)))), podOn("b", "elsewhere"))
}

// A node that comes back in time keeps the pods that tolerated its absence.
func TestBackInTime(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.start("a", "b")
		w.kill("a")
		w.pass(silence + 4*time.Second)
		w.start("a")
		w.pass(time.Minute)
		w.want("pods", w.pods(), "soon!")
		w.kill("a")
		w.pass(silence + 4*time.Second)
		w.want("the time begins anew", w.pods(), "soon!")
		w.pass(2 * time.Second)
		w.want("and ends", w.pods(), "soon!†")
	}, nodeOf("a"), nodeOf("b"), podOn("a", "soon", tolerating(unreachable, new(int64(5)))))
}

func TestAllNodesSilent(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.start("a", "b")
		w.kill("a", "b")
		w.pass(silence + time.Millisecond)
		w.want("after a period", w.state("a")+" "+w.pods(), "True p")
		w.pass(silence)
		w.want("after two", w.state("a")+" "+w.pods(), "Unknown unreachable:NoSchedule p!")
		w.pass(time.Hour)
		w.want("for long", w.state("b")+" "+w.pods(), "Unknown unreachable:NoSchedule p!")
		w.start("b")
		w.pass(0)
		w.want("b is back", w.state("b"), "Unknown")
		w.at(silence, func() { w.want("a is spared", w.state("a")+" "+w.pods(), "Unknown unreachable:NoSchedule p!") },
			func() {
				w.want("and then not", w.state("a")+" "+w.pods(), "Unknown unreachable:NoExecute unreachable:NoSchedule p!†")
			})
	}, nodeOf("a"), nodeOf("b"), podOn("a", "p"))
}

// An API that can not be read says nothing about nodes.
func TestAPIAway(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.start("a", "b")
		w.down.Store(true)
		w.kill("a")
		w.pass(time.Minute)
		w.want("while it is away", w.state("a"), "True")
		w.down.Store(false)
		w.pass(silence)
		w.want("a period after", w.state("a"), "Unknown unreachable:NoExecute unreachable:NoSchedule")
	}, nodeOf("a"), nodeOf("b"))
}

// Who never had an agent is left alone.
func TestByHand(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.pass(time.Hour)
		w.want("by hand", w.state("hand"), "True")
		w.want("unknown by hand", w.state("unknown"), "Unknown unreachable:NoSchedule")
		if n := controllertest.Writes(w.writer); len(n) > 0 {
			t.Errorf("writes: %v", n)
		}
	}, nodeOf("hand"), nodeOf("unknown", func(n *corev1.Node) {
		n.Status.Conditions[0].Status = corev1.ConditionUnknown
		n.Spec.Taints = []corev1.Taint{{Key: unreachable, Effect: corev1.TaintEffectNoSchedule}}
	}), podOn("hand", "p"))
}

func TestNotReadyAndCordon(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.start("a", "b")
		w.changeNode("a", func(n *corev1.Node) { n.Spec.Unschedulable = true })
		w.want("cordoned", w.state("a"), "True example.org/x:NoSchedule unschedulable:NoSchedule")
		w.changeNode("a", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionFalse })
		w.want("not ready", w.state("a"), "False example.org/x:NoSchedule not-ready:NoSchedule unschedulable:NoSchedule")
		w.changeNode("a", func(n *corev1.Node) { n.Spec.Unschedulable = false })
		w.want("uncordoned", w.state("a"), "False example.org/x:NoSchedule not-ready:NoSchedule")
		w.at(notReadyGrace, func() { w.want("before the grace", w.pods(), "p") },
			func() {
				w.want("after it", w.state("a")+" "+w.pods(), "False example.org/x:NoSchedule not-ready:NoExecute not-ready:NoSchedule p†")
			})
		w.changeNode("a", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionTrue })
		w.want("ready", w.state("a"), "True example.org/x:NoSchedule")
	}, nodeOf("a", func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "example.org/x", Effect: corev1.TaintEffectNoSchedule}}
	}), nodeOf("b"), podOn("a", "p"))
}

func TestManyPodsOfADeadNode(t *testing.T) {
	objs := []runtime.Object{nodeOf("a"), nodeOf("b")}
	for i := range 200 {
		objs = append(objs, podOn("a", fmt.Sprintf("p%d", i), tolerating(unreachable, nil)))
	}
	run(t, Options{}, func(w *world) {
		w.start("a", "b")
		w.kill("a")
		w.pass(silence)
		if n := strings.Count(w.pods(), "!"); n != 200 {
			t.Errorf("%d of 200 pods are not ready", n)
		}
		if n := controllertest.Writes(w.writer)["patch pods/status"]; n != 200 {
			t.Errorf("%d writes for 200 pods", n)
		}
	}, objs...)
}

func TestPodCIDRs(t *testing.T) {
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/22"), netip.MustParsePrefix("fd00:244::/56")}
	has := func(cidrs ...string) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Spec.PodCIDR, n.Spec.PodCIDRs = cidrs[0], cidrs }
	}
	run(t, Options{PodCIDRs: cidrs}, func(w *world) {
		ranges := func() string {
			list, err := w.user.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var out, all []string
			for _, n := range list.Items {
				out = append(out, n.Name+"="+strings.Join(n.Spec.PodCIDRs, "+"))
				if len(n.Spec.PodCIDRs) > 0 && n.Spec.PodCIDR != n.Spec.PodCIDRs[0] {
					t.Errorf("%s: podCIDR %s", n.Name, n.Spec.PodCIDR)
				}
				all = append(all, n.Spec.PodCIDRs...)
			}
			slices.Sort(all)
			if len(slices.Compact(slices.Clone(all))) != len(all) {
				t.Errorf("given twice: %v", all)
			}
			return strings.Join(out, " ")
		}
		// Which of b and c is first is not said.
		got := ranges()
		one, other := "a=10.244.1.0/24 b=10.244.0.0/24+fd00:244::/64 c=10.244.2.0/24+fd00:244:0:1::/64", "a=10.244.1.0/24 b=10.244.2.0/24+fd00:244:0:1::/64 c=10.244.0.0/24+fd00:244::/64"
		if got != one && got != other {
			t.Errorf("ranges %s", got)
		}
		for _, n := range []string{"d", "e"} {
			if _, err := w.user.CoreV1().Nodes().Create(t.Context(), nodeOf(n), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			w.pass(0)
		}
		if !strings.HasSuffix(ranges(), " d=10.244.3.0/24+fd00:244:0:2::/64 e=") {
			t.Errorf("ranges %s", ranges())
		}
		if err := w.user.CoreV1().Nodes().Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.pass(0)
		if !strings.HasSuffix(ranges(), " e=10.244.1.0/24+fd00:244:0:3::/64") {
			t.Errorf("after a node has gone: %s", ranges())
		}
	}, nodeOf("a", has("10.244.1.0/24")), nodeOf("b"), nodeOf("c"))
}

// A range whose write failed is given to somebody else or again, never lost.
func TestPodCIDRWriteFails(t *testing.T) {
	run(t, Options{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/23")}}, func(w *world) {
		var fails atomic.Int32
		w.writer.PrependReactor("patch", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
			if fails.Add(1) > 2 {
				return false, nil, nil
			}
			return true, nil, apierrors.NewInternalError(errors.New("etcd is away"))
		})
		for _, n := range []string{"a", "b"} {
			if _, err := w.user.CoreV1().Nodes().Create(t.Context(), nodeOf(n), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		w.pass(time.Second)
		got := []string{w.node("a").Spec.PodCIDR, w.node("b").Spec.PodCIDR}
		slices.Sort(got)
		if !slices.Equal(got, []string{"10.244.0.0/24", "10.244.1.0/24"}) || fails.Load() != 4 {
			t.Errorf("ranges %v after %d writes", got, fails.Load())
		}
	})
}

func TestConflictingRanges(t *testing.T) {
	made := func(at int64, cidr string) func(*corev1.Node) {
		return func(n *corev1.Node) {
			n.CreationTimestamp, n.Spec.PodCIDR, n.Spec.PodCIDRs = metav1.Unix(at, 0), cidr, []string{cidr}
		}
	}
	run(t, Options{}, func(w *world) {
		network := func(name string) string { return string(condition(w.node(name), corev1.NodeNetworkUnavailable)) }
		w.want("the younger", network("a"), "True")
		w.want("the older", network("b"), "")
		w.want("another", network("c"), "")
		if e := <-w.events; !strings.Contains(e, "10.1.0.0/24 overlap 10.1.0.0/16 of node b") {
			t.Errorf("event %s", e)
		}
		if err := w.user.CoreV1().Nodes().Delete(t.Context(), "b", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.pass(0)
		w.want("when the older has gone", network("a"), "False")
	}, nodeOf("a", made(2000, "10.1.0.0/24")), nodeOf("b", made(1000, "10.1.0.0/16")), nodeOf("c", made(1000, "10.2.0.0/24")))
}

func TestOrphans(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.at(orphanGrace, func() { w.want("before", w.pods(), "by-hand here lost waiting") }, func() { w.want("after", w.pods(), "by-hand here waiting") })
		if err := w.user.CoreV1().Nodes().Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.pass(orphanGrace / 2)
		if _, err := w.user.CoreV1().Nodes().Create(t.Context(), nodeOf("a"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Minute)
		w.want("a Node that comes back in time", w.pods(), "by-hand here waiting")
		if err := w.user.CoreV1().Nodes().Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.down.Store(true)
		w.pass(time.Minute)
		w.want("while the API can not say", w.pods(), "by-hand here waiting")
		w.down.Store(false)
		w.pass(lastRetry + time.Second)
		w.want("at last", w.pods(), "by-hand waiting")
	}, nodeOf("a"), podOn("a", "here"), podOn("gone", "lost", func(p *corev1.Pod) { p.Status.HostIP = "10.200.0.11" }), podOn("never", "by-hand"), podOn("", "waiting"))
}

func TestEndedPods(t *testing.T) {
	ended := func(at int64, phase corev1.PodPhase) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.CreationTimestamp, p.Status.Phase, p.Status.Conditions = metav1.Unix(at, 0), phase, nil
		}
	}
	run(t, Options{MaxTerminated: 2}, func(w *world) {
		w.want("pods", w.pods(), "p3! p4! runs")
		p, err := w.user.CoreV1().Pods("default").Get(t.Context(), "runs", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		p.Status.Phase = corev1.PodSucceeded
		if _, err := w.user.CoreV1().Pods("default").UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.pass(0)
		w.want("the oldest goes", w.pods(), "p3! p4!")
	}, nodeOf("a"), podOn("a", "p1", ended(100, corev1.PodSucceeded)), podOn("a", "p2", ended(200, corev1.PodFailed)), podOn("a", "p3", ended(400, corev1.PodFailed)),
		podOn("a", "p4", ended(300, corev1.PodSucceeded)), podOn("a", "runs", func(p *corev1.Pod) { p.CreationTimestamp = metav1.Unix(50, 0) }))
}

func TestFree(t *testing.T) {
	for _, test := range []struct{ cluster, used, want string }{
		{"10.244.0.0/16", "", "10.244.0.0/24"},
		{"10.244.0.0/16", "10.244.0.0/24 10.244.2.0/24", "10.244.1.0/24"},
		{"10.244.0.0/16", "10.244.0.0/22", "10.244.4.0/24"},
		{"10.244.0.0/16", "10.244.0.128/25 10.244.1.7/32", "10.244.2.0/24"},
		{"10.244.0.0/24", "10.244.0.0/24", "no /24 is free in 10.244.0.0/24"},
		{"10.244.0.0/23", "10.0.0.0/8", "no /24 is free"},
		{"255.255.255.0/24", "255.255.255.0/24", "no /24 is free"},
		{"fd00:244::/56", "fd00:244::/64 fd00:244:0:1::/64 10.0.0.0/8", "fd00:244:0:2::/64"},
	} {
		p, err := free(netip.MustParsePrefix(test.cluster), prefixes(strings.Fields(test.used)))
		if got := p.String(); err == nil && got != test.want || err != nil && !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%s without %s: %s, %v; want %s", test.cluster, test.used, got, err, test.want)
		}
	}
}
