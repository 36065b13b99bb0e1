package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"github.com/endpointd/endpointd/internal/testkit"
)

// playedNode is an agent that is played: with a node's certificate and rights it registers, renews its Lease, and says of
// each new pod that it runs.
type playedNode struct {
	*testing.T
	name    string
	number  int
	client  *kubernetes.Clientset
	stop    context.CancelFunc
	work    sync.WaitGroup
	renewed time.Time // when the last renewal was sent; of the goroutine until work is done
}

func playNode(t *testing.T, c *cluster, number int) *playedNode {
	t.Helper()
	n := &playedNode{T: t, name: fmt.Sprintf("vm-%d", number), number: number}
	path := filepath.Join(t.TempDir(), "node.kubeconfig")
	out, err := exec.Command(testkit.Binary(t), "kubeconfig", "--node", n.name, "--address", "127.0.0.1", "--data-dir", c.server.DataDir, "--out", path).CombinedOutput() //nolint:gosec // ours
	if err != nil {
		t.Fatalf("endpointd kubeconfig: %v: %s", err, out)
	}
	n.client = clientFor(t, adminConfig(t, path))
	_, err = n.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}}, metav1.CreateOptions{})
	check(t, err)
	n.start()
	t.Cleanup(func() { n.kill() })
	return n
}

// start lets the agent run; it says that its node is ready.
func (n *playedNode) start() {
	n.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(n.Context()))
	n.stop = cancel
	n.renew(ctx)
	_, err := n.client.CoreV1().Nodes().Patch(ctx, n.name, types.StrategicMergePatchType,
		[]byte(`{"status":{"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady"}]}}`), metav1.PatchOptions{}, "status")
	check(n.T, err)
	n.work.Go(func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				n.renew(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	w, err := n.client.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + n.name})
	check(n.T, err)
	n.work.Go(func() {
		defer w.Stop()
		last := 0
		for {
			select {
			case <-ctx.Done():
				return
			case event := <-w.ResultChan():
				if pod, ok := event.Object.(*corev1.Pod); ok && pod.Status.PodIP == "" && pod.DeletionTimestamp == nil {
					last++
					status := podStatus(true, fmt.Sprintf("10.%d.%d.%d", 100+n.number, last/250, last%250+1))
					if _, err := n.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, []byte(status), metav1.PatchOptions{}, "status"); err != nil && ctx.Err() == nil {
						n.Errorf("%s: status of pod %s: %v", n.name, pod.Name, err)
					}
				}
			}
		}
	})
}

func (n *playedNode) renew(ctx context.Context) {
	leases := n.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	at := time.Now()
	lease, err := leases.Get(ctx, n.name, metav1.GetOptions{})
	if err == nil {
		lease.Spec.RenewTime = &metav1.MicroTime{Time: at}
		_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	} else {
		_, err = leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: n.name},
			Spec: coordinationv1.LeaseSpec{LeaseDurationSeconds: new(int32(1)), RenewTime: &metav1.MicroTime{Time: at}}}, metav1.CreateOptions{})
	}
	if err == nil {
		n.renewed = at
	} else if ctx.Err() == nil {
		n.Errorf("%s: lease: %v", n.name, err)
	}
}

// kill ends the agent without a word.
func (n *playedNode) kill() {
	n.stop()
	n.work.Wait()
}

// readyByNode counts the ready endpoints of a Service by node.
func (s *space) readyByNode(service string) map[string]int {
	s.Helper()
	count := map[string]int{}
	for _, slice := range s.slices(service) {
		for _, ep := range slice.Endpoints {
			if *ep.Conditions.Ready {
				count[*ep.NodeName]++
			}
		}
	}
	return count
}

func (s *space) awaitByNode(service, want string) {
	s.Helper()
	s.await(func(context.Context) error {
		if got := fmt.Sprint(s.readyByNode(service)); got != want {
			return fmt.Errorf("ready endpoints by node: %s, want %s", got, want)
		}
		return nil
	})
}

// TestNodeLife: pods are bound and spread; a node that falls silent leaves the endpoints in three seconds, its pods are
// replaced elsewhere; it comes back.
func TestNodeLife(t *testing.T) {
	c := newCluster(t, testkit.ServerOptions{})
	s := c.space(t, c.kubectls[0])
	var nodes []*playedNode
	for i := range 3 {
		nodes = append(nodes, playNode(t, c, i+1))
	}
	s.await(func(ctx context.Context) error {
		list, err := s.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		ranges := map[string]bool{} // range → it is there
		for _, n := range list.Items {
			ranges[n.Spec.PodCIDR] = true
		}
		if err == nil && (len(ranges) != 3 || ranges[""]) {
			return fmt.Errorf("ranges of pods: %v", ranges)
		}
		return err
	})
	s.apply(`{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80}]}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 6, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}}}`)
	s.awaitByNode("web", "map[vm-1:2 vm-2:2 vm-3:2]")

	w, err := s.client.DiscoveryV1().EndpointSlices(s.name).Watch(t.Context(), metav1.ListOptions{LabelSelector: discovery.LabelServiceName + "=web"})
	check(t, err)
	defer w.Stop()
	nodes[0].kill()
	left := nodes[0].awaitLeft(w.ResultChan())
	t.Logf("a silent node's endpoints left %s after its last renewal", left)
	// The target is 3 s; the margin is for a machine that does other things, too.
	if left < 2500*time.Millisecond || left > 4*time.Second {
		t.Errorf("the endpoints left after %s, want 3 s at most, and not before 2.5 s", left)
	}
	s.awaitByNode("web", "map[vm-2:3 vm-3:3]")
	s.has(s.run("get", "node", "vm-1"), "NotReady")
	s.has(s.run("describe", "node", "vm-1"), "node.kubernetes.io/unreachable:NoExecute", "NodeStatusUnknown")

	nodes[0].start()
	s.await(func(ctx context.Context) error {
		n, err := s.client.CoreV1().Nodes().Get(ctx, "vm-1", metav1.GetOptions{})
		if err == nil && len(n.Spec.Taints) > 0 {
			return fmt.Errorf("taints %v", n.Spec.Taints)
		}
		return err
	})
	s.has(s.run("get", "node", "vm-1"), "Ready")
	s.bindMany("one-by-one", 50, 1)
	s.bindMany("at-once", 300, 8)
}

// awaitLeft is how long after the last renewal no endpoint of the node was ready any more.
func (n *playedNode) awaitLeft(slices <-chan watch.Event) time.Duration {
	n.Helper()
	late := time.After(patience)
	for {
		select {
		case event := <-slices:
			slice, ok := event.Object.(*discovery.EndpointSlice)
			if !ok || n.renewed.IsZero() {
				n.Fatalf("watch: %v", event)
			}
			ready := 0
			for _, ep := range slice.Endpoints {
				if *ep.NodeName == n.name && *ep.Conditions.Ready {
					ready++
				}
			}
			if ready == 0 {
				return time.Since(n.renewed)
			}
		case <-late:
			n.Fatal("the endpoints of a silent node stay")
		}
	}
}

// bindMany creates pods by as many clients at once, each of which waits for its pod's node before the next one when it is the
// only client, and says how long they took to be bound after they were seen.
func (s *space) bindMany(label string, count, clients int) {
	s.Helper()
	w, err := s.client.CoreV1().Pods(s.name).Watch(s.Context(), metav1.ListOptions{LabelSelector: label})
	check(s.T, err)
	defer w.Stop()
	began, next := time.Now(), make(chan struct{}, count)
	var creating sync.WaitGroup
	defer creating.Wait()
	for i := range clients {
		creating.Go(func() {
			for j := i; j < count; j += clients {
				pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", label, j), Labels: map[string]string{label: ""}},
					Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
				if _, err := s.client.CoreV1().Pods(s.name).Create(s.Context(), pod, metav1.CreateOptions{}); err != nil {
					s.Error(err)
					return
				}
				if clients == 1 {
					select {
					case <-next:
					case <-time.After(patience):
						return
					}
				}
			}
		})
	}
	seen, on := map[string]time.Time{}, map[string]int{} // pod → when it was seen first; node → pods
	var waits []time.Duration
	late := time.After(patience)
	for len(waits) < count {
		select {
		case event := <-w.ResultChan():
			pod, ok := event.Object.(*corev1.Pod)
			if !ok {
				s.Fatalf("watch: %v", event)
			}
			at, known := seen[pod.Name]
			if !known {
				at = time.Now()
				seen[pod.Name] = at
			}
			if pod.Spec.NodeName != "" && !at.IsZero() {
				waits = append(waits, time.Since(at))
				on[pod.Spec.NodeName]++
				seen[pod.Name] = time.Time{} // counted
				next <- struct{}{}
			}
		case <-late:
			s.Fatalf("%d of %d pods are bound", len(waits), count)
		}
	}
	slices.Sort(waits)
	s.Logf("%d pods %s: created and bound in %s; seen new → seen bound p50 %s, p99 %s; by node %v",
		count, label, time.Since(began), waits[count/2], waits[count*99/100], on)
	for node, n := range on {
		if n < count/3-count/10 || n > count/3+count/10 {
			s.Errorf("%d of %d pods are on %s", n, count, node)
		}
	}
}
