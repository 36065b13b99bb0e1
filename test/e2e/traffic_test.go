package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/endpointd/endpointd/internal/testkit"
)

// echoes is a Deployment and its Service, with a port on each node.
const echoes = `{apiVersion: apps/v1, kind: Deployment, metadata: {name: echo}, spec: {replicas: COUNT, selector: {matchLabels: {app: echo}},
strategy: {rollingUpdate: {maxUnavailable: 1, maxSurge: 2}},
template: {metadata: {labels: {app: echo}}, spec: {terminationGracePeriodSeconds: 10, containers: [{name: echo, image: endpointd/echo,
ports: [{name: http, containerPort: 8080}], readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1, failureThreshold: 1}}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: echo}, spec: {type: NodePort, selector: {app: echo}, ports: [{port: 80, targetPort: http}]}}`

// TestTraffic has a sandbox to itself and runs before the parallel tests: what is under load is timed.
func TestTraffic(t *testing.T) {
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 3})
	c := clusterOf(t, u.Server())
	for _, s := range []nodeScenario{
		{"rollout", trafficRollout},
		{"killed", trafficKilled},
		{"agent killed", trafficAgent},
		{"swaps", trafficSwaps},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(nodesOf(t, c, u)) })
	}
}

// service is the address of a Service and its first port on nodes.
func (n *nodes) service(name string) (url string, nodePort int32) {
	n.Helper()
	s, err := n.client.CoreV1().Services(n.name).Get(n.Context(), name, metav1.GetOptions{})
	check(n.T, err)
	return fmt.Sprintf("http://%s:%d/", s.Spec.ClusterIP, s.Spec.Ports[0].Port), s.Spec.Ports[0].NodePort
}

// awaitTraffic waits until all pods, and nobody else, answer at a URL from a node.
func (n *nodes) awaitTraffic(node, url string, pods ...corev1.Pod) {
	n.Helper()
	var want []string
	for i := range pods {
		want = append(want, pods[i].Name)
	}
	slices.Sort(want)
	urls := slices.Repeat([]string{url}, 8*len(pods))
	testkit.Await(n, patience, func() error {
		text, err := n.tryGet(node, urls...)
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); slices.Contains(want, line) {
				seen[line] = true
			}
		}
		if got := slices.Sorted(maps.Keys(seen)); !slices.Equal(got, want) {
			return fmt.Errorf("from %s, %s leads to %q, want %q", node, url, got, want)
		}
		return nil
	})
}

// deploy makes echo with so many pods and returns its address and them, when all nodes lead to all of them.
func (n *nodes) deploy(count int) (url string, pods []corev1.Pod) {
	n.Helper()
	n.apply(strings.Replace(echoes, "COUNT", fmt.Sprint(count), 1))
	pods = n.awaitPods("app=echo", count)
	url, _ = n.service("echo")
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		n.awaitTraffic(node, url, pods...)
	}
	return url, pods
}

// A rolling update under load: every request is answered, from nodes and from pods, over new and kept connections, at the address of the Service and
// of a node.
func trafficRollout(n *nodes) {
	url, pods := n.deploy(10)
	_, port := n.service("echo")
	n.apply(oneEcho("client"))
	n.awaitPod("client", patience, isReady)
	loads := []*load{
		n.load("node-1", "", url, false, 2, 10*time.Millisecond),
		n.load("node-2", "", url, true, 2, 10*time.Millisecond),
		n.load("", "client", url, false, 2, 10*time.Millisecond),
		n.load("", "client", url, true, 2, 10*time.Millisecond),
		n.load("", "", fmt.Sprintf("http://%s:%d/", n.nodeAddress("node-3"), port), false, 2, 10*time.Millisecond),
	}
	n.run("rollout", "restart", "deployment/echo")
	n.run("rollout", "status", "deployment/echo", "--timeout=60s")
	after := n.awaitPods("app=echo", 10)
	old := map[string]bool{}
	for _, p := range pods {
		n.awaitPodGone(p.Name, patience)
		old[p.Name] = true
	}
	for _, l := range loads {
		all := l.allAnswered()
		first, last := "", ""
		for name := range answered(all) {
			if old[name] {
				first = name
			} else {
				last = name
			}
		}
		if first == "" || last == "" {
			n.Errorf("%s: of the old pods %q answered, and of the new ones %q", l.name, first, last)
		}
	}
	n.awaitTraffic("node-1", url, after...)
}

func (n *nodes) nodeAddress(name string) string {
	n.Helper()
	node, err := n.client.CoreV1().Nodes().Get(n.Context(), name, metav1.GetOptions{})
	check(n.T, err)
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return a.Address
		}
	}
	n.Fatalf("%s has no address", name)
	return ""
}

// Limits for a loaded machine; what is measured is logged, and the benchmark is where it counts.
const (
	soonHere  = 150 * time.Millisecond // on the node where a process died
	soonThere = time.Second            // on the others
)

// A pod's process is killed: requests that are under way fail, and for a moment those that meet the dead one; soon none does.
func trafficKilled(n *nodes) {
	url, pods := n.deploy(4)
	loads := map[string]*load{}
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		loads[node] = n.load(node, "", url, false, 4, 5*time.Millisecond)
	}
	type death struct {
		at   time.Time
		node string
	}
	var deaths []death
	for _, victim := range pods[:3] {
		pid := n.first(victim.Name)
		n.until(time.Now().Add(300 * time.Millisecond))
		deaths = append(deaths, death{time.Now(), victim.Spec.NodeName})
		check(n.T, syscall.Kill(pid, syscall.SIGKILL))
		n.awaitPod(victim.Name, patience, restarted(1))
		n.awaitPod(victim.Name, patience, isReady)
	}
	for node, l := range loads {
		for _, r := range failures(l.end()) {
			var last death // before it was given up
			for _, d := range deaths {
				if r.ended.After(d.at) {
					last = d
				}
			}
			limit := soonThere
			if last.node == node {
				limit = soonHere
			}
			after := r.began.Sub(last.at)
			n.Logf("%s (the process was on %s): not answered, begun %v after the kill: %s", node, last.node, after, r.failure)
			if last.node == "" || after > limit {
				n.Errorf("%s: a request that began %v after the process had died was not answered: %s", node, after, r.failure)
			}
		}
	}
}

// An agent is killed and comes back: its node leads on.
func trafficAgent(n *nodes) {
	url, _ := n.deploy(4)
	loads := []*load{
		n.load("node-1", "", url, false, 2, 5*time.Millisecond),
		n.load("node-1", "", url, true, 2, 5*time.Millisecond),
		n.load("node-2", "", url, false, 2, 5*time.Millisecond),
	}
	for _, node := range []string{"node-1", "node-2"} {
		n.u.KillPart(node)
		awaitReady(n.T, n.u)
	}
	n.until(time.Now().Add(time.Second))
	for _, l := range loads {
		l.allAnswered()
	}
}

// swapTime is how long two pods take turns.
const (
	swapTime  = 60 * time.Second
	swapEvery = 100 * time.Millisecond
	swapBound = 50 * time.Millisecond // after the API has said that a pod is not ready
)

// gated is a pod that is ready when the test says so.
const gated = `{apiVersion: v1, kind: Pod, metadata: {name: NAME, labels: {app: swaps}}, spec: {readinessGates: [{conditionType: example.com/turn}], containers: [{name: c, image: endpointd/echo}]}}`

// Two pods take turns at being ready: no request fails, and none begins at the one that is not ready once that is known.
func trafficSwaps(n *nodes) {
	names := [2]string{"a", "b"}
	for _, name := range names {
		n.apply(strings.Replace(gated, "NAME", name, 1))
	}
	n.apply(`{apiVersion: v1, kind: Service, metadata: {name: swaps}, spec: {selector: {app: swaps}, ports: [{port: 80, targetPort: 8080}]}}`)
	n.turn("a", true)
	for i, name := range names {
		n.awaitPod(name, patience, []func(*corev1.Pod) error{isReady, isUnready}[i])
	}
	url, _ := n.service("swaps")
	for _, node := range []string{"node-1", "node-2"} {
		n.awaitTraffic(node, url, *n.pod("a"))
	}
	loads := []*load{n.load("node-1", "", url, false, 1, 5*time.Millisecond), n.load("node-2", "", url, false, 1, 5*time.Millisecond)}
	type span struct{ from, to time.Time }
	idle := map[string][]span{} // pod → when it was not ready and everybody had to know
	on := 0
	for end := time.Now().Add(swapTime); time.Now().Before(end); {
		next := time.Now().Add(swapEvery)
		other := 1 - on
		if list := idle[names[other]]; len(list) > 0 {
			list[len(list)-1].to = time.Now()
		}
		n.turn(names[other], true)
		n.awaitPod(names[other], patience, isReady)
		n.turn(names[on], false)
		n.awaitPod(names[on], patience, isUnready)
		idle[names[on]] = append(idle[names[on]], span{from: time.Now().Add(swapBound)})
		on = other
		n.until(next)
	}
	swaps := len(idle["a"]) + len(idle["b"])
	for _, l := range loads {
		late := 0
		all := l.allAnswered()
		for _, r := range all {
			for _, s := range idle[r.pod] {
				if r.began.After(s.from) && (s.to.IsZero() || r.began.Before(s.to)) {
					late++
				}
			}
		}
		n.Logf("%s: %d of %d requests were led to an unready pod later than %v, in %d swaps", l.name, late, len(all), swapBound, swaps)
		if late*100 > swaps {
			n.Errorf("%s: %d requests were led to an unready pod later than %v, in %d swaps", l.name, late, swapBound, swaps)
		}
	}
}

// turn says whether a pod's gate is open.
func (n *nodes) turn(pod string, open bool) {
	n.Helper()
	status := corev1.ConditionFalse
	if open {
		status = corev1.ConditionTrue
	}
	patch := fmt.Sprintf(`{"status": {"conditions": [{"type": "example.com/turn", "status": %q}]}}`, status)
	_, err := n.client.CoreV1().Pods(n.name).Patch(n.Context(), pod, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	check(n.T, err)
}

// TestTrafficServerAway: the API server does not answer for a minute, and every request is.
func TestTrafficServerAway(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 3})
	c := clusterOf(t, u.Server())
	n := nodesOf(t, c, u)
	url, _ := n.deploy(3)
	loads := []*load{
		n.load("node-1", "", url, false, 1, 20*time.Millisecond),
		n.load("node-2", "", url, true, 1, 20*time.Millisecond),
	}
	server := u.Signal("server", syscall.SIGSTOP)
	t.Cleanup(func() { _ = syscall.Kill(server, syscall.SIGCONT) })
	n.until(time.Now().Add(away))
	check(t, syscall.Kill(server, syscall.SIGCONT))
	n.until(time.Now().Add(deadNode))
	for _, l := range loads {
		l.allAnswered()
	}
}
