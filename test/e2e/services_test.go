package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/endpointd/endpointd/internal/testkit"
)

// TestServices is from where a Service is reached, and who says so.
func TestServices(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 3})
	c := clusterOf(t, u.Server())
	for _, s := range []nodeScenario{
		{"reached from everywhere", servicesReached},
		{"debug", servicesDebug},
		{"beside a kubelet", servicesProxyOnly},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(nodesOf(t, c, u)) })
	}
}

// nodePort is the first node port of a Service.
func (n *nodes) nodePort(name string) int32 {
	n.Helper()
	s, err := n.client.CoreV1().Services(n.name).Get(n.Context(), name, metav1.GetOptions{})
	check(n.T, err)
	return s.Spec.Ports[0].NodePort
}

// A Service answers at its ClusterIP in pods, on nodes and in the outer network, and at its node port on the machine's loopback, on nodes' addresses,
// and without the agents.
func servicesReached(n *nodes) {
	url, pods := n.deploy(2)
	for _, from := range []string{"", "node-1", "node-2", "node-3"} {
		n.awaitTraffic(from, url, pods...)
	}
	for i := range pods {
		// From a pod, to itself too.
		testkit.Await(n, patience, func() error {
			seen := map[string]bool{}
			text := n.run("exec", pods[i].Name, "--", self(n.T), helperArg, "get", url, url, url, url, url, url, url, url, url, url, url, url)
			for line := range strings.Lines(text) {
				seen[strings.TrimSpace(line)] = true
			}
			if !seen[pods[0].Name] || !seen[pods[1].Name] {
				return fmt.Errorf("%s leads to %v", url, seen)
			}
			return nil
		})
	}
	port := n.nodePort("echo")
	n.awaitTraffic("node-2", fmt.Sprintf("http://10.200.0.11:%d/", port), pods...)
	loopback := func() error {
		client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			return err
		}
		return r.Body.Close()
	}
	testkit.Await(n, patience, loopback)
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		n.u.Signal(node, syscall.SIGSTOP)
		defer n.u.Signal(node, syscall.SIGCONT)
	}
	for range 10 {
		check(n.T, loopback())
	}
	n.get("node-1", url, url, url, url)
}

// Each agent prints what it knows and what it has in force.
func servicesDebug(n *nodes) {
	url, pods := n.deploy(1)
	address := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		testkit.Await(n, patience, func() error {
			out, err := n.u.Try("debug", "snapshot", "--applied", "--data-dir", n.u.DataDir, "--node", node)
			if err != nil {
				return err
			}
			for _, want := range []string{"network node " + node + "\n", "service " + n.name + "/echo ClusterIP ", "frontend " + address + " ClusterIP", pods[0].Status.PodIP + ":8080"} {
				if !strings.Contains(out.Stdout, want) {
					return fmt.Errorf("%s: no %q in\n%s", node, want, out.Stdout)
				}
			}
			return nil
		})
	}
	out, err := n.u.Try("debug", "status", "--data-dir", n.u.DataDir, "--node", "node-1")
	check(n.T, err)
	if !regexp.MustCompile(`"dataPlane": "(ebpf and )?nftables"`).MatchString(out.Stdout) {
		n.Errorf("status: %s", out.Stdout)
	}
	if _, err := n.u.Try("debug", "snapshot", "--data-dir", n.u.DataDir); err == nil || !strings.Contains(err.Error(), "choose one with --node: node-1, node-2, node-3") {
		n.Errorf("without --node: %v", err)
	}
}

// kubeletNode is a Node that a kubelet keeps; its address is that of the outer network.
func (n *nodes) kubeletNode(name string) *corev1.Node {
	n.Helper()
	nodes := n.client.CoreV1().Nodes()
	node, err := nodes.Create(n.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: "10.244.202.0/24", PodCIDRs: []string{"10.244.202.0/24"}},
	}, metav1.CreateOptions{})
	check(n.T, err)
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.200.0.1"}}
	node.Status.NodeInfo = corev1.NodeSystemInfo{KubeletVersion: "v1.36.1", ContainerRuntimeVersion: "containerd://2.1.4", OperatingSystem: "linux", Architecture: "amd64"}
	node, err = nodes.UpdateStatus(n.Context(), node, metav1.UpdateOptions{})
	check(n.T, err)
	n.Cleanup(func() { _ = n.client.CoreV1().Nodes().Delete(n.Context(), name, *metav1.NewDeleteOptions(0)) }) // the cluster ends anyway
	return node
}

// asServiceAccount writes a kubeconfig for the account of deploy/node-proxy.yaml, which it applies as far as it is about rights.
func (n *nodes) asServiceAccount() string {
	n.Helper()
	root, err := testkit.Root()
	check(n.T, err)
	text, err := os.ReadFile(filepath.Join(root, "deploy", "node-proxy.yaml"))
	check(n.T, err)
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		if !strings.Contains(document, "\nkind: DaemonSet\n") {
			n.u.Kubectl().WithInput(document).Run("apply", "-f", "-")
		}
	}
	token, err := n.client.CoreV1().ServiceAccounts("kube-system").CreateToken(n.Context(), "endpointd-node-proxy", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	check(n.T, err)
	config, err := clientcmd.LoadFromFile(filepath.Join(n.u.DataDir, "inside.kubeconfig"))
	check(n.T, err)
	for _, user := range config.AuthInfos {
		user.ClientCertificateData, user.ClientKeyData, user.ClientCertificate, user.ClientKey = nil, nil, "", ""
		user.Token = token.Status.Token
	}
	path := filepath.Join(n.TempDir(), "kubeconfig")
	check(n.T, clientcmd.WriteToFile(*config, path))
	return path
}

// Where a kubelet keeps the Node, the agent refuses to be another one, and with --proxy-only it leads connections with the rights of a role, and
// writes nothing.
func servicesProxyOnly(n *nodes) {
	_, pods := n.deploy(2)
	before := n.kubeletNode("kubelet-1")
	config, dir := n.asServiceAccount(), n.TempDir()
	program := testkit.Binary(n.T)
	_, err := n.u.Try(n.u.ExecArgs("", program, "node", "--kubeconfig", config, "--name", "kubelet-1", "--data-dir", filepath.Join(dir, "node"),
		"--node-ip", "10.200.0.1", "--pod-cidr", "10.244.202.0/24", "--cgroup", "none")...)
	if err == nil || !strings.Contains(err.Error(), "node kubelet-1 is kept by a kubelet (v1.36.1, containerd://2.1.4): use --proxy-only") {
		n.Errorf("as a node: %v", err)
	}

	folder := filepath.Join(dir, "proxy")
	cmd := n.u.Command(n.u.ExecArgs("", program, "node", "--proxy-only", "--kubeconfig", config, "--name", "kubelet-1", "--data-dir", folder, "--cgroup", "none")...)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	check(n.T, err)
	check(n.T, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if want := "endpointd node kubelet-1 is ready: 10.200.0.1, pods 10.244.202.0/24\n"; line != want || err != nil {
		n.Errorf("%q, %v; want %q", line, err, want)
	}
	// Nobody but this agent knows what leads from the outer network's own address.
	n.awaitTraffic("node-1", fmt.Sprintf("http://10.200.0.1:%d/", n.nodePort("echo")), pods...)
	if text := n.get("", "http://127.0.0.1:10256/livez"); !strings.Contains(text, `"healthy":true`) {
		n.Errorf("/livez: %s", text)
	}
	if snapshot, err := n.u.Try("debug", "snapshot", "--data-dir", folder); err != nil || !strings.Contains(snapshot.Stdout, "network node kubelet-1\n") {
		n.Errorf("snapshot: %v\n%s", err, snapshot.Stdout)
	}
	after, err := n.client.CoreV1().Nodes().Get(n.Context(), "kubelet-1", metav1.GetOptions{})
	check(n.T, err)
	if after.Status.NodeInfo != before.Status.NodeInfo || len(after.Labels) != 0 {
		n.Errorf("the Node was changed: %v %v", after.Labels, after.Status.NodeInfo)
	}
	if _, err := n.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(n.Context(), "kubelet-1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		n.Errorf("lease: %v, want none", err)
	}
	check(n.T, n.endCommand(cmd, "--data-dir "+folder))
	if n.Failed() {
		n.Logf("the agent said\n%s", &log)
	}
}

// endCommand sends SIGTERM to a command inside, known by a part of its line, and waits for `exec`.
func (n *nodes) endCommand(cmd *exec.Cmd, part string) error {
	n.Helper()
	for _, p := range processesOf(n.T, n.u) {
		if strings.Contains(p.line, part) && !strings.Contains(p.line, " exec ") {
			if err := syscall.Kill(p.pid, syscall.SIGTERM); err != nil {
				return errors.Join(err, cmd.Process.Kill())
			}
		}
	}
	return cmd.Wait()
}
