package model_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/endpointd/endpointd/internal/model"
)

// aService is the n-th of a cluster, as the API would give it.
func aService(n int) *corev1.Service {
	policy := corev1.ServiceInternalTrafficPolicyCluster
	addr := netip.AddrFrom4([4]byte{10, 96 + byte(n>>16), byte(n >> 8), byte(n)}).String()
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprintf("ns-%d", n%50), Name: fmt.Sprintf("service-%d", n),
			UID: types.UID(fmt.Sprintf("%08d-0000-0000-0000-000000000000", n)), CreationTimestamp: metav1.NewTime(time.Unix(int64(n), 0)),
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: addr, ClusterIPs: []string{addr}, InternalTrafficPolicy: &policy,
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

// aSlice is the part-th slice of the n-th Service, with its endpoints on ten nodes.
func aSlice(n, part, endpoints int, ready bool) *discoveryv1.EndpointSlice {
	yes, no := true, false
	name, port, protocol := "http", int32(8080), corev1.ProtocolTCP
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprintf("ns-%d", n%50), Name: fmt.Sprintf("service-%d-%05d", n, part),
			Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("service-%d", n)},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}},
	}
	for i := range endpoints {
		at := (n*37+part)*endpoints + i
		node, zone := fmt.Sprintf("node-%d", at%10), fmt.Sprintf("zone-%d", at%3)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{netip.AddrFrom4([4]byte{10, 128 + byte(at>>16), byte(at >> 8), byte(at)}).String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			NodeName:   &node, Zone: &zone,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: s.Namespace, Name: fmt.Sprintf("service-%d-%010d", n, at),
				UID: types.UID(fmt.Sprintf("%08d-1111-1111-1111-%012d", n, at))},
		})
	}
	if !ready {
		s.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &no}
	}
	return s
}

func aNode() model.Input {
	return model.Input{}.WithNetwork(model.Network{Node: "node-1", Zone: "zone-1", NodePortAddrs: []netip.Addr{netip.MustParseAddr("192.168.0.1")}})
}

// aCluster has Services with some slices each.
func aCluster(services, slices, endpoints int) model.Input {
	in := aNode()
	for n := range services {
		in = in.WithService(aService(n))
		for part := range slices {
			in = in.WithSlice(aSlice(n, part, endpoints, true))
		}
	}
	return in
}

// BenchmarkChange is one endpoint that becomes ready or unready: the slice read, the Snapshot built, and what differs asked for.
func BenchmarkChange(b *testing.B) {
	for _, services := range []int{100, 1_000, 10_000, 30_000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) { benchmarkChange(b, aCluster(services, 1, 2), 2) })
	}
}

// BenchmarkChangeLarge is the same in one Service of 10,000 endpoints.
func BenchmarkChangeLarge(b *testing.B) { benchmarkChange(b, aCluster(1, 100, 100), 100) }

func benchmarkChange(b *testing.B, in model.Input, endpoints int) {
	flips := []*discoveryv1.EndpointSlice{aSlice(0, 0, endpoints, false), aSlice(0, 0, endpoints, true)}
	now := model.Build(in, nil)
	b.ReportAllocs()
	start := cpu(b)
	for i := 0; b.Loop(); i++ {
		in = in.WithSlice(flips[i%2])
		next := model.Build(in, now)
		n := 0
		for range next.Changed(now) {
			n++
		}
		if n != 1 {
			b.Fatalf("%d Services changed", n)
		}
		now = next
	}
	b.ReportMetric(float64(cpu(b)-start)/float64(b.N), "cpu-ns/op")
}

// cpu is what the process has used of the processors, which says more than the clock does on a machine that has other things to do.
func cpu(b *testing.B) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkFull is all that a node reads at its start, and its first Snapshot; and the memory that both take.
func BenchmarkFull(b *testing.B) {
	for _, size := range []struct{ services, endpoints int }{{10_000, 2}, {5_000, 50}} {
		b.Run(fmt.Sprintf("%dx%d", size.services, size.endpoints), func(b *testing.B) {
			var services []*corev1.Service
			var slices []*discoveryv1.EndpointSlice
			for n := range size.services {
				services, slices = append(services, aService(n)), append(slices, aSlice(n, 0, size.endpoints, true))
			}
			start := cpu(b)
			for b.Loop() {
				in := aNode()
				for n := range services {
					in = in.WithService(services[n]).WithSlice(slices[n])
				}
				if model.Build(in, nil).Len() != size.services {
					b.Fatal("Services are missing")
				}
			}
			b.ReportMetric(float64(cpu(b)-start)/float64(b.N)/1e6, "cpu-ms/op")
			clear(services)
			clear(slices) // bytesEach counts from here
			b.ReportMetric(bytesEach(size.services, size.endpoints), "B/endpoint")
		})
	}
}

// bytesEach is what an Input and its Snapshot keep for each endpoint of a cluster, its Service included; the objects are gone.
func bytesEach(services, endpoints int) float64 {
	before := heap()
	in := aCluster(services, 1, endpoints)
	now := model.Build(in, nil)
	after := heap()
	runtime.KeepAlive(in)
	runtime.KeepAlive(now)
	return float64(after-before) / float64(services*endpoints)
}

func heap() int64 {
	runtime.GC()
	runtime.GC() // what the first one found to have finalizers or weak pointers goes now
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// The budgets are what was measured and a fifth more: who exceeds one has found that out here and not in a cluster.
func TestBudgets(t *testing.T) {
	if got := bytesEach(500, 50); got > 500 {
		t.Errorf("an endpoint takes %.0f bytes, the budget is 500", got)
	}
	in := aCluster(2000, 1, 2)
	now := model.Build(in, nil)
	flips := []*discoveryv1.EndpointSlice{aSlice(0, 0, 2, false), aSlice(0, 0, 2, true)}
	i := 0
	got := testing.AllocsPerRun(500, func() {
		in = in.WithSlice(flips[i%2])
		now = model.Build(in, now)
		i++
	})
	if got > 120 {
		t.Errorf("a change makes %.0f allocations, the budget is 120", got)
	}
	t.Logf("%.0f allocations a change", got)
}
