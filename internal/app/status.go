package app

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/endpointd/endpointd/internal/sandbox"
)

// UpStatus is how a sandbox is, for people and programs.
type UpStatus struct {
	DataDir    string     `json:"dataDir"`
	Kubeconfig string     `json:"kubeconfig"`
	Server     UpServer   `json:"server"`
	Nodes      []UpMember `json:"nodes"`
}

// UpServer is the API server.
type UpServer struct {
	UpProcess
	URL string `json:"url"`
	// Ready is false when it did not answer in time; Problem says what happened.
	Ready   bool   `json:"ready"`
	Problem string `json:"problem,omitempty"`
}

// UpMember is one node.
type UpMember struct {
	UpProcess
	Name string `json:"name"`
	// Ready is the Node's condition: True, False or Unknown; "" while the API does not have it.
	Ready     string   `json:"ready"`
	Addresses []string `json:"addresses"`
	Pods      int      `json:"pods"` // that have not ended
}

// UpProcess is a process of a sandbox.
type UpProcess struct {
	PID      int       `json:"pid"` // 0 = it does not run
	Since    time.Time `json:"since"`
	Restarts int       `json:"restarts"`
	LastExit string    `json:"lastExit,omitempty"`
}

// statusPatience is how long the API may take to answer.
const statusPatience = 3 * time.Second

// Status asks the sandbox of a data folder, and its API. The error Is sandbox.ErrNotRunning when there is none.
func Status(ctx context.Context, dataDir string) (UpStatus, error) {
	s := UpStatus{DataDir: dataDir, Kubeconfig: Kubeconfig(dataDir)}
	client, err := sandbox.Dial(dataDir)
	if err != nil {
		return s, err
	}
	parts, err := client.Status()
	_ = client.Close() // all is said
	if err != nil {
		return s, err
	}
	for _, p := range parts.Parts {
		process := UpProcess{PID: p.PID, Since: p.Since, Restarts: p.Restarts, LastExit: p.LastExit}
		if p.Name == "server" {
			s.Server.UpProcess = process
			continue
		}
		s.Nodes = append(s.Nodes, UpMember{Name: p.Name, UpProcess: process})
	}
	if err := s.askAPI(ctx); err != nil {
		s.Server.Ready, s.Server.Problem = false, err.Error()
	}
	return s, nil
}

func (s *UpStatus) askAPI(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig)
	if err != nil {
		return err
	}
	s.Server.URL = config.Host
	client, err := kubernetes.NewForConfig(withoutWarnings(config))
	if err != nil {
		return err
	}
	if _, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
		return err
	}
	s.Server.Ready = true
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "status.phase!=Succeeded,status.phase!=Failed"})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	count := map[string]int{} // node → pods
	for i := range pods.Items {
		count[pods.Items[i].Spec.NodeName]++
	}
	for i := range s.Nodes {
		m := &s.Nodes[i]
		m.Pods = count[m.Name]
		for j := range nodes.Items {
			if n := &nodes.Items[j]; n.Name == m.Name {
				m.fill(n)
			}
		}
	}
	return nil
}

func (m *UpMember) fill(n *corev1.Node) {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			m.Ready = string(c.Status)
		}
	}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			m.Addresses = append(m.Addresses, a.Address)
		}
	}
}
