package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// shape is a number of Services with so many endpoints each.
type shape struct{ services, endpoints int }

func (s shape) String() string { return fmt.Sprintf("%d × %d", s.services, s.endpoints) }

const (
	servicePort = 80
	// fillerEndpoints is how many endpoints the Services have that are only there.
	fillerEndpoints = 2
	// flipAddrs is how many endpoints the flipped Service has in turn: a change that is overtaken by the next ones is told from them.
	flipAddrs = 200
)

// offset is the n-th address of a range.
func offset(r netip.Prefix, n int) netip.Addr {
	base := r.Addr().As4()
	binary.BigEndian.PutUint32(base[:], binary.BigEndian.Uint32(base[:])+uint32(n)) //nolint:gosec // far below the range's size
	return netip.AddrFrom4(base)
}

// The Services that are used have the last addresses before the fillers.
func targetService() netip.AddrPort {
	return netip.AddrPortFrom(offset(serviceRange, 254), servicePort)
}
func flippedService() netip.AddrPort {
	return netip.AddrPortFrom(offset(serviceRange, 255), servicePort)
}
func fillerService(i int) netip.AddrPort {
	return netip.AddrPortFrom(offset(serviceRange, 256+i), servicePort)
}

// targetEndpoint is the one of targetService, flippedEndpoint the n-th of flippedService.
func targetEndpoint() netip.AddrPort {
	return netip.AddrPortFrom(offset(endpointRange, 1), httpPort)
}
func flippedEndpoint(n int) netip.Addr         { return offset(endpointRange, 1000+n%flipAddrs) }
func fillerEndpoint(i, j, each int) netip.Addr { return offset(endpointRange, 65536+i*each+j) }

// filler is what is on the API: Services without selectors and slices that we write, for no pod is needed to have a proxy work.
type filler struct {
	client kubernetes.Interface
	made   shape
	slice  *discovery.EndpointSlice // of flippedService, as it is now
}

// prepareTraffic makes the namespace, the node and the Services that are used.
func prepareTraffic(ctx context.Context, client kubernetes.Interface, endpoints int) (*filler, error) {
	_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: trafficNode, Labels: map[string]string{corev1.LabelHostname: trafficNode}},
		Spec:       corev1.NodeSpec{PodCIDR: podRange.String(), PodCIDRs: []string{podRange.String()}},
	}
	if node, err = client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddr.String()}}
	if _, err = client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil {
		return nil, err
	}
	// The endpoints are pods, so their range is a node's, too.
	elsewhere := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: trafficNode + "-endpoints"},
		Spec:       corev1.NodeSpec{PodCIDR: endpointRange.String(), PodCIDRs: []string{endpointRange.String()}},
	}
	if _, err = client.CoreV1().Nodes().Create(ctx, elsewhere, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	f := &filler{client: client, made: shape{0, endpoints}}
	if _, err := f.service(ctx, "target", targetService(), httpPort, targetEndpoint().Addr()); err != nil {
		return nil, err
	}
	f.slice, err = f.service(ctx, "flipped", flippedService(), whoPort, flippedEndpoint(0))
	return f, err
}

// grow brings it to so many Services, as fast as the API takes them.
func (f *filler) grow(ctx context.Context, services int) error {
	first := f.made.services
	if services <= first {
		return nil
	}
	f.made.services = services
	return each(ctx, services-first, func(ctx context.Context, i int) error {
		i += first
		addrs := make([]netip.Addr, f.made.endpoints)
		for j := range addrs {
			addrs[j] = fillerEndpoint(i, j, len(addrs))
		}
		_, err := f.service(ctx, "f"+strconv.Itoa(i), fillerService(i), httpPort, addrs...)
		return err
	})
}

// service makes a Service and its slice.
func (f *filler) service(ctx context.Context, name string, at netip.AddrPort, port int32, endpoints ...netip.Addr) (*discovery.EndpointSlice, error) {
	_, err := f.client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			ClusterIP: at.Addr().String(),
			Ports:     []corev1.ServicePort{{Name: "http", Port: int32(at.Port()), Protocol: corev1.ProtocolTCP}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	protocol, portName := corev1.ProtocolTCP, "http"
	return f.client.DiscoveryV1().EndpointSlices(namespace).Create(ctx, &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			discovery.LabelServiceName: name, discovery.LabelManagedBy: "bench.endpointd.io",
		}},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: &portName, Port: &port, Protocol: &protocol}},
		Endpoints:   endpointsOf(endpoints),
	}, metav1.CreateOptions{})
}

func endpointsOf(addrs []netip.Addr) []discovery.Endpoint {
	ready := true
	out := make([]discovery.Endpoint, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, discovery.Endpoint{Addresses: []string{a.String()}, Conditions: discovery.EndpointConditions{Ready: &ready}})
	}
	return out
}

// flip leads flippedService to its n-th endpoint, and says when the write was sent and when it was answered.
func (f *filler) flip(ctx context.Context, n int) (sent, answered time.Duration, err error) {
	next := f.slice.DeepCopy()
	next.Endpoints = endpointsOf([]netip.Addr{flippedEndpoint(n)})
	sent = monotonic()
	next, err = f.client.DiscoveryV1().EndpointSlices(namespace).Update(ctx, next, metav1.UpdateOptions{})
	answered = monotonic()
	if err == nil {
		f.slice = next
	}
	return sent, answered, err
}
