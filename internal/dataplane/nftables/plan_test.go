package nftables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/testkit"
)

// TestPlan tells a story, and what the kernel is told of it.
func TestPlan(t *testing.T) {
	object := serviceObject(2)
	object.Spec.Type = corev1.ServiceTypeLoadBalancer
	object.Spec.Ports[0].NodePort = 30002
	object.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	object.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.2"}}
	object.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24", "192.0.2.7/32"}
	var input model.Input
	steps := []struct {
		story string
		next  func() model.Input
	}{
		{"the addresses of this node", func() model.Input { return input.WithNetwork(dptest.Network()) }},
		{"a Service without endpoints", func() model.Input { return input.WithService(serviceObject(1)) }},
		{"two endpoints", func() model.Input { return service(input, 1, endpoints(1, 2)...) }},
		{"a third, and the first one goes", func() model.Input { return service(input, 1, endpoints(1, 3)[1:]...) }},
		{"session affinity of 10 s", func() model.Input {
			object := serviceObject(1)
			object.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			object.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(int32(10))}}
			return input.WithService(object)
		}},
		{"it goes", func() model.Input { return input.WithoutService(model.ServiceKey{Namespace: "default", Name: "s-1"}) }},
		{"a load balancer with source ranges, and endpoints elsewhere", func() model.Input {
			return service(input, 2, endpoints(2, 1)...).WithService(object)
		}},
	}
	var out strings.Builder
	have := newState()
	var was *model.Snapshot
	for _, step := range steps {
		input = step.next()
		now := model.Build(input, was)
		c := plan(have, was, now, true)
		fmt.Fprintf(&out, "\n# %s\n", step.story)
		var text strings.Builder
		c.write("t", script{"t", &text})
		lines := strings.Split(strings.TrimSpace(text.String()), "\n")
		slices.Sort(lines) // within a batch the order is of no matter
		out.WriteString(strings.Join(lines, "\n") + "\n")
		have.apply(c)
		was = now
		if again := plan(have, was, now, true); !again.none() {
			t.Errorf("%s: a second Sync would write", step.story)
		}
		if full := plan(have, nil, now, true); !full.none() {
			t.Errorf("%s: what was planned is not what should be: %+v", step.story, full.Change)
		}
	}
	testkit.Golden(t, "plan.golden", []byte(out.String()))
}

func TestSpans(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"", ""},
		{"10.0.0.0/8", "10.0.0.0-10.255.255.255"},
		{"10.0.0.0/8 10.1.0.0/16", "10.0.0.0-10.255.255.255"},
		{"10.1.0.0/16 10.0.0.0/16 10.3.0.0/16", "10.0.0.0-10.1.255.255 10.3.0.0-10.3.255.255"},
		{"0.0.0.0/0 192.0.2.0/24", "0.0.0.0-255.255.255.255"},
		{"::/0 fd00::/8 255.255.255.255/32", "255.255.255.255-255.255.255.255 ::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	} {
		var prefixes []netip.Prefix
		for text := range strings.FieldsSeq(test.in) {
			prefixes = append(prefixes, netip.MustParsePrefix(text))
		}
		spans := spansOf(prefixes)
		var got []string
		bounds := map[family][]bound{}
		for _, s := range spans {
			got = append(got, s.from.String()+"-"+s.to.String())
			for _, e := range s.elements(podRanges.of(familyOf(s.from))) {
				addr, _ := netip.AddrFromSlice(e.key)
				bounds[familyOf(s.from)] = append(bounds[familyOf(s.from)], bound{addr, e.end})
			}
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: %s, want %s", test.in, got, test.want)
		}
		var back []span
		for _, f := range families() {
			part, ok := spansFrom(bounds[f])
			if !ok {
				t.Errorf("%s: not read back", test.in)
			}
			back = append(back, part...)
		}
		if !slices.Equal(back, spans) {
			t.Errorf("%s: read back as %v", test.in, back)
		}
	}
}
