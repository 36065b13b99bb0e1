package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/testkit"
)

// TestNames is from where names are resolved, and what they say.
func TestNames(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 3, Args: []string{"--service-cidr", "10.96.0.0/16,fd00:96::/112", "--pod-cidr", "10.244.0.0/16,fd00:244::/56"}})
	c := clusterOf(t, u.Server())
	for _, s := range []nodeScenario{
		{"resolved from everywhere", namesResolved},
		{"a record goes with its pod", namesFollow},
		{"pods", namesOfPods},
		{"tools", namesTools},
		{"stateful", namesStateful},
		{"unready", namesUnready},
		{"killed", namesKilled},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(nodesOf(t, c, u)) })
	}
}

// helperLookup prints what Go's own resolver finds, a line an address, sorted, or "NXDOMAIN".
func helperLookup(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	found, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, name)
	if err != nil {
		if e, ok := errors.AsType[*net.DNSError](err); !ok || !e.IsNotFound {
			return err
		}
		found = []string{"NXDOMAIN"}
	}
	slices.Sort(found)
	fmt.Println(strings.Join(found, "\n"))
	return nil
}

// lookup resolves a name on a node, or in a pod.
func (n *nodes) lookup(node, pod, name string) (string, error) {
	args := []string{self(n.T), helperArg, "lookup", name}
	if node != "" {
		out, err := n.u.Try(n.u.ExecArgs(node, args...)...)
		return strings.TrimSpace(out.Stdout), err
	}
	out, err := n.try(append([]string{"exec", pod, "--"}, args...)...)
	return strings.TrimSpace(out.Stdout), err
}

// resolves waits until a name is what is wanted.
func (n *nodes) resolves(node, pod, name string, want ...string) {
	n.Helper()
	slices.Sort(want)
	testkit.Await(n, patience, func() error {
		got, err := n.lookup(node, pod, name)
		if err != nil {
			return err
		}
		if got != strings.Join(want, "\n") {
			return fmt.Errorf("from %s%s, %s is %q, want %q", node, pod, name, got, want)
		}
		return nil
	})
}

const headless = `
apiVersion: v1
kind: Service
metadata: {name: peers}
spec: {clusterIP: None, selector: {app: echo}, ports: [{name: http, port: 80, targetPort: 8080}]}
`

// A Service's name is its ClusterIP, in its own namespace by the first label alone; a headless one's is its pods'.
func namesResolved(n *nodes) {
	_, pods := n.deploy(2)
	n.apply(headless)
	svc, err := n.client.CoreV1().Services(n.name).Get(n.Context(), "echo", metav1.GetOptions{})
	check(n.T, err)
	full := "echo." + n.name + ".svc.cluster.local"
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		n.resolves(node, "", full, svc.Spec.ClusterIP)
		n.resolves(node, "", "kube-dns.kube-system.svc.cluster.local", "10.96.0.10", "fd00:96::a")
		n.resolves(node, "", "nobody."+full, "NXDOMAIN")
	}
	for i := range pods {
		n.resolves("", pods[i].Name, "echo", svc.Spec.ClusterIP)
		n.resolves("", pods[i].Name, "echo."+n.name, svc.Spec.ClusterIP)
		n.resolves("", pods[i].Name, full+".", svc.Spec.ClusterIP)
		n.resolves("", pods[i].Name, "peers", pods[0].Status.PodIP, pods[1].Status.PodIP)
	}
	n.has(n.run("get", "--raw", "/api/v1/namespaces/kube-system/services/kube-dns"), `"10.96.0.10"`)
}

// When a pod dies, comes back with another address or is deleted, the next answer says so.
func namesFollow(n *nodes) {
	_, pods := n.deploy(3)
	n.apply(headless)
	name := "peers." + n.name + ".svc.cluster.local"
	addrs := func(pods []corev1.Pod) (all []string) {
		for i := range pods {
			all = append(all, pods[i].Status.PodIP)
		}
		return all
	}
	n.resolves("node-1", "", name, addrs(pods)...)
	n.run("delete", "pod", pods[0].Name, "--wait=false")
	n.awaitPodGone(pods[0].Name, patience)
	n.resolves("node-2", "", name, addrs(n.awaitPods("app=echo", 3))...)
	n.run("scale", "deployment", "echo", "--replicas=0")
	for _, node := range []string{"node-1", "node-2"} {
		n.resolves(node, "", name, "NXDOMAIN")
	}
}

// A pod that no Service selects has a name too, and every node knows it.
func namesOfPods(n *nodes) {
	n.apply(oneEcho("lonely"))
	pod := n.awaitPod("lonely", patience, isReady)
	dashed := strings.ReplaceAll(pod.Status.PodIP, ".", "-")
	for _, node := range []string{"node-1", "node-2"} {
		n.resolves(node, "", dashed+"."+n.name+".pod.cluster.local", pod.Status.PodIP)
		n.resolves(node, "", dashed+".default.pod.cluster.local", "NXDOMAIN")
	}
}
