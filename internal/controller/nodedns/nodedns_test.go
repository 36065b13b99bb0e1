package nodedns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a controller on a fake API, in a bubble where time is free: after settle, everything that follows from what was done has happened.
type world struct {
	t            *testing.T
	user, writer *fake.Clientset
}

func run(t *testing.T, f func(w *world), objects ...runtime.Object) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		api := controllertest.NewAPI(objects...)
		w := &world{t: t, user: api.Client(), writer: api.Client()}
		factory := informers.NewSharedInformerFactory(api.Client(), 0)
		c := New(Options{
			Client: w.writer, Informers: factory, Logger: slog.New(slog.DiscardHandler),
			Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a")},
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		factory.Start(ctx.Done())
		go func() { ended <- c.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
			factory.Shutdown()
		}()
		synctest.Wait()
		f(w)
	})
}

func node(name, port string, ready corev1.ConditionStatus, addrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: "zone-" + name}}}
	if port != "" {
		n.Annotations = map[string]string{Annotation: port}
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

// want compares all slices with lines such as "10.0.0.1 on n1 for n1, ready, dns 53/UDP dns-tcp 53/TCP", sorted.
func (w *world) want(lines ...string) {
	w.t.Helper()
	synctest.Wait()
	list, err := w.user.DiscoveryV1().EndpointSlices(metav1.NamespaceAll).List(w.t.Context(), metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	var got []string
	for _, s := range list.Items {
		if s.Labels[discovery.LabelManagedBy] != manager {
			continue
		}
		if owner := metav1.GetControllerOf(&s); s.Labels[discovery.LabelServiceName] != "kube-dns" || s.Namespace != "kube-system" || owner == nil || owner.UID != w.service().UID {
			w.t.Errorf("slice %s/%s is not the Service's: %v, %v", s.Namespace, s.Name, s.Labels, s.OwnerReferences)
		}
		var ports []string
		for _, p := range s.Ports {
			ports = append(ports, fmt.Sprintf("%s %d/%s", *p.Name, *p.Port, *p.Protocol))
		}
		for _, e := range s.Endpoints {
			state := "not ready"
			if *e.Conditions.Ready {
				state = "ready"
			}
			got = append(got, fmt.Sprintf("%s in %s of %s for %s, %s, %s", e.Addresses[0], *e.Zone, *e.NodeName, e.Hints.ForNodes[0].Name, state, strings.Join(ports, " ")))
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, lines) {
		w.t.Errorf("endpoints\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(lines, "\n  "))
	}
}

func (w *world) service() *corev1.Service {
	w.t.Helper()
	svc, err := w.user.CoreV1().Services("kube-system").Get(w.t.Context(), "kube-dns", metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return svc
}

func (w *world) editNode(name string, edit func(*corev1.Node)) {
	w.t.Helper()
	nodes := w.user.CoreV1().Nodes()
	n, err := nodes.Get(w.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	edit(n)
	status := n.Status
	if n, err = nodes.Update(w.t.Context(), n, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	n.Status = status
	if _, err := nodes.UpdateStatus(w.t.Context(), n, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

const (
	ports    = "dns 53/UDP dns-tcp 53/TCP"
	n1, n1v6 = "10.0.0.1 in zone-n1 of n1 for n1, ready, " + ports, "fd00::1 in zone-n1 of n1 for n1, ready, " + ports
)

func TestNodesComeAndGo(t *testing.T) {
	run(t, func(w *world) {
		w.want(n1, n1v6) // n2 has no server
		w.editNode("n2", func(n *corev1.Node) { n.Annotations = map[string]string{Annotation: "5353"} })
		n2 := "10.0.0.2 in zone-n2 of n2 for n2, ready, dns 5353/UDP dns-tcp 5353/TCP"
		w.want(n1, n2, n1v6)
		w.editNode("n2", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown })
		w.want(n1, strings.Replace(n2, "ready", "not ready", 1), n1v6)
		w.editNode("n2", func(n *corev1.Node) { n.Annotations[Annotation] = "65536" })
		w.want(n1, n1v6)
		if err := w.user.CoreV1().Nodes().Delete(w.t.Context(), "n1", metav1.DeleteOptions{}); err != nil {
			w.t.Fatal(err)
		}
		w.want()
	}, node("n1", "53", corev1.ConditionTrue, "10.0.0.1", "10.0.0.9", "fd00::1"), node("n2", "", corev1.ConditionTrue, "10.0.0.2"))
}

func TestHeartbeatsCostNothing(t *testing.T) {
	run(t, func(w *world) {
		w.want(n1)
		before := controllertest.Writes(w.writer)
		w.editNode("n1", func(n *corev1.Node) { n.Status.Conditions[0].Message = "still here" })
		after := controllertest.Writes(w.writer)
		if fmt.Sprint(before) != fmt.Sprint(after) {
			w.t.Errorf("writes %v, then %v", before, after)
		}
	}, node("n1", "53", corev1.ConditionTrue, "10.0.0.1"))
}

func TestServiceIsMadeOnceAndAgain(t *testing.T) {
	run(t, func(w *world) {
		svc := w.service()
		if got := strings.Join(svc.Spec.ClusterIPs, " "); got != "10.96.0.10 fd00:96::a" || svc.Labels["k8s-app"] != "kube-dns" {
			w.t.Errorf("ClusterIPs %s, labels %v", got, svc.Labels)
		}
		if err := w.user.CoreV1().Services("kube-system").Delete(w.t.Context(), "kube-dns", metav1.DeleteOptions{}); err != nil {
			w.t.Fatal(err)
		}
		w.want(n1) // and belong to the new one
		svc = w.service()
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "metrics", Port: 9153})
		if _, err := w.user.CoreV1().Services("kube-system").Update(w.t.Context(), svc, metav1.UpdateOptions{}); err != nil {
			w.t.Fatal(err)
		}
		w.want(n1)
		if got := len(w.service().Spec.Ports); got != 3 {
			w.t.Errorf("%d ports: what somebody adds stays", got)
		}
	}, node("n1", "53", corev1.ConditionTrue, "10.0.0.1"))
}

func TestSomebodyElseTakesOver(t *testing.T) {
	run(t, func(w *world) {
		svc := w.service()
		svc.Spec.Selector = map[string]string{"k8s-app": "coredns"}
		if _, err := w.user.CoreV1().Services("kube-system").Update(w.t.Context(), svc, metav1.UpdateOptions{}); err != nil {
			w.t.Fatal(err)
		}
		w.want()
		svc = w.service()
		svc.Spec.Selector = nil
		if _, err := w.user.CoreV1().Services("kube-system").Update(w.t.Context(), svc, metav1.UpdateOptions{}); err != nil {
			w.t.Fatal(err)
		}
		w.want(n1)
	}, node("n1", "53", corev1.ConditionTrue, "10.0.0.1"))
}

func TestSlicesArePutRight(t *testing.T) {
	run(t, func(w *world) {
		client := w.user.DiscoveryV1().EndpointSlices("kube-system")
		list, err := client.List(w.t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 {
			w.t.Fatalf("%d slices, %v", len(list.Items), err)
		}
		s := &list.Items[0]
		s.Endpoints[0].Addresses[0] = "10.9.9.9"
		if _, err := client.Update(w.t.Context(), s, metav1.UpdateOptions{}); err != nil {
			w.t.Fatal(err)
		}
		w.want(n1)
		if err := client.Delete(w.t.Context(), s.Name, metav1.DeleteOptions{}); err != nil {
			w.t.Fatal(err)
		}
		w.want(n1)
	}, node("n1", "53", corev1.ConditionTrue, "10.0.0.1"))
}
