package zone

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/model"
)

// dice draw objects of a small world, so that they meet.
type dice struct{ *rand.Rand }

func pick[T any](d dice, of ...T) T { return of[d.IntN(len(of))] }

func (d dice) one(in int) bool { return d.IntN(in) == 0 }

func (d dice) namespace() string { return pick(d, "a", "b", "svc", "pod") }

// serviceName is sometimes none that the API would accept.
func (d dice) serviceName() string {
	return pick(d, "x", "y", "z", "1st", "x", "y", "z", "Upper", "dot.ted")
}

func (d dice) service() *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: d.namespace(), Name: d.serviceName(), Annotations: map[string]string{}}}
	if d.one(4) {
		s.Annotations[model.TTLAnnotation] = pick(d, "0", "1", "300", "x")
	}
	switch d.IntN(6) {
	case 0:
		s.Spec.Type = corev1.ServiceTypeExternalName
		s.Spec.ExternalName = pick(d, "db.example.com", "x.a.svc.cluster.local", "Y.b.svc.Cluster.Local.", "nothing.svc.cluster.local", "cluster.local",
			"10-1-0-1.a.pod.cluster.local", "1.0.96.10.in-addr.arpa", "", "a..b")
	case 1, 2, 3:
		s.Spec.ClusterIP = corev1.ClusterIPNone
	case 4:
		s.Spec.ClusterIPs = []string{pick(d, "10.96.0.1", "10.96.0.2"), pick(d, "fd00::1", "fd00::2")}
	default:
		s.Spec.ClusterIPs = pick(d, []string{"10.96.0.3"}, []string{"fd00::3"}, []string{"192.0.2.3"}, nil)
	}
	s.Spec.PublishNotReadyAddresses = d.one(6)
	for range d.IntN(4) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: pick(d, "http", "dns", "", "Bad_"), Port: pick[int32](d, 80, 53, 8080), Protocol: d.protocol()})
	}
	return s
}

func (d dice) protocol() corev1.Protocol {
	return pick(d, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
}

func some[T any](d dice, value T) *T {
	if d.one(2) {
		return nil
	}
	return &value
}

func (d dice) slice() *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: d.namespace(), Name: pick(d, "s1", "s2", "s3", "s4"), Labels: map[string]string{discoveryv1.LabelServiceName: d.serviceName()}},
		AddressType: pick(d, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6),
	}
	for range d.IntN(4) {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: some(d, pick(d, "http", "dns", "")), Port: some(d, pick[int32](d, 80, 53, 0)), Protocol: some(d, d.protocol())})
	}
	for range d.IntN(6) {
		addr := fmt.Sprintf("10.1.0.%d", 1+d.IntN(4))
		if s.AddressType == discoveryv1.AddressTypeIPv6 {
			addr = pick(d, "fd02::1", "fd02::2", "fd02:0:0:1::")
		}
		e := discoveryv1.Endpoint{Addresses: []string{addr}, Hostname: some(d, pick(d, "h", "g", "10-1-0-2", "Bad"))}
		e.Conditions.Ready = some(d, d.one(2))
		if !d.one(3) {
			e.TargetRef = &corev1.ObjectReference{Kind: pick(d, "Pod", "Pod", "Node"), Name: "p"}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func (d dice) network() model.Network {
	var n model.Network
	for _, text := range []string{"10.96.0.0/12", "fd00::/108", "10.1.0.0/30"} {
		if !d.one(3) {
			n.ServiceCIDRs = append(n.ServiceCIDRs, netip.MustParsePrefix(text))
		}
	}
	for _, text := range []string{"10.1.0.0/16", "fd02::/63"} {
		if !d.one(3) {
			n.ClusterCIDRs = append(n.ClusterCIDRs, netip.MustParsePrefix(text))
		}
	}
	return n
}

// step changes an Input in one place.
func (d dice) step(in model.Input) model.Input {
	switch d.IntN(8) {
	case 0, 1, 2:
		return in.WithService(d.service())
	case 3, 4, 5:
		return in.WithSlice(d.slice())
	case 6:
		if d.one(2) {
			return in.WithNetwork(d.network())
		}
		return in.WithoutSlice(d.namespace(), pick(d, "s1", "s2", "s3", "s4"))
	default:
		return in.WithoutService(model.ServiceKey{Namespace: d.namespace(), Name: d.serviceName()})
	}
}
