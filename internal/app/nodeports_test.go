package app

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestPublished(t *testing.T) {
	port := func(name string, protocol corev1.Protocol, nodePort int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Protocol: protocol, Port: 80, NodePort: nodePort}
	}
	service := func(ports ...corev1.ServicePort) *corev1.Service {
		return &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: ports}}
	}
	endpoint := func(address string, ready, serving, terminating bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}}
	}
	slice := func(name string, number int32, protocol corev1.Protocol, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &number, Protocol: &protocol}}, Endpoints: endpoints}
	}
	const tcp, udp, sctp = corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP
	up, down, ending := endpoint("10.244.1.2", true, true, false), endpoint("10.244.1.3", false, false, false), endpoint("10.244.1.4", false, true, true)
	for name, test := range map[string]struct {
		service *corev1.Service
		slices  []*discoveryv1.EndpointSlice
		want    string
	}{
		"ready alone": {service(port("", tcp, 30080)), []*discoveryv1.EndpointSlice{slice("", 8080, tcp, ending, down, up)}, "[{{tcp 30080} [10.244.1.2:8080]}]"},
		"none ready, one that ends still serves": {
			service(port("", tcp, 30080)), []*discoveryv1.EndpointSlice{slice("", 8080, tcp, down, ending)}, "[{{tcp 30080} [10.244.1.4:8080]}]",
		},
		"unset conditions are ready": {
			service(port("", tcp, 30080)), []*discoveryv1.EndpointSlice{slice("", 8080, tcp, discoveryv1.Endpoint{Addresses: []string{"fd00::1"}})}, "[{{tcp 30080} [[fd00::1]:8080]}]",
		},
		"ports by name, of several slices": {
			service(port("a", tcp, 30001), port("b", udp, 30001)),
			[]*discoveryv1.EndpointSlice{slice("b", 53, udp, up), slice("a", 8080, tcp, up), slice("a", 8081, tcp, ending)},
			"[{{tcp 30001} [10.244.1.2:8080]} {{udp 30001} [10.244.1.2:53]}]",
		},
		"twice is once":      {service(port("", tcp, 30080)), []*discoveryv1.EndpointSlice{slice("", 80, tcp, up), slice("", 80, tcp, up)}, "[{{tcp 30080} [10.244.1.2:80]}]"},
		"no endpoints":       {service(port("", tcp, 30080)), nil, "[{{tcp 30080} []}]"},
		"no node port, SCTP": {service(port("a", tcp, 0), port("b", sctp, 30080)), nil, "[]"},
		"a slice without ports": {
			service(port("", tcp, 30080)), []*discoveryv1.EndpointSlice{{Endpoints: []discoveryv1.Endpoint{up}, Ports: []discoveryv1.EndpointPort{{Name: new("")}}}}, "[{{tcp 30080} []}]",
		},
	} {
		if got := fmt.Sprint(published(test.service, test.slices)); got != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
}
