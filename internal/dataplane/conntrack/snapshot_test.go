package conntrack

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/model"
)

// dnsOf is Service number i with its address in 10.96.0.0/16, and its slice.
func dnsOf(in model.Input, i int, protocol corev1.Protocol, endpoints ...string) model.Input {
	addr := fmt.Sprintf("10.96.%d.%d", i/250, 1+i%250)
	name := fmt.Sprintf("dns-%d", i)
	in = in.WithService(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "1"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: addr, ClusterIPs: []string{addr}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Protocol: protocol, Port: 53}},
		},
	})
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name + "-a", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new(""), Protocol: new(protocol), Port: new(int32(8053))}},
	}
	for _, e := range endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{e}})
	}
	return in.WithSlice(slice)
}

// TestSnapshot is the whole way of Snapshots as a Runner gives them.
func TestSnapshot(t *testing.T) {
	n := newNode(t)
	in := model.Input{}.WithNetwork(model.Network{Node: "here", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	in = dnsOf(in, 0, corev1.ProtocolUDP, "10.1.0.1", "10.1.0.2")
	first := model.Build(in, nil)
	flows := map[string]*flow{}
	for _, e := range []string{"10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"} {
		flows[e] = flowOf(fmt.Sprintf("udp 10.2.0.1:%d 10.96.0.1:53 %s:8053", 1+len(flows), e))
		n.create(flows[e])
	}
	expect := func(step string, deleted int, left ...string) {
		t.Helper()
		if got := n.reconcile(); got != deleted {
			t.Errorf("%s: %d flows deleted, want %d", step, got, deleted)
		}
		there := map[netip.AddrPort]bool{}
		for _, f := range n.entries() {
			there[f.endpoint] = true
		}
		for _, e := range left {
			if !there[netip.MustParseAddrPort(e+":8053")] {
				t.Errorf("%s: the flow to %s is gone", step, e)
			}
		}
	}
	third := model.Build(dnsOf(in, 0, corev1.ProtocolUDP, "10.1.0.2", "10.1.0.3"), first)
	n.tracker.Expect(third)
	n.tracker.Applied(nil, first)
	expect("what is expected stays too", 1, "10.1.0.1", "10.1.0.2", "10.1.0.3")
	n.tracker.Applied(first, third)
	expect("an endpoint less", 1, "10.1.0.2", "10.1.0.3")
	n.tracker.Expect(first)
	n.create(flows["10.1.0.1"])
	if deleted := n.sweep(); deleted != 1 {
		t.Errorf("a flow that fits an older Snapshot alone stayed")
	}
	last := model.Build(in.WithoutService(model.ServiceKey{Namespace: "default", Name: "dns-0"}), third)
	n.tracker.Applied(third, last)
	expect("the Service goes", 2)
	if left := len(n.entries()); left != 0 {
		t.Errorf("%d flows left, want none", left)
	}
}

// BenchmarkJudge is what one flow costs among 10,000 Services.
func BenchmarkJudge(b *testing.B) {
	var in model.Input
	for i := range 10_000 {
		in = dnsOf(in, i, corev1.ProtocolUDP, "10.1.0.1", "10.1.0.2")
	}
	s := model.Build(in, nil)
	j := judge{now: s, network: &s.Network, owned: compare(nil, s, s.Changed(nil)).owned}
	ours, foreign := flowOf("udp 10.2.0.1:1 10.96.20.1:53 10.1.0.1:8053"), flowOf("udp 10.2.0.1:1 198.51.100.7:53 198.51.100.7:53")
	if s.Owner(model.FrontendKey{Addr: ours.dst.Addr(), Protocol: model.UDP, Port: 53}) == nil {
		b.Fatal("the frontend has no owner")
	}
	for name, f := range map[string]*flow{"ours": ours, "foreign": foreign} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if j.lost(f) {
					b.Fatal("lost")
				}
			}
		})
	}
}
