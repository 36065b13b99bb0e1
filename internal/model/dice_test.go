package model_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/endpointd/endpointd/internal/model"
)

// dice draw objects of a small world, so that they meet, with everything in them that Go's types allow. The draws come from a random source, or
// from a fuzzer's bytes.
type dice struct {
	rand *rand.Rand
	data []byte
	wild bool // also what the API would refuse
}

func (d *dice) intN(n int) int {
	if d.rand != nil {
		return d.rand.IntN(n)
	}
	if len(d.data) == 0 {
		return 0
	}
	b := int(d.data[0])
	d.data = d.data[1:]
	return b % n
}

func (d *dice) one(in int) bool { return d.intN(in) == 0 }

func pick[T any](d *dice, of ...T) T { return of[d.intN(len(of))] }

// some is nil half of the time.
func some[T any](d *dice, value T) *T {
	if d.one(2) {
		return nil
	}
	return &value
}

// text is one of the words, or, in the wild, anything.
func (d *dice) text(words ...string) string {
	if !d.wild || !d.one(8) {
		return pick(d, words...)
	}
	n := d.intN(8)
	raw := make([]byte, n)
	for i := range raw {
		raw[i] = byte(d.intN(256))
	}
	return string(raw)
}

func (d *dice) number(numbers ...int32) int32 {
	if !d.wild || !d.one(8) {
		return pick(d, numbers...)
	}
	return pick(d, 0, -1, 65535, 65536, 1<<31-1, -1<<31, int32(d.intN(256)))
}

func (d *dice) list(most int, words ...string) []string {
	var list []string
	for range d.intN(most + 1) {
		list = append(list, d.text(words...))
	}
	return list
}

func (d *dice) protocol() corev1.Protocol {
	return corev1.Protocol(d.text("TCP", "TCP", "TCP", "", "UDP", "SCTP"))
}

func (d *dice) service() *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: d.text("a", "b", "c", "d"), UID: types.UID(d.text("u1", "u2"))}}
	s.CreationTimestamp = metav1.NewTime(time.Unix(int64(d.intN(4)), 0))
	s.Labels = map[string]string{}
	if d.one(12) {
		s.Labels["service.kubernetes.io/service-proxy-name"] = d.text("other", "")
	}
	s.Annotations = map[string]string{}
	if d.one(6) {
		s.Annotations[model.TTLAnnotation] = d.text("5", "30", "x")
	}
	if d.one(6) {
		s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey] = d.text("10.0.0.0/8", "10.0.0.0/8,fd00::/8", "x")
	}
	s.Spec.Type = corev1.ServiceType(d.text("ClusterIP", "ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer", "ExternalName"))
	d.addresses(s)
	for range 1 + d.intN(3) {
		port := corev1.ServicePort{Name: d.text("", "", "http"), Protocol: d.protocol(), Port: d.number(80, 81, 53), AppProtocol: some(d, "h2c")}
		if s.Spec.Type != corev1.ServiceTypeClusterIP || d.wild {
			port.NodePort = d.number(0, 30080, 30081)
		}
		s.Spec.Ports = append(s.Spec.Ports, port)
	}
	s.Spec.InternalTrafficPolicy = some(d, corev1.ServiceInternalTrafficPolicy(d.text("Cluster", "Local")))
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicy(d.text("Cluster", "Local", ""))
	s.Spec.HealthCheckNodePort = d.number(0, 31000)
	s.Spec.PublishNotReadyAddresses = d.one(6)
	s.Spec.SessionAffinity = corev1.ServiceAffinity(d.text("None", "None", "ClientIP"))
	if d.one(2) {
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: some(d, corev1.ClientIPConfig{TimeoutSeconds: some(d, d.number(10, 10800))})}
	}
	s.Spec.ExternalName = d.text("db.example.com", "")
	return s
}

func (d *dice) addresses(s *corev1.Service) {
	four := []string{"10.96.0.1", "10.96.0.2", "10.96.0.3"}
	six := []string{"fd00::1", "fd00::2"}
	switch d.intN(6) {
	case 0:
		s.Spec.ClusterIP = corev1.ClusterIPNone
	case 1:
		s.Spec.ClusterIPs = []string{d.text(six...)}
	case 2:
		s.Spec.ClusterIPs = []string{d.text(four...), d.text(six...)}
	case 3:
		s.Spec.ClusterIP = d.text(append(four, "None", "")...)
	default:
		s.Spec.ClusterIPs = []string{d.text(four...)}
	}
	s.Spec.ExternalIPs = d.list(2, "10.96.0.3", "198.51.100.1", "2001:db8::1", "192.168.0.1", "10.96.0.1")
	s.Spec.LoadBalancerSourceRanges = d.list(2, "10.0.0.0/8", "fd00::/8", "0.0.0.0/0", "10.9.0.0/16")
	for range d.intN(3) {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{
			IP: d.text("203.0.113.1", "198.51.100.1", "2001:db8::2", ""), IPMode: some(d, corev1.LoadBalancerIPMode(d.text("VIP", "Proxy")))})
	}
}

func (d *dice) slice() *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: d.text("s1", "s2", "s3", "s4", "s5", "s6")}}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: d.text("a", "b", "c", "d", "")}
	if d.one(12) {
		s.Labels[corev1.IsHeadlessService] = ""
	}
	s.AddressType = discoveryv1.AddressType(d.text("IPv4", "IPv4", "IPv6"))
	for range 1 + d.intN(3) {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: some(d, d.text("", "", "http")), Protocol: some(d, d.protocol()), Port: some(d, d.number(8080, 8081, 53))})
	}
	hinted := d.one(2)
	for range d.intN(7) {
		s.Endpoints = append(s.Endpoints, d.endpoint(s.AddressType, hinted))
	}
	return s
}

func (d *dice) endpoint(family discoveryv1.AddressType, hinted bool) discoveryv1.Endpoint {
	n := 1 + d.intN(5)
	e := discoveryv1.Endpoint{Addresses: []string{d.text(fmt.Sprintf("10.1.0.%d", n))}}
	if family == discoveryv1.AddressTypeIPv6 {
		e.Addresses[0] = d.text(fmt.Sprintf("fd02::%d", n))
	}
	if d.wild && d.one(8) {
		e.Addresses = nil
	}
	e.Conditions = discoveryv1.EndpointConditions{Ready: some(d, d.one(2)), Serving: some(d, d.one(2)), Terminating: some(d, d.one(2))}
	e.NodeName, e.Zone, e.Hostname = some(d, d.text("n1", "n1", "n2")), some(d, d.text("a", "b")), some(d, d.text("h1", "h2"))
	if !d.one(4) {
		e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: "p", UID: types.UID(d.text("p1", "p2", "p3", ""))}
	}
	if hinted && (!d.wild || !d.one(6)) {
		e.Hints = &discoveryv1.EndpointHints{}
		for _, zone := range append(d.list(1, "a", "b"), d.text("a", "b")) {
			e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: zone})
		}
		for _, node := range d.list(2, "n1", "n2") {
			e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: node})
		}
	}
	return e
}

func (d *dice) network() model.Network {
	n := model.Network{Node: d.text("n1", "n1", "n1", "n2", ""), Zone: d.text("a", "b", "")}
	for range d.intN(3) {
		n.NodePortAddrs = append(n.NodePortAddrs, netip.MustParseAddr(pick(d, "192.168.0.1", "192.168.0.2", "fd01::1", "127.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0")))
	}
	if d.wild && d.one(4) {
		n.NodePortAddrs = append(n.NodePortAddrs, netip.Addr{})
		n.PodCIDRs = append(n.PodCIDRs, netip.Prefix{})
	}
	if d.one(2) {
		n.ClusterCIDRs = append(n.ClusterCIDRs, netip.MustParsePrefix(pick(d, "10.1.0.0/16", "10.2.3.4/8")))
	}
	return n
}

func (d *dice) fact() model.Reason {
	return pick(d, model.LocalDead, model.LocalNotReady, model.LocalDraining, model.Reason(d.intN(20)))
}
