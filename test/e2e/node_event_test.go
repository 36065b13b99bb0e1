package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/testkit"
)

// TestNodeEvents: an agent that only leads connections tells the owner of a Service that a load balancer cannot ask for its health, with the rights of
// deploy/node-proxy.yaml; without them it says so in its log alone.
func TestNodeEvents(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 1})
	n := nodesOf(t, clusterOf(t, u.Server()), u)
	n.kubeletNode("kubelet-1")
	config := n.asServiceAccount()

	const port = 31999
	_, err := n.client.CoreV1().Services(n.name).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, HealthCheckNodePort: port,
			Ports: []corev1.ServicePort{{Port: 80}},
		},
	}, metav1.CreateOptions{})
	check(t, err)
	events := func() string {
		list, err := n.client.CoreV1().Events(n.name).List(t.Context(), metav1.ListOptions{})
		check(t, err)
		text := ""
		for i := range list.Items {
			if e := &list.Items[i]; e.InvolvedObject.Kind == "Service" {
				text += fmt.Sprintf("%s %s %s %d %s\n", e.Type, e.Reason, e.InvolvedObject.Name, e.Count, e.Message)
			}
		}
		return text
	}
	const said = "a load balancer cannot ask for a Service's health"
	want := "Warning FailedToStartServiceHealthcheck web 1 node kubelet-1: service " + n.name + "/web: health check on 10.200.0.1:31999: "

	n.withAgent(config, port, func(_ func() string) {
		testkit.Await(t, patience, func() error {
			if got := events(); !strings.HasPrefix(got, want) || strings.Count(got, "\n") != 1 {
				return fmt.Errorf("events:\n%swant one: %s", got, want)
			}
			return nil
		})
		if text := n.u.Kubectl().Run("-n", n.name, "describe", "service", "web"); !strings.Contains(text, "FailedToStartServiceHealthcheck") {
			t.Errorf("describe:\n%s", text)
		}
	})
	check(t, n.client.CoreV1().Events(n.name).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))

	role, err := n.client.RbacV1().ClusterRoles().Get(t.Context(), "endpointd:node-proxy", metav1.GetOptions{})
	check(t, err)
	rules := role.Rules[:0]
	for _, rule := range role.Rules {
		if rule.Resources[0] != "events" {
			rules = append(rules, rule)
		}
	}
	role.Rules = rules
	_, err = n.client.RbacV1().ClusterRoles().Update(t.Context(), role, metav1.UpdateOptions{})
	check(t, err)
	n.withAgent(config, port, func(log func() string) {
		testkit.Await(t, patience, func() error {
			if strings.Count(log(), said) != 1 {
				return fmt.Errorf("want a line %q in\n%s", said, log())
			}
			return nil
		})
	})
	if got := events(); got != "" {
		t.Errorf("events of an agent that may not post them:\n%s", got)
	}
}

// transcript is what a program says, for who reads while it does.
type transcript struct {
	mu     sync.Mutex // guards buffer
	buffer bytes.Buffer
}

func (t *transcript) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buffer.Write(b)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buffer.String()
}

// withAgent runs an agent that only leads connections in the outer network. It has the given port itself, for its own health checks.
func (n *nodes) withAgent(config string, port int, f func(log func() string)) {
	n.Helper()
	folder := filepath.Join(n.TempDir(), "proxy")
	cmd := n.u.Command(n.u.ExecArgs("", testkit.Binary(n.T), "node", "--proxy-only", "--kubeconfig", config, "--name", "kubelet-1", "--data-dir", folder,
		"--cgroup", "none", "--healthz-bind-address", fmt.Sprintf("0.0.0.0:%d", port))...)
	var log transcript
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	check(n.T, err)
	check(n.T, cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		n.Errorf("%q, %v", line, err)
	}
	f(log.String)
	check(n.T, n.endCommand(cmd, "--data-dir "+folder))
	if strings.Contains(log.String(), "rejected event") || n.Failed() {
		n.Errorf("the agent said\n%s", log.String())
	}
}
