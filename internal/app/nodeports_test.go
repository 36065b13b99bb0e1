package app

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// TestWantedPorts: what the machine's loopback leads to, for Services that differ in one thing.
func TestWantedPorts(t *testing.T) {
	member := func(name string, ready bool, addrs ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		for _, a := range addrs {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: map[bool]corev1.ConditionStatus{true: corev1.ConditionTrue, false: corev1.ConditionUnknown}[ready]}}
		return n
	}
	service := func(change func(*corev1.ServiceSpec)) *corev1.Service {
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}}},
		}
		if change != nil {
			change(&s.Spec)
		}
		return s
	}
	endpoint := func(node string, serving bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{"10.244.1.2"}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Serving: &serving}}
	}
	local := func(s *corev1.ServiceSpec) { s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }
	a, b, c := member("a", true, "192.0.2.1", "2001:db8::1"), member("b", true, "192.0.2.2"), member("c", false, "192.0.2.3")
	all := []*corev1.Node{c, b, a}
	for _, test := range []struct {
		name      string
		service   *corev1.Service
		nodes     []*corev1.Node
		endpoints []discoveryv1.Endpoint
		want      string
	}{
		{"ready nodes, whether they have endpoints or not", service(nil), all, nil, "tcp 30080 192.0.2.1:30080 192.0.2.2:30080"},
		{"no node is ready: what they lead they lead on", service(nil), []*corev1.Node{c}, nil, "tcp 30080 192.0.2.3:30080"},
		{"no node", service(nil), nil, nil, "tcp 30080"},
		{"the Service's family", service(func(s *corev1.ServiceSpec) { s.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} }), all, nil, "tcp 30080 [2001:db8::1]:30080"},
		{"policy Local: nodes with endpoints", service(local), all, []discoveryv1.Endpoint{endpoint("a", false), endpoint("b", true), endpoint("c", true)}, "tcp 30080 192.0.2.2:30080"},
		{"policy Local, no endpoints", service(local), all, nil, "tcp 30080"},
		{"affinity", service(func(s *corev1.ServiceSpec) { s.SessionAffinity = corev1.ServiceAffinityClientIP }), all, nil, "tcp 30080 192.0.2.1:30080 192.0.2.2:30080 in order"},
		{"ClusterIP", service(func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeClusterIP }), all, nil, ""},
		{"UDP, SCTP, and without a node port", service(func(s *corev1.ServiceSpec) {
			s.Type = corev1.ServiceTypeLoadBalancer
			s.Ports = []corev1.ServicePort{{NodePort: 30053, Protocol: corev1.ProtocolUDP}, {NodePort: 30054, Protocol: corev1.ProtocolSCTP}, {Protocol: corev1.ProtocolTCP}}
		}), []*corev1.Node{b}, nil, "udp 30053 192.0.2.2:30053"},
	} {
		t.Run(test.name, func(t *testing.T) {
			stores := [3]cache.Indexer{}
			for i := range stores {
				stores[i] = cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
			}
			_ = stores[0].Add(test.service)
			for _, n := range test.nodes {
				_ = stores[1].Add(n)
			}
			_ = stores[2].Add(&discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}, Endpoints: test.endpoints,
			})
			ports, err := wantedPorts(corelisters.NewServiceLister(stores[0]), corelisters.NewNodeLister(stores[1]), discoverylisters.NewEndpointSliceLister(stores[2]))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range ports {
				text := fmt.Sprint(p.Network, " ", p.Number)
				for _, e := range p.Endpoints {
					text += " " + e.String()
				}
				if p.InOrder {
					text += " in order"
				}
				got = append(got, text)
			}
			if got := strings.Join(got, ", "); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
