package register_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
	"github.com/endpointd/endpointd/internal/node/apitest"
	"github.com/endpointd/endpointd/internal/node/register"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// tolerated is the silence after which the failure detector acts.
const tolerated = 2750 * time.Millisecond

// world is one node and its API.
type world struct {
	t      *testing.T
	server *apitest.Server
	user   kubernetes.Interface // past the server
	reg    *register.Registration
	done   chan error
	cancel context.CancelFunc
	logs   *logs

	mu    sync.Mutex
	ready bool
}

type logs struct {
	mu sync.Mutex
	strings.Builder
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Builder.Write(b)
}

func (l *logs) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.String(), what)
}

// start runs the node n1; change may alter its options.
func start(t *testing.T, api *controllertest.API, change func(*register.Options)) *world {
	w := &world{t: t, user: api.Client(), server: apitest.New(api), done: make(chan error, 1), logs: &logs{}, ready: true}
	o := register.Options{
		Client: w.server.Client(), LeaseClient: w.server.Client(), Name: "n1", Version: "1.0",
		Addrs:    []netip.Addr{netip.MustParseAddr("10.200.0.11"), netip.MustParseAddr("fd00:200::11")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:0:1::/64")},
		Labels:   map[string]string{corev1.LabelTopologyZone: "a"},
		Taints:   []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}},
		Capacity: func() corev1.ResourceList { return register.Machine("/") },
		Pressure: func() register.Pressure { return register.Pressure{} },
		Ready: func() (bool, string, string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.ready, "", ""
		},
		Logger: slog.New(slog.NewTextHandler(w.logs, nil)),
	}
	if change != nil {
		change(&o)
	}
	reg, err := register.New(o)
	if err != nil {
		t.Fatal(err)
	}
	w.reg = reg
	ctx, cancel := context.WithCancel(t.Context())
	w.cancel = cancel
	go func() { w.done <- reg.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err, ok := <-w.done; ok && err != nil {
			t.Error(err)
		}
		w.server.Close()
		if t.Failed() {
			t.Log(w.logs.String())
		}
	})
	return w
}

func (w *world) node() *corev1.Node {
	w.t.Helper()
	n, err := w.user.CoreV1().Nodes().Get(w.t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// silence is how long ago the lease was renewed.
func (w *world) silence() (time.Duration, error) {
	l, err := w.user.CoordinationV1().Leases("kube-node-lease").Get(w.t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		return 0, err
	}
	return time.Since(l.Spec.RenewTime.Time), nil
}

func (w *world) alive(within time.Duration) {
	w.t.Helper()
	testkit.Await(w.t, within, func() error {
		s, err := w.silence()
		if err == nil && s > 50*time.Millisecond {
			err = fmt.Errorf("lease is silent for %v", s)
		}
		return err
	})
}

func condition(n *corev1.Node, kind corev1.NodeConditionType) corev1.NodeCondition {
	for _, c := range n.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.NodeCondition{}
}

// calledUnknown writes what the node lifecycle controller writes about a silent node.
func (w *world) calledUnknown() {
	w.t.Helper()
	n := w.node()
	for i := range n.Status.Conditions {
		n.Status.Conditions[i].Status = corev1.ConditionUnknown
		n.Status.Conditions[i].Reason = "NodeStatusUnknown"
		n.Status.Conditions[i].LastTransitionTime = metav1.Now()
	}
	n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: "Other", Status: corev1.ConditionTrue})
	if _, err := w.user.CoreV1().Nodes().UpdateStatus(w.t.Context(), n, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) becomesReady(within time.Duration) {
	w.t.Helper()
	testkit.Await(w.t, within, func() error {
		if c := condition(w.node(), corev1.NodeReady); c.Status != corev1.ConditionTrue {
			return fmt.Errorf("condition is %v", c)
		}
		return nil
	})
}

func TestNewNodeIsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, controllertest.NewAPI(), nil)
		<-w.reg.Registered()
		n := w.node()
		if n.Labels[corev1.LabelHostname] != "n1" || n.Labels[corev1.LabelOSStable] != "linux" || n.Labels[corev1.LabelTopologyZone] != "a" {
			t.Errorf("labels %v", n.Labels)
		}
		if n.Spec.PodCIDR != "10.244.1.0/24" || len(n.Spec.PodCIDRs) != 2 || len(n.Spec.Taints) != 1 {
			t.Errorf("spec %+v", n.Spec)
		}
		if got := fmt.Sprint(n.Status.Addresses); got != "[{InternalIP 10.200.0.11} {InternalIP fd00:200::11} {Hostname n1}]" {
			t.Errorf("addresses %s", got)
		}
		for kind, want := range map[corev1.NodeConditionType]string{
			"Ready": "True KubeletReady", "MemoryPressure": "False KubeletHasSufficientMemory",
			"DiskPressure": "False KubeletHasNoDiskPressure", "PIDPressure": "False KubeletHasSufficientPID",
		} {
			c := condition(n, kind)
			if got := string(c.Status) + " " + c.Reason; got != want || c.LastTransitionTime.IsZero() {
				t.Errorf("%s is %s, want %s with its time", kind, got, want)
			}
		}
		if n.Status.Allocatable.Pods().Value() != 250 || n.Status.Allocatable.Cpu().IsZero() || n.Status.Allocatable.Memory().IsZero() {
			t.Errorf("allocatable %v", n.Status.Allocatable)
		}
		if i := n.Status.NodeInfo; i.ContainerRuntimeVersion != "process://1.0" || i.KernelVersion == "" || i.BootID == "" {
			t.Errorf("info %+v", i)
		}
		w.alive(time.Second)
		l, err := w.user.CoordinationV1().Leases("kube-node-lease").Get(t.Context(), "n1", metav1.GetOptions{})
		if err != nil || *l.Spec.LeaseDurationSeconds != 1 || len(l.OwnerReferences) != 1 || l.OwnerReferences[0].UID != n.UID {
			t.Errorf("lease %+v, %v; want one second, owned by the node", l, err)
		}
	})
}

func TestQuietNodeWritesOnlyItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, controllertest.NewAPI(), nil)
		<-w.reg.Registered()
		<-time.After(time.Second)
		before := w.server.Requests()
		<-time.After(4 * time.Minute)
		after := w.server.Requests()
		const lease = "PUT /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1"
		if n := after[lease] - before[lease]; n < 475 || n > 485 {
			t.Errorf("%d renewals in 4 minutes, want 480", n)
		}
		for what, n := range after {
			if what != lease && n != before[what] {
				t.Errorf("%d × %s of a node that does not change", n-before[what], what)
			}
		}
		beat := condition(w.node(), corev1.NodeReady).LastHeartbeatTime
		<-time.After(90 * time.Second)
		if now := condition(w.node(), corev1.NodeReady).LastHeartbeatTime; !now.After(beat.Time) {
			t.Error("no heartbeat in 5.5 minutes")
		}
	})
}

func TestAPIAwayForAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, controllertest.NewAPI(), nil)
		<-w.reg.Registered()
		w.alive(time.Second)
		w.server.Down()
		w.calledUnknown()
		<-time.After(time.Minute)
		if _, ok := w.reg.Node(); !ok {
			t.Error("has forgotten the node")
		}
		w.server.Up()
		w.alive(time.Second)
		w.becomesReady(time.Second)
		if c := condition(w.node(), "Other"); c.Status != corev1.ConditionTrue {
			t.Error("a condition of somebody else was lost")
		}
		for _, line := range []string{"cannot renew the lease", "lease of the node renewed again"} {
			if n := w.logs.count(line); n != 1 {
				t.Errorf("%q logged %d times, want once", line, n)
			}
		}
	})
}

func TestStuckRequestsDoNotDelayTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, controllertest.NewAPI(), nil)
		<-w.reg.Registered()
		w.alive(time.Second)
		w.server.Hang(func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/nodes") })
		w.calledUnknown()
		for range 200 {
			<-time.After(100 * time.Millisecond)
			if s, err := w.silence(); err != nil || s > 600*time.Millisecond {
				t.Fatalf("silent for %v, %v", s, err)
			}
		}
	})
}

func TestThreeLostRenewalsInARowAreNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, controllertest.NewAPI(), nil)
		<-w.reg.Registered()
		w.alive(time.Second)
		for lost := 1; lost <= 3; lost++ {
			var mu sync.Mutex
			n := 0
			w.server.Hang(func(r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				if strings.Contains(r.URL.Path, "/leases") && n < lost {
					n++
					return true
				}
				return false
			})
			var longest time.Duration
			for range 600 {
				<-time.After(10 * time.Millisecond)
				s, err := w.silence()
				if err != nil {
					t.Fatal(err)
				}
				longest = max(longest, s)
			}
			if longest >= tolerated || longest < 600*time.Millisecond {
				t.Errorf("%d lost requests: silent for %v, want less than %v", lost, longest, tolerated)
			}
		}
	})
}

func TestHungAPIIsLeftForANewConnectionWhenItIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, controllertest.NewAPI(), nil)
		<-w.reg.Registered()
		w.alive(time.Second)
		w.calledUnknown()
		w.server.Hang(func(*http.Request) bool { return true })
		<-time.After(time.Minute + 100*time.Millisecond)
		w.calledUnknown()
		w.server.Hang(nil) // what hangs goes on hanging
		w.alive(time.Second)
		w.becomesReady(500 * time.Millisecond)
	})
}

func TestDeletedNodeIsRegisteredAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, controllertest.NewAPI(), nil)
		<-w.reg.Registered()
		w.alive(time.Second)
		old := w.node().UID
		if err := w.user.CoreV1().Nodes().Delete(t.Context(), "n1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := w.user.CoordinationV1().Leases("kube-node-lease").Delete(t.Context(), "n1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		testkit.Await(t, time.Second, func() error {
			n, err := w.user.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if n.UID == old || condition(n, corev1.NodeReady).Status != corev1.ConditionTrue || n.Spec.PodCIDR == "" {
				return fmt.Errorf("node is %+v", n)
			}
			l, err := w.user.CoordinationV1().Leases("kube-node-lease").Get(t.Context(), "n1", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if l.OwnerReferences[0].UID != n.UID {
				return fmt.Errorf("lease is owned by %v", l.OwnerReferences)
			}
			return nil
		})
	})
}

func TestLeaseThatSomebodyElseWroteIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, controllertest.NewAPI(), nil)
		<-w.reg.Registered()
		w.alive(time.Second)
		leases := w.user.CoordinationV1().Leases("kube-node-lease")
		for range 3 {
			<-time.After(250 * time.Millisecond)
			l, err := leases.Get(t.Context(), "n1", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			l.Spec.RenewTime = new(metav1.NowMicro())
			if _, err := leases.Update(t.Context(), l, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			<-time.After(500 * time.Millisecond)
			if s, err := w.silence(); err != nil || s > 500*time.Millisecond {
				t.Errorf("silent for %v, %v", s, err)
			}
		}
		if n := w.logs.count("somebody else renews"); n != 1 {
			t.Errorf("a second agent was logged %d times, want once", n)
		}
	})
}

func TestExistingNodeIsAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := controllertest.NewAPI(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"mine": "x", corev1.LabelTopologyZone: "old"}},
			Spec:       corev1.NodeSpec{Unschedulable: true, PodCIDR: "10.244.9.0/24", PodCIDRs: []string{"10.244.9.0/24"}},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "1.2.3.4"}}},
		})
		w := start(t, api, func(o *register.Options) { o.PodCIDRs = nil })
		<-w.reg.Registered()
		n, _ := w.reg.Node()
		if n.Spec.PodCIDR != "10.244.9.0/24" || !n.Spec.Unschedulable || len(n.Spec.Taints) != 0 {
			t.Errorf("spec %+v, want it as it was", n.Spec)
		}
		if n = w.node(); n.Labels["mine"] != "x" || n.Labels[corev1.LabelTopologyZone] != "a" || n.Status.Addresses[0].Address != "10.200.0.11" {
			t.Errorf("labels %v, addresses %v", n.Labels, n.Status.Addresses)
		}
	})
}

func TestOtherPodRangeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := controllertest.NewAPI(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n1"},
			Spec:       corev1.NodeSpec{PodCIDR: "10.244.9.0/24", PodCIDRs: []string{"10.244.9.0/24"}},
		})
		w := start(t, api, nil)
		err := <-w.done
		close(w.done)
		if err == nil || !strings.Contains(err.Error(), "10.244.9.0/24") || !strings.Contains(err.Error(), "10.244.1.0/24") ||
			!strings.Contains(err.Error(), "--pod-cidr") {
			t.Errorf("Run returned %v, want both ranges and the way out", err)
		}
	})
}

func TestNodeOfAKubeletIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := controllertest.NewAPI(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n1"},
			Status:     corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KubeletVersion: "v1.36.1", ContainerRuntimeVersion: "containerd://2.1.4"}},
		})
		w := start(t, api, nil)
		err := <-w.done
		close(w.done)
		const want = "node n1 is kept by a kubelet (v1.36.1, containerd://2.1.4): use --proxy-only to forward Services beside it, or another --name"
		if !errors.Is(err, register.ErrKubelet) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("Run returned %v, want %s", err, want)
		}
		if n := w.node(); len(n.Labels) != 0 || len(n.Spec.PodCIDRs) != 0 || n.Status.NodeInfo.KubeletVersion != "v1.36.1" {
			t.Errorf("the Node was changed: %v", n)
		}
	})
}

func TestReadinessOfTheAgentIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, controllertest.NewAPI(), nil)
		<-w.reg.Registered()
		w.mu.Lock()
		w.ready = false
		w.mu.Unlock()
		w.reg.Refresh()
		testkit.Await(t, 200*time.Millisecond, func() error {
			if c := condition(w.node(), corev1.NodeReady); c.Status != corev1.ConditionFalse || c.Reason != "KubeletNotReady" {
				return fmt.Errorf("condition is %v", c)
			}
			return nil
		})
		w.mu.Lock()
		w.ready = true
		w.mu.Unlock()
		w.becomesReady(2 * time.Second) // without being asked
	})
}

func TestNodeWithoutNameOrAddressIsRefused(t *testing.T) {
	for _, o := range []register.Options{{}, {Name: "n1"}} {
		if _, err := register.New(o); err == nil || !strings.Contains(err.Error(), "--n") {
			t.Errorf("New(%+v) gave %v, want the flag to give", o, err)
		}
	}
}
