package server

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/dns/zone"
	"github.com/endpointd/endpointd/internal/model"
)

// benchServer is set, to packets by a system call and the number of Services, in the process that serves for benchmarks: so its CPU time is the
// server's alone. Without Services the zone is the trivial one.
const benchServer = "DNS_SERVER_OF_BENCHMARK"

func serveBenchmark(how string) error {
	var batch, services int
	if _, err := fmt.Sscanf(how, "%d %d", &batch, &services); err != nil {
		return err
	}
	var z Zone = newFakeZone()
	if services > 0 {
		var err error
		if z, err = benchZone(services); err != nil {
			return err
		}
	}
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer cancel()
	s, err := New(ctx, Options{
		Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Zone: z, batch: batch, UDPSize: func(netip.Addr) int { return maxUDPReply },
	})
	if err != nil {
		return err
	}
	fmt.Println(s.Addrs()[0])
	return s.Run(ctx)
}

// benchZone has so many Services, each with an address and a named port, and a headless one of 100 endpoints.
func benchZone(services int) (Zone, error) {
	in := model.Input{}.WithNetwork(model.Network{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}})
	for i := range services {
		ip := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()
		in = in.WithService(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns-%d", i%10), Name: fmt.Sprintf("service-%d", i)},
			Spec:       corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
		})
	}
	in = in.WithService(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns-0", Name: "headless"},
		Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
	})
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns-0", Name: "headless", Labels: map[string]string{discoveryv1.LabelServiceName: "headless"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}},
	}
	for i := range 100 {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{netip.AddrFrom4([4]byte{10, 128, 0, byte(i)}).String()}})
	}
	z, err := zone.New(zone.Options{Domain: "cluster.local"})
	if err != nil {
		return nil, err
	}
	return z.Next(model.Build(in.WithSlice(slice), nil)), nil
}

// BenchmarkAnswer is what a request costs without the socket.
func BenchmarkAnswer(b *testing.B) {
	s, err := New(b.Context(), Options{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Zone: newFakeZone()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	cookies := question("web.ns.svc.cluster.test.", dns.TypeA)
	cookies.SetEdns0(1232, false)
	cookies.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}}
	for _, c := range []struct {
		name   string
		m      *dns.Msg
		client string
	}{
		{"A", question("web.ns.svc.cluster.test.", dns.TypeA), "127.0.0.1:5353"},
		{"A with cookie", cookies, "127.0.0.1:5353"},
		{"NXDOMAIN", question("no.ns.svc.cluster.test.", dns.TypeA), "127.0.0.1:5353"},
		{"others refused", question("web.ns.svc.cluster.test.", dns.TypeA), "192.0.2.1:5353"},
	} {
		b.Run(c.name, func(b *testing.B) {
			packet, err := c.m.Pack()
			if err != nil {
				b.Fatal(err)
			}
			w, out := newWorker(s, s.slow), make([]byte, maxUDPReply)
			rq := request{packet: packet, client: netip.MustParseAddrPort(c.client), at: time.Now()}
			b.ReportAllocs()
			for b.Loop() {
				if w.answer(&rq, out) == ready {
					w.finish(&rq)
				}
			}
		})
	}
}

// BenchmarkUDP puts one question again and again from another process; inflight is how many questions each of two clients has out. What counts
// is cpu-ns/query, the time of all threads of the server, in the kernel too.
func BenchmarkUDP(b *testing.B) {
	for _, inflight := range []int{1, 16, 64, 256} {
		for _, batch := range []int{1, maxBatch} {
			b.Run(fmt.Sprintf("inflight=%d/batch=%d", inflight, batch), func(b *testing.B) {
				benchmarkUDP(b, inflight, fmt.Sprint(batch, " ", 0), question("web.ns.svc.cluster.test.", dns.TypeA))
			})
		}
	}
}

// BenchmarkZone puts questions to the real zone with 1,000 and 10,000 Services, as BenchmarkUDP does.
func BenchmarkZone(b *testing.B) {
	for _, services := range []int{1000, 10_000} {
		for _, q := range []struct {
			name, question string
			qtype          uint16
		}{
			{"A", "service-7.ns-7.svc.cluster.local.", dns.TypeA},
			{"headless-100", "headless.ns-0.svc.cluster.local.", dns.TypeA},
			{"SRV", "_http._tcp.service-7.ns-7.svc.cluster.local.", dns.TypeSRV},
			{"PTR", "7.0.96.10.in-addr.arpa.", dns.TypePTR},
			{"NXDOMAIN", "nothing.ns-7.svc.cluster.local.", dns.TypeA},
		} {
			b.Run(fmt.Sprintf("services=%d/%s", services, q.name), func(b *testing.B) {
				m := question(q.question, q.qtype)
				m.SetEdns0(maxUDPReply, false)
				benchmarkUDP(b, 64, fmt.Sprint(maxBatch, " ", services), m)
			})
		}
	}
}

func benchmarkUDP(b *testing.B, inflight int, how string, m *dns.Msg) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), benchServer+"="+how)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
	}()
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	before := cpuTime(b, cmd.Process.Pid)
	b.ResetTimer()
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() {
			if err := load(strings.TrimSpace(addr), b.N/2+1, inflight, pack(b, m)); err != nil {
				b.Error(err)
			}
		})
	}
	group.Wait()
	b.StopTimer()
	took := cpuTime(b, cmd.Process.Pid) - before
	b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "cpu-ns/query")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
}

// load asks n questions, with so many in flight.
func load(addr string, n, inflight int, packet []byte) error {
	conn, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	c := ipv4.NewPacketConn(conn.(net.PacketConn))
	send, receive := make([]ipv4.Message, inflight), make([]ipv4.Message, inflight)
	for i := range inflight {
		send[i].Buffers = [][]byte{packet}
		receive[i].Buffers = [][]byte{make([]byte, maxUDPReply)}
	}
	for done, out := 0, 0; done < n; {
		for out < inflight {
			k, err := c.WriteBatch(send[:inflight-out], 0)
			if err != nil {
				return err
			}
			out += k
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		k, err := c.ReadBatch(receive, 0)
		if err != nil {
			return fmt.Errorf("after %d of %d: %w", done, n, err)
		}
		done, out = done+k, out-k
	}
	return nil
}

// cpuTime is what a process has used so far, to a hundredth of a second.
func cpuTime(b *testing.B, pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')'):]))
	ticks := 0
	for _, f := range fields[12:14] { // utime and stime
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
