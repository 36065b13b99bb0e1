package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/endpointd/endpointd/internal/testkit"
)

// deadNode is how long a silent node may count.
const deadNode = 3500 * time.Millisecond

// staying is a pod that is not replaced when its node is silent: one of each on NODE.
const staying = `{apiVersion: v1, kind: Pod, metadata: {name: stays, labels: {app: stays}}, spec: {nodeName: NODE, tolerations: [{operator: Exists}], terminationGracePeriodSeconds: 1, containers: [{name: c, image: endpointd/echo}]}}`

// TestNodeFails has nodes that die, freeze and are cut off, one after the other.
func TestNodeFails(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 3})
	c := clusterOf(t, u.Server())
	for _, s := range []nodeScenario{
		{"agent dies", failAgent},
		{"frozen", failFrozen},
		{"cut off", failCut},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(nodesOf(t, c, u)) })
	}
}

// on are the pods that are on a node, and those that are not.
func on(node string, pods []corev1.Pod) (there, elsewhere []corev1.Pod) {
	for _, p := range pods {
		if p.Spec.NodeName == node {
			there = append(there, p)
		} else {
			elsewhere = append(elsewhere, p)
		}
	}
	return there, elsewhere
}

// same fails the test if a pod is not just what it was: its containers run on as the same processes.
func (n *nodes) same(before corev1.Pod, pid int) {
	n.Helper()
	now := n.pod(before.Name)
	was, is := before.Status.ContainerStatuses[0], now.Status.ContainerStatuses[0]
	if now.UID != before.UID || now.Status.PodIP != before.Status.PodIP || is.RestartCount != was.RestartCount || is.ContainerID != was.ContainerID {
		n.Errorf("pod %s is another one: %s", before.Name, briefly(now))
	}
	if got := n.first(before.Name); got != pid {
		n.Errorf("pod %s has process %d, before %d", before.Name, got, pid)
	}
}

// An agent that is killed comes back, and nobody notices: no restart, no write that takes an endpoint away.
func failAgent(n *nodes) {
	n.apply(threeEchoes)
	pods := n.awaitPods("app=echo", 3)
	all := leadTo(8080, pods...)
	n.awaitReady("echo", endpointsManager, all)
	pids := map[string]int{}
	for _, p := range pods {
		pids[p.Name] = n.first(p.Name)
	}
	slices := n.record("echo")
	began := time.Now()
	node := pods[0].Spec.NodeName
	n.u.KillPart(node)
	there, elsewhere := on(node, pods)
	awaitReady(n.T, n.u)
	n.has(n.run("exec", there[0].Name, "--", "echo", "hello"), "hello") // it is the new agent that answers
	n.Logf("killed → answers again: %v", time.Since(began))
	n.until(began.Add(deadNode)) // so long the old one would have counted
	for _, seen := range slices.until(endpointsManager, all) {
		if seen != all {
			n.Errorf("meanwhile the slice led to %q, want %q", seen, all)
		}
	}
	for _, p := range pods {
		n.same(p, pids[p.Name])
	}
	// It probes what it took over.
	for _, p := range there {
		n.control(&p, "ready=false")
	}
	slices.until(endpointsManager, leadTo(8080, elsewhere...))
	for _, p := range there {
		n.control(&p, "ready=true")
	}
	slices.until(endpointsManager, all)
}

// until lets time pass in which something must not happen.
func (n *nodes) until(at time.Time) {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-n.Context().Done():
	}
}

func (n *nodes) nodeReady(name string) corev1.ConditionStatus {
	n.Helper()
	node, err := n.client.CoreV1().Nodes().Get(n.Context(), name, metav1.GetOptions{})
	check(n.T, err)
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return ""
}

// silence has a node fall silent, and checks what happens until it speaks again. Begin says since when it is silent, end brings it back.
func (n *nodes) silence(node string, begin func() time.Time, end func()) {
	n.Helper()
	n.apply(threeEchoes + "\n---\n" + strings.ReplaceAll(staying, "NODE", node))
	stays := n.awaitPod("stays", patience, isReady)
	pids := map[string]int{"stays": n.first("stays")}
	pods := n.awaitPods("app=echo", 3)
	there, elsewhere := on(node, pods)
	if len(there) == 0 {
		n.Fatalf("no pod on %s", node)
	}
	events := n.watchSlices("echo")
	n.awaitSlice(events, leadTo(8080, pods...))

	began := begin()
	n.awaitSlice(events, leadTo(8080, elsewhere...))
	took := time.Since(began)
	testkit.Await(n, patience, func() error {
		if got := n.nodeReady(node); got != corev1.ConditionUnknown {
			return fmt.Errorf("%s is Ready: %s", node, got)
		}
		return nil
	})
	n.Logf("silent → endpoints gone: %v, node not ready: %v", took, time.Since(began))
	if unready := time.Since(began); max(took, unready) > deadNode || took < 2*time.Second {
		n.Errorf("endpoints left after %v, the node was not ready after %v: want about 3 s", took, unready)
	}
	replaced := n.awaitPods("app=echo", 3)
	n.Logf("silent → replaced: %v", time.Since(began))
	if still, _ := on(node, replaced); len(still) > 0 {
		n.Errorf("%d pods are on %s", len(still), node)
	}
	n.awaitReady("echo", endpointsManager, leadTo(8080, replaced...))
	check(n.T, isUnready(n.pod("stays")))

	back := time.Now()
	end()
	testkit.Await(n, patience, func() error {
		if got := n.nodeReady(node); got != corev1.ConditionTrue {
			return fmt.Errorf("%s is Ready: %s", node, got)
		}
		return nil
	})
	n.Logf("back → node ready: %v", time.Since(back))
	for _, p := range there {
		n.awaitPodGone(p.Name, patience)
	}
	n.awaitPod("stays", patience, isReady)
	n.Logf("back → pods ready or gone: %v", time.Since(back))
	n.same(*stays, pids["stays"])
	testkit.Await(n, patience, func() error {
		for _, p := range processesOf(n.T, n.u) {
			for _, old := range there {
				if strings.HasSuffix(p.line, n.name+"/"+old.Name) {
					return fmt.Errorf("%s runs on", p.line)
				}
			}
		}
		return nil
	})
	for _, p := range n.awaitPods("app=echo", 3) {
		if !slices.ContainsFunc(replaced, func(o corev1.Pod) bool { return o.UID == p.UID }) {
			n.Errorf("pod %s was replaced once more", p.Name)
		}
	}
}

func failFrozen(n *nodes) {
	pid := n.u.Part("node-2").PID
	n.silence("node-2", func() time.Time {
		check(n.T, syscall.Kill(pid, syscall.SIGSTOP))
		return time.Now()
	}, func() { check(n.T, syscall.Kill(pid, syscall.SIGCONT)) })
}

func failCut(n *nodes) {
	link := func(state string) { n.u.Exec("", self(n.T), helperArg, "link", "node-3", state) }
	n.silence("node-3", func() time.Time { link("down"); return time.Now() }, func() { link("up") })
}

// away is how long the API server does not answer.
const away = 60 * time.Second

// TestNodeServerAway: while the API server is away for a minute, pods run and are probed. When it is back it is told what happened, and
// nobody is evicted.
func TestNodeServerAway(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 2})
	c := clusterOf(t, u.Server())
	patient := rest.CopyConfig(c.config)
	patient.NextProtos = []string{"http/1.1"} // HTTP/2 notices that nobody answers, and gives the watch up
	c.client = clientFor(t, patient)
	n := nodesOf(t, c, u)
	n.apply(threeEchoes + "\n---\n" + oneEcho("dies"))
	pods := n.awaitPods("app=echo", 3)
	n.awaitPod("dies", patience, isReady)
	all, fewer := leadTo(8080, pods...), leadTo(8080, pods[1:]...)
	n.awaitReady("echo", endpointsManager, all)
	pids := map[string]int{}
	for _, p := range pods {
		pids[p.Name] = n.first(p.Name)
	}
	victim := n.first("dies")
	slices := n.record("echo")

	began := time.Now()
	server := u.Signal("server", syscall.SIGSTOP)
	t.Cleanup(func() { _ = syscall.Kill(server, syscall.SIGCONT) }) // the test may have failed in between
	n.control(&pods[0], "ready=false")
	shim, again, killed := n.shim("dies"), 0, time.Now()
	check(t, syscall.Kill(victim, syscall.SIGKILL))
	testkit.Await(t, patience, func() error {
		for _, p := range processesOf(t, u) {
			if p.parent == shim && p.pid != victim {
				again = p.pid
				return nil
			}
		}
		return errors.New("the container that died is not started again")
	})
	n.Logf("without the API a container came back after %v", time.Since(killed))
	n.until(began.Add(away))
	for _, p := range pods {
		n.has(n.get("", fmt.Sprintf("http://%s:8080/", p.Status.PodIP)), p.Name)
	}
	back := time.Now()
	check(t, syscall.Kill(server, syscall.SIGCONT))
	seen := slices.until(endpointsManager, fewer)
	n.Logf("back → told of the flip: %v", time.Since(back))
	if took := time.Since(back); took > 5*time.Second {
		t.Errorf("the flip was told after %v", took)
	}
	n.awaitPod("dies", patience, restarted(1))
	n.until(back.Add(deadNode))
	seen = append(seen, slices.until(endpointsManager, fewer)...)
	for _, s := range seen {
		if s != all && s != fewer {
			t.Errorf("the slice led to %q: want %q, then %q", s, all, fewer)
		}
	}
	n.control(&pods[0], "ready=true")
	slices.until(endpointsManager, all)
	for _, p := range n.list("app=echo") {
		if pids[p.Name] == 0 {
			t.Errorf("pod %s is a new one", p.Name)
		}
	}
	for _, p := range pods {
		n.same(p, pids[p.Name])
	}
	if got := n.first("dies"); got != again {
		t.Errorf("the pod that died has process %d, before %d", got, again)
	}
	events, err := n.client.CoreV1().Events("").List(context.WithoutCancel(t.Context()), metav1.ListOptions{})
	check(t, err)
	for _, e := range events.Items {
		if strings.Contains(e.Reason, "NotReady") || strings.Contains(e.Reason, "Evict") || strings.Contains(e.Reason, "Taint") {
			t.Errorf("event %s: %s", e.Reason, e.Message)
		}
	}
}
