package conntrack

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/model/modeltest"
)

// dnsOf adds Service number i with its address in 10.96.0.0/16, and its slice.
func dnsOf(t testing.TB, in model.Input, i int, endpoints ...string) model.Input {
	t.Helper()
	text := fmt.Sprintf(`
kind: Service
metadata: {namespace: default, name: dns-%[1]d, uid: "1"}
spec:
  type: ClusterIP
  clusterIP: %[2]s
  clusterIPs: [%[2]s]
  ipFamilies: [IPv4]
  ports: [{protocol: UDP, port: 53}]
---
kind: EndpointSlice
metadata: {namespace: default, name: dns-%[1]d-a, labels: {kubernetes.io/service-name: dns-%[1]d}}
addressType: IPv4
ports: [{name: "", protocol: UDP, port: 8053}]
endpoints: [{addresses: [%[3]s]}]
`, i, fmt.Sprintf("10.96.%d.%d", i/250, 1+i%250), strings.Join(endpoints, "]}, {addresses: ["))
	in, err := modeltest.Apply(in, text)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// TestSnapshot is the whole way of Snapshots as a Runner gives them.
func TestSnapshot(t *testing.T) {
	n := newNode(t)
	in := model.Input{}.WithNetwork(model.Network{Node: "here", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	in = dnsOf(t, in, 0, "10.1.0.1", "10.1.0.2")
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
	third := model.Build(dnsOf(t, in, 0, "10.1.0.2", "10.1.0.3"), first)
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
		in = dnsOf(b, in, i, "10.1.0.1", "10.1.0.2")
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
