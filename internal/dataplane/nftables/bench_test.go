package nftables

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/model"
)

// service number n, of one port, with the endpoints given.
func service(in model.Input, n int, endpoints ...netip.Addr) model.Input {
	name := fmt.Sprintf("s-%d", n)
	in = in.WithService(serviceObject(n))
	port, protocol, noName := int32(8080), corev1.ProtocolTCP, ""
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &noName, Port: &port, Protocol: &protocol}},
	}
	for _, e := range endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{e.String()}})
	}
	return in.WithSlice(slice)
}

func serviceObject(n int) *corev1.Service {
	ip := clusterIP(n).String()
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("s-%d", n), UID: "1"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

func clusterIP(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(96 + n>>16), byte(n >> 8), byte(n)})
}

// endpoint i of service n.
func endpoint(n, i int) netip.Addr {
	n = n*64 + i
	return netip.AddrFrom4([4]byte{10, byte(128 + n>>16), byte(n >> 8), byte(n)})
}

func endpoints(n, count int) (addrs []netip.Addr) {
	for i := range count {
		addrs = append(addrs, endpoint(n, i))
	}
	return addrs
}

func many(services, each int) model.Input {
	var in model.Input
	in = in.WithNetwork(dptest.Network())
	for n := range services {
		in = service(in, n, endpoints(n, each)...)
	}
	return in
}

func newProxier(b testing.TB, place *dptest.Place) *Proxier {
	b.Helper()
	var p *Proxier
	err := place.Do(func() (err error) {
		p, err = New(Options{Untracked: true})
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := p.Close(); err != nil {
			b.Error(err)
		}
	})
	return p
}

// BenchmarkCold loads everything into a kernel without a table.
func BenchmarkCold(b *testing.B) {
	w := dptest.NewWorld(b)
	for _, size := range []struct{ services, each int }{{1, 2}, {1000, 2}, {10_000, 2}, {5000, 50}, {30_000, 2}} {
		s := model.Build(many(size.services, size.each), nil)
		b.Run(fmt.Sprintf("%dx%d", size.services, size.each), func(b *testing.B) {
			for b.Loop() {
				p := newProxier(b, w.Node)
				if err := p.Sync(b.Context(), s); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := p.Remove(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkChange makes an endpoint of one Service come or go.
func BenchmarkChange(b *testing.B) {
	w := dptest.NewWorld(b)
	for _, services := range []int{100, 1000, 10_000, 30_000} {
		in := many(services, 2)
		p := newProxier(b, w.Node)
		s := model.Build(in, nil)
		if err := p.Sync(b.Context(), s); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			i := 0
			for b.Loop() {
				b.StopTimer()
				i++
				in = service(in, i%services, endpoints(i%services, 2+i/services%2)...)
				in = service(in, (i+7)%services, endpoints((i+7)%services, 1+i%3)...)
				s = model.Build(in, s)
				b.StartTimer()
				if err := p.Sync(b.Context(), s); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("rule/services=%d", services), func(b *testing.B) { // for comparison: a change with chains and rules, which the kernel validates
			seconds := int32(10)
			for b.Loop() {
				b.StopTimer()
				seconds++
				in = withAffinity(in, seconds)
				s = model.Build(in, s)
				b.StartTimer()
				if err := p.Sync(b.Context(), s); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("verify/services=%d", services), func(b *testing.B) {
			for b.Loop() {
				if repaired, err := p.Verify(b.Context()); err != nil || repaired {
					b.Fatal(repaired, err)
				}
			}
		})
		b.Run(fmt.Sprintf("adopt/services=%d", services), func(b *testing.B) {
			for b.Loop() {
				p := newProxier(b, w.Node)
				if err := p.Sync(b.Context(), s); err != nil {
					b.Fatal(err)
				}
			}
		})
		if err := p.Remove(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
