package zone

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/model"
)

// many are Services of two endpoints each, ten namespaces, and a headless one of 100.
func many(services int) model.Input {
	var in model.Input
	in = in.WithNetwork(model.Network{
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9")},
	})
	for n := range services {
		in = in.WithService(clusterIPService(n, 0)).WithSlice(endpointSlice(fmt.Sprintf("ns-%d", n%10), fmt.Sprintf("service-%d", n), n*2, 2))
	}
	headless := clusterIPService(services, 0)
	headless.Namespace, headless.Name, headless.Spec.ClusterIP, headless.Spec.ClusterIPs = "ns-0", "headless", corev1.ClusterIPNone, nil
	return in.WithService(headless).WithSlice(endpointSlice("ns-0", "headless", 1<<20, 100))
}

// clusterIPService number n, whose address is another with another salt.
func clusterIPService(n, salt int) *corev1.Service {
	addr := netip.AddrFrom4([4]byte{10, byte(96 + salt), byte(n >> 8), byte(n)}).String()
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns-%d", n%10), Name: fmt.Sprintf("service-%d", n)},
		Spec: corev1.ServiceSpec{
			ClusterIP: addr, ClusterIPs: []string{addr},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "metrics", Port: 9090, Protocol: corev1.ProtocolTCP}},
		},
	}
}

func endpointSlice(namespace, service string, first, count int) *discoveryv1.EndpointSlice {
	name, port, protocol := "http", int32(8080), corev1.ProtocolTCP
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: service, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}},
	}
	for i := first; i < first+count; i++ {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{netip.AddrFrom4([4]byte{10, byte(128 + i>>16), byte(i >> 8), byte(i)}).String()},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: fmt.Sprintf("pod-%d", i)},
		})
	}
	return s
}

// questions that are asked often.
var questions = []struct {
	title, name string
	rtype       uint16
}{
	{"A", "service-77.ns-7.svc.cluster.local.", dns.TypeA},
	{"NODATA", "service-77.ns-7.svc.cluster.local.", dns.TypeAAAA},
	{"headless of 100", "headless.ns-0.svc.cluster.local.", dns.TypeA},
	{"SRV", "_http._tcp.service-77.ns-7.svc.cluster.local.", dns.TypeSRV},
	{"SRV of 100", "_http._tcp.headless.ns-0.svc.cluster.local.", dns.TypeSRV},
	{"PTR", "77.0.96.10.in-addr.arpa.", dns.TypePTR},
	{"PTR of an endpoint", "1.0.144.10.in-addr.arpa.", dns.TypePTR},
	{"NXDOMAIN", "www.example.com.ns-7.svc.cluster.local.", dns.TypeA},
	{"pod", "10-128-0-77.ns-8.pod.cluster.local.", dns.TypeA},
	{"others'", "www.example.com.", dns.TypeA},
}

// asked is a packet with a question.
func asked(t testing.TB, name string, rtype uint16) []byte {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, rtype)
	m.SetEdns0(1232, false)
	packet, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return packet
}

// TestAnswersDoNotAllocate puts every question, to UDP and TCP.
func TestAnswersDoNotAllocate(t *testing.T) { // not parallel: AllocsPerRun counts the whole process
	z := newZone(t).Next(model.Build(many(100), nil))
	buf := make([]byte, dns.MaxMsgSize)
	var rest [wire.MaxName]byte
	for _, question := range questions {
		packet := asked(t, question.name, question.rtype)
		for _, tcp := range []bool{false, true} {
			var size int
			allocs := testing.AllocsPerRun(100, func() {
				var q wire.Query
				if rcode, ok := q.Parse(packet); rcode != 0 || !ok {
					t.Error(rcode, ok)
				}
				var r wire.Response
				r.Begin(buf, &q, q.Limit(tcp, 1232), 1232)
				z.Answer(&q, &r, 12345)
				size = len(r.Finish())
				z.Search(rest[:0], q.Name, "ns-7")
				z.Namespace(netip.AddrFrom4([4]byte{10, 128, 0, 77}))
			})
			if allocs != 0 || size < 40 {
				t.Errorf("%s: %v allocations for %d octets", question.title, allocs, size)
			}
		}
	}
}

func BenchmarkAnswer(b *testing.B) {
	for _, services := range []int{1_000, 10_000} {
		z := newZone(b).Next(model.Build(many(services), nil))
		for _, question := range questions {
			b.Run(fmt.Sprintf("%s/%d", question.title, services), func(b *testing.B) {
				packet, buf := asked(b, question.name, question.rtype), make([]byte, dns.MaxMsgSize)
				b.ReportAllocs()
				for i := uint64(0); b.Loop(); i++ {
					var q wire.Query
					q.Parse(packet)
					var r wire.Response
					r.Begin(buf, &q, q.Limit(false, 1232), 1232)
					z.Answer(&q, &r, i*0x9e3779b97f4a7c15)
					r.Finish()
				}
			})
		}
	}
}

func BenchmarkSearch(b *testing.B) {
	z := newZone(b).Next(model.Build(many(1_000), nil))
	name, err := wire.AppendName(nil, "www.example.com.ns-7.svc.cluster.local")
	if err != nil {
		b.Fatal(err)
	}
	var buf [wire.MaxName]byte
	b.ReportAllocs()
	for b.Loop() {
		z.Search(buf[:0], name, "ns-7")
	}
}

// BenchmarkNext is of one Service that gets another address, and one endpoint of 100 that comes and goes.
func BenchmarkNext(b *testing.B) {
	for _, services := range []int{1_000, 10_000} {
		in := many(services)
		was := model.Build(in, nil)
		z := newZone(b).Next(was)
		for _, change := range []struct {
			title string
			of    func(i int) model.Input
		}{
			{"address", func(i int) model.Input { return in.WithService(clusterIPService(77, 1+i%2)) }},
			{"endpoint", func(i int) model.Input { return in.WithSlice(endpointSlice("ns-0", "headless", 1<<20, 99+i%2)) }},
		} {
			snapshots := [2]*model.Snapshot{}
			snapshots[0] = model.Build(change.of(0), was)
			snapshots[1] = model.Build(change.of(1), snapshots[0])
			b.Run(fmt.Sprintf("%s/%d", change.title, services), func(b *testing.B) {
				b.ReportAllocs()
				zones := [2]*Zone{z.Next(snapshots[0]), nil}
				for b.Loop() {
					zones[1] = zones[0].Next(snapshots[1])
				}
			})
		}
	}
}

// BenchmarkFirst is of the first Snapshot.
func BenchmarkFirst(b *testing.B) {
	for _, services := range []int{1_000, 10_000} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			s := model.Build(many(services), nil)
			z := newZone(b)
			b.ReportAllocs()
			for b.Loop() {
				z.Next(s)
			}
		})
	}
}
