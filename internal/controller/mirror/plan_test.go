package mirror

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/controller/sliceset"
)

// subset reads a subset: ports, ready addresses, not ready addresses, as in
// "a:80 b:443 | 10.0.0.1 10.0.0.2 | 10.0.0.3". An address may have a target
// behind "=".
func subset(text string) corev1.EndpointSubset {
	parts := append(strings.Split(text, "|"), "", "")
	var sub corev1.EndpointSubset
	for p := range strings.FieldsSeq(parts[0]) {
		name, number, _ := strings.Cut(p, ":")
		port := corev1.EndpointPort{Name: name, Protocol: corev1.ProtocolTCP}
		if _, err := fmt.Sscan(number, &port.Port); err != nil {
			panic(p)
		}
		sub.Ports = append(sub.Ports, port)
	}
	addresses := func(text string) (out []corev1.EndpointAddress) {
		for a := range strings.FieldsSeq(text) {
			ip, target, named := strings.Cut(a, "=")
			address := corev1.EndpointAddress{IP: ip}
			if named {
				address.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: target}
			}
			out = append(out, address)
		}
		return out
	}
	sub.Addresses, sub.NotReadyAddresses = addresses(parts[1]), addresses(parts[2])
	return sub
}

func subsets(texts ...string) (out []corev1.EndpointSubset) {
	for _, text := range texts {
		out = append(out, subset(text))
	}
	return out
}

func endpoints(texts ...string) *corev1.Endpoints {
	return &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "ep-uid"}, Subsets: subsets(texts...),
	}
}

func service() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "svc-uid"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", Type: corev1.ServiceTypeClusterIP},
	}
}

func portsText(ports []discovery.EndpointPort) string {
	var out []string
	for _, p := range ports {
		text := fmt.Sprintf("%s:%d", *p.Name, *p.Port)
		if *p.Protocol != corev1.ProtocolTCP {
			text += "/" + string(*p.Protocol)
		}
		if p.AppProtocol != nil {
			text += "/" + *p.AppProtocol
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func endpointText(e *discovery.Endpoint) string {
	text := strings.Join(e.Addresses, ",")
	if e.TargetRef != nil {
		text += "=" + e.TargetRef.Name
	}
	if e.Conditions.Ready == nil || !*e.Conditions.Ready {
		text += "!"
	}
	return text
}

// planText is one line for each family and port set: what would be in slices.
func planText(p plan) []string {
	byGroup := map[string][]string{}
	for k, w := range p.want {
		g := string(k.Family) + " " + portsText(w.Ports.Ports())
		byGroup[g] = append(byGroup[g], endpointText(w.Endpoint))
	}
	var out []string
	for g, list := range byGroup {
		slices.Sort(list)
		out = append(out, g+" | "+strings.Join(list, " "))
	}
	slices.Sort(out)
	return out
}

func TestSubsetsBecomeSlices(t *testing.T) {
	for name, tt := range map[string]struct {
		subsets []corev1.EndpointSubset
		want    []string
	}{
		"nothing":                     {nil, nil},
		"a subset without addresses":  {subsets("a:80"), nil},
		"ready and not ready":         {subsets("a:80 | 10.0.0.1 10.0.0.2 | 10.0.0.3"), []string{"IPv4 a:80 | 10.0.0.1 10.0.0.2 10.0.0.3!"}},
		"an unnamed port":             {subsets(":80 | 10.0.0.1"), []string{"IPv4 :80 | 10.0.0.1"}},
		"a subset without ports":      {subsets("| 10.0.0.1"), []string{"IPv4  | 10.0.0.1"}},
		"both families in one subset": {subsets("a:80 | 10.0.0.1 2001:db8::1"), []string{"IPv4 a:80 | 10.0.0.1", "IPv6 a:80 | 2001:db8::1"}},
		"an address in both lists is not ready": {subsets("a:80 | 10.0.0.1 10.0.0.2 | 10.0.0.1"),
			[]string{"IPv4 a:80 | 10.0.0.1! 10.0.0.2"}},
		"not ready in another subset with the same port": {subsets("a:80 | 10.0.0.1", "a:80 | | 10.0.0.1"),
			[]string{"IPv4 a:80 | 10.0.0.1!"}},
		"subsets with the same ports are joined": {subsets("a:80 b:443 | 10.0.0.1", "b:443 a:80 | 10.0.0.2"),
			[]string{"IPv4 a:80 b:443 | 10.0.0.1 10.0.0.2"}},
		"subsets with the same addresses are joined": {subsets("a:80 | 10.0.0.1 10.0.0.2", "b:443 | 10.0.0.2 10.0.0.1"),
			[]string{"IPv4 a:80 b:443 | 10.0.0.1 10.0.0.2"}},
		"an address in two subsets": {subsets("a:80 | 10.0.0.1 10.0.0.2", "b:443 | 10.0.0.1"),
			[]string{"IPv4 a:80 | 10.0.0.1 10.0.0.2", "IPv4 b:443 | 10.0.0.1"}},
		"ready on one port, not on the other": {subsets("a:80 | 10.0.0.1", "b:443 | | 10.0.0.1"),
			[]string{"IPv4 a:80 | 10.0.0.1", "IPv4 b:443 | 10.0.0.1!"}},
		"two ports of one name on one address": {subsets(":9376 | 10.0.0.1", ":9377 | 10.0.0.1"),
			[]string{"IPv4 :9376 | 10.0.0.1", "IPv4 :9377 | 10.0.0.1"}},
		"two ports of one name beside others": {subsets("a:1 b:2 | 10.0.0.1", "a:3 c:4 | 10.0.0.1"),
			[]string{"IPv4 a:1 b:2 c:4 | 10.0.0.1", "IPv4 a:3 | 10.0.0.1"}},
		"a port of the same address and none": {subsets("a:80 | 10.0.0.1", "| 10.0.0.1"), []string{"IPv4 a:80 | 10.0.0.1"}},
		"two targets on one address": {subsets("a:80 | 10.0.0.1=x 10.0.0.1=y"),
			[]string{"IPv4 a:80 | 10.0.0.1=x 10.0.0.1=y"}},
		"an address that is written twice":     {subsets("a:80 | 10.0.0.1 10.0.0.1"), []string{"IPv4 a:80 | 10.0.0.1"}},
		"leading zeros, and IPv4 as IPv6":      {subsets("a:80 | 010.000.0.01 ::ffff:10.0.0.2"), []string{"IPv4 a:80 | 10.0.0.1 10.0.0.2"}},
		"an address in its long form":          {subsets("a:80 | 2001:0db8:0:0::1"), []string{"IPv6 a:80 | 2001:db8::1"}},
		"the port number twice, by two names":  {subsets("a:80 b:80 | 10.0.0.1"), []string{"IPv4 a:80 b:80 | 10.0.0.1"}},
		"the same port twice in one subset":    {subsets("a:80 a:80 | 10.0.0.1"), []string{"IPv4 a:80 | 10.0.0.1"}},
		"an invalid address beside a good one": {subsets("a:80 | 10.0.0.1 300.0.0.1 example.com"), []string{"IPv4 a:80 | 10.0.0.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			ep := endpoints()
			ep.Subsets = tt.subsets
			before := ep.DeepCopy()
			if got := planText(planFor(service(), ep, 1000)); !slices.Equal(got, tt.want) {
				t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(tt.want, "\n\t"))
			}
			if !reflect.DeepEqual(ep, before) {
				t.Error("the Endpoints were modified")
			}
		})
	}
}

func TestInvalidAddressesAreTold(t *testing.T) {
	p := planFor(service(), endpoints("a:80 | 10.0.0.1 nonsense 300.0.0.1", "b:81 | 300.0.0.1 10.0.0.300"), 1000)
	if want := []string{"10.0.0.300", "300.0.0.1", "nonsense"}; !slices.Equal(p.invalid, want) {
		t.Errorf("got %q, want %q", p.invalid, want)
	}
	if p.skipped != 0 {
		t.Errorf("%d were skipped", p.skipped)
	}
}

func TestPortsAreCopiedWhole(t *testing.T) {
	ep := endpoints("a:53 | 10.0.0.1")
	ep.Subsets[0].Ports[0].Protocol = corev1.ProtocolUDP
	ep.Subsets[0].Ports[0].AppProtocol = new("example.com/dns")
	// The same port by another pointer, and one that differs by its protocol only.
	other := subset("a:53 a:53 | 10.0.0.2")
	other.Ports[0].Protocol, other.Ports[0].AppProtocol = corev1.ProtocolUDP, new("example.com/dns")
	ep.Subsets = append(ep.Subsets, other)
	want := []string{"IPv4 a:53 | 10.0.0.2", "IPv4 a:53/UDP/example.com/dns | 10.0.0.1 10.0.0.2"}
	if got := planText(planFor(service(), ep, 1000)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAddressesAreCopiedWhole(t *testing.T) {
	ep := endpoints("a:80 | 10.0.0.1=pod | 10.0.0.2")
	ep.Subsets[0].Addresses[0].NodeName = new("node-1")
	ep.Subsets[0].Addresses[0].Hostname = "web-0"
	want := map[string]discovery.Endpoint{
		"10.0.0.1": {
			Addresses: []string{"10.0.0.1"}, Conditions: discovery.EndpointConditions{Ready: new(true)},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "pod"},
			NodeName:  new("node-1"), Hostname: new("web-0"),
		},
		"10.0.0.2": {Addresses: []string{"10.0.0.2"}, Conditions: discovery.EndpointConditions{Ready: new(false)}},
	}
	got := map[string]discovery.Endpoint{}
	for _, w := range planFor(service(), ep, 1000).want {
		got[w.Endpoint.Addresses[0]] = *w.Endpoint
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestMaximumTakesReadyOnesFirst(t *testing.T) {
	p := planFor(service(), endpoints("a:80 | 10.0.0.9 10.0.0.8 bad | 10.0.0.1 10.0.0.2", "b:81 | 10.0.0.1"), 3)
	want := []string{"IPv4 a:80 | 10.0.0.1! 10.0.0.8 10.0.0.9", "IPv4 b:81 | 10.0.0.1"}
	if got := planText(p); !slices.Equal(got, want) || p.skipped != 1 || len(p.invalid) != 1 {
		t.Errorf("got %q, %d skipped, %d invalid, want %q", got, p.skipped, len(p.invalid), want)
	}
}

func TestMeta(t *testing.T) {
	ep := endpoints("a:80 | 10.0.0.1")
	ep.Labels = map[string]string{
		"app": "web", discovery.LabelSkipMirror: "false",
		// None of these mean on a slice what they mean on Endpoints.
		corev1.IsHeadlessService: "", endpointsManagedBy: "endpoint-controller",
		discovery.LabelServiceName: "other", discovery.LabelManagedBy: "me",
	}
	ep.Annotations = map[string]string{
		"note": "x", corev1.EndpointsLastChangeTriggerTime: "2026-01-01T00:00:00Z", corev1.LastAppliedConfigAnnotation: "{}",
	}
	svc := service()
	m := planFor(svc, ep, 5000).meta
	labels := map[string]string{
		"app": "web", discovery.LabelSkipMirror: "false",
		discovery.LabelServiceName: "web", discovery.LabelManagedBy: manager,
	}
	if !maps.Equal(m.Labels, labels) {
		t.Errorf("labels %v, want %v", m.Labels, labels)
	}
	if want := map[string]string{"note": "x"}; !maps.Equal(m.Annotations, want) {
		t.Errorf("annotations %v, want %v", m.Annotations, want)
	}
	if o := m.Owner; o.Kind != "Endpoints" || o.APIVersion != "v1" || o.Name != "web" || o.UID != "ep-uid" || !*o.Controller {
		t.Errorf("owner %v", o)
	}
	if m.MaxEndpoints != 1000 || m.Placeholder || m.GenerateName != "web-" || m.Namespace != "default" {
		t.Errorf("meta %+v", m)
	}
	for _, ip := range []string{"", corev1.ClusterIPNone} {
		svc.Spec.ClusterIP = ip
		if _, ok := planFor(svc, endpoints(), 1000).meta.Labels[corev1.IsHeadlessService]; !ok {
			t.Errorf("a Service with address %q: its slices are not labeled headless", ip)
		}
	}
	if planFor(svc, endpoints(), 1000).meta.Annotations == nil {
		t.Error("annotations are nil, so those on slices would be left alone")
	}
}

func TestDecide(t *testing.T) {
	type objects struct {
		svc       *corev1.Service
		ep        *corev1.Endpoints
		takenOver bool
	}
	selector := func(o *objects) { o.svc.Spec.Selector = map[string]string{"app": "web"} }
	for name, tt := range map[string]struct {
		edit func(*objects)
		want course
	}{
		"Service without selector, Endpoints": {func(*objects) {}, follow},
		"without Service":                     {func(o *objects) { o.svc = nil }, remove},
		"without Endpoints":                   {func(o *objects) { o.ep = nil }, remove},
		"without both":                        {func(o *objects) { o.svc, o.ep = nil, nil }, remove},
		"ExternalName":                        {func(o *objects) { o.svc.Spec.Type = corev1.ServiceTypeExternalName }, remove},
		"headless":                            {func(o *objects) { o.svc.Spec.ClusterIP = corev1.ClusterIPNone }, follow},
		"NodePort":                            {func(o *objects) { o.svc.Spec.Type = corev1.ServiceTypeNodePort }, follow},
		"a Service that is being deleted":     {func(o *objects) { o.svc.DeletionTimestamp = &metav1.Time{Time: time.Now()} }, follow},
		"Endpoints that are being deleted":    {func(o *objects) { o.ep.DeletionTimestamp = &metav1.Time{Time: time.Now()} }, remove},
		"label skip-mirror=true":              {func(o *objects) { o.ep.Labels = map[string]string{discovery.LabelSkipMirror: "true"} }, remove},
		"label skip-mirror, another value":    {func(o *objects) { o.ep.Labels = map[string]string{discovery.LabelSkipMirror: "yes"} }, follow},
		"the record of a leader": {func(o *objects) {
			o.ep.Annotations = map[string]string{"control-plane.alpha.kubernetes.io/leader": ""}
		}, remove},
		"Endpoints the endpoints controller gave up": {func(o *objects) {
			o.ep.Labels = map[string]string{endpointsManagedBy: "endpoint-controller"}
			o.takenOver = true // its slices may still be there
		}, follow},
		"a selector, nobody has taken over": {selector, leave},
		"a selector, taken over":            {func(o *objects) { selector(o); o.takenOver = true }, remove},
		"a selector and no Endpoints":       {func(o *objects) { selector(o); o.ep = nil }, remove},
		"an empty selector is one":          {func(o *objects) { o.svc.Spec.Selector = map[string]string{} }, leave},
	} {
		t.Run(name, func(t *testing.T) {
			o := objects{svc: service(), ep: endpoints("a:80 | 10.0.0.1")}
			tt.edit(&o)
			if got := decide(o.svc, o.ep, func() bool { return o.takenOver }); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

// route is one thing that a consumer may do: reach an address by a port.
type route struct {
	family     discovery.AddressType
	ports      string // one port, or nothing
	ip, target string
	ready      bool
}

// routesOf reads Endpoints the slow and simple way. Ports decide about a route
// one by one; an address has no route without a port where it has one with.
func routesOf(list []corev1.EndpointSubset) map[route]bool {
	out := map[route]bool{}
	add := func(ports []corev1.EndpointPort, addresses []corev1.EndpointAddress, ready bool) {
		texts := []string{""}
		for i, p := range ports {
			if i == 0 {
				texts = nil
			}
			texts = append(texts, fmt.Sprintf("%s:%d", p.Name, p.Port))
		}
		for _, a := range addresses {
			for _, text := range texts {
				r := route{family: discovery.AddressTypeIPv4, ports: text, ip: a.IP}
				if strings.Contains(a.IP, ":") {
					r.family = discovery.AddressTypeIPv6
				}
				if a.TargetRef != nil {
					r.target = a.TargetRef.Name
				}
				was, known := out[r]
				out[r] = ready && (!known || was)
			}
		}
	}
	for _, sub := range list {
		add(sub.Ports, sub.Addresses, true)
		add(sub.Ports, sub.NotReadyAddresses, false)
	}
	routes := map[route]bool{}
	for r, ready := range out {
		r.ready = ready
		routes[r] = true
	}
	return routes
}

// routesIn reads what slices say.
func routesIn(family discovery.AddressType, ports []discovery.EndpointPort, list []discovery.Endpoint, routes map[route]bool) {
	texts := []string{""}
	if len(ports) > 0 {
		texts = strings.Fields(portsText(ports))
	}
	for i := range list {
		for _, text := range texts {
			r := route{family: family, ports: text, ip: list[i].Addresses[0], ready: *list[i].Conditions.Ready}
			if t := list[i].TargetRef; t != nil {
				r.target = t.Name
			}
			routes[r] = true
		}
	}
}

func randomSubsets(r *rand.Rand) []corev1.EndpointSubset {
	pick := func(from []string, n int) string {
		var out []string
		for range n {
			out = append(out, from[r.IntN(len(from))])
		}
		return strings.Join(out, " ")
	}
	ports := []string{"a:80", "b:443", ":9376", ":9377", "a:81"}
	ips := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.3=x", "10.0.0.3=y", "2001:db8::1", "2001:db8::2"}
	var out []corev1.EndpointSubset
	for range r.IntN(4) {
		out = append(out, subset(pick(ports, r.IntN(4))+"|"+pick(ips, r.IntN(5))+"|"+pick(ips, r.IntN(3))))
	}
	return out
}

// sameRoutes compares routes. Whether an address without ports is listed as such
// where it also has ports depends on the other addresses, and nobody can tell.
func sameRoutes(got, want map[route]bool) bool {
	withPorts := func(all map[route]bool) map[route]bool {
		out := map[route]bool{}
		for r := range all {
			if r.ports != "" {
				out[r] = true
			}
		}
		return out
	}
	addresses := func(all map[route]bool) map[string]bool {
		out := map[string]bool{}
		for r := range all {
			out[r.ip+"="+r.target] = true
		}
		return out
	}
	return maps.Equal(withPorts(got), withPorts(want)) && maps.Equal(addresses(got), addresses(want))
}

func checkRandomPlan(t *testing.T, seed uint64) {
	t.Helper()
	ep := endpoints()
	ep.Subsets = randomSubsets(rand.New(rand.NewPCG(seed, 1)))
	before := ep.DeepCopy()
	p := planFor(service(), ep, 1000)
	routes := map[route]bool{}
	for k, w := range p.want {
		routesIn(k.Family, w.Ports.Ports(), []discovery.Endpoint{*w.Endpoint}, routes)
		names := map[string]bool{}
		for _, port := range w.Ports.Ports() {
			if names[*port.Name] {
				t.Errorf("seed %d: the API refuses a slice with two ports called %q", seed, *port.Name)
			}
			names[*port.Name] = true
		}
		if k.Name != endpointName(w.Endpoint, sliceset.NewPortSet(slices.Clone(w.Ports.Ports())).Key()) {
			t.Errorf("seed %d: a slice's reader finds another name than %q", seed, k.Name)
		}
	}
	if want := routesOf(ep.Subsets); !sameRoutes(routes, want) {
		t.Errorf("seed %d: got %v, want %v", seed, routes, want)
	}
	if !reflect.DeepEqual(ep, before) {
		t.Errorf("seed %d: the Endpoints were modified", seed)
	}
	if again := planFor(service(), ep, 1000); !slices.Equal(planText(again), planText(p)) {
		t.Errorf("seed %d: not the same plan again", seed)
	}
}

func TestPlansKeepEveryRoute(t *testing.T) {
	for seed := range uint64(3000) {
		checkRandomPlan(t, seed)
	}
}

func FuzzPlansKeepEveryRoute(f *testing.F) {
	f.Add(uint64(0))
	f.Fuzz(checkRandomPlan)
}
