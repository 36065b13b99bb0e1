package server

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/forward"
	"github.com/endpointd/endpointd/internal/dns/zone"
	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/model/modeltest"
	"github.com/endpointd/endpointd/internal/testkit"
)

const objects = `
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{name: http, port: 80, protocol: TCP}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: outside}
spec: {type: ExternalName, externalName: www.example}
`

// upstream answers by f over UDP until the test ends.
func upstream(t testing.TB, f func(*dns.Msg) *dns.Msg) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	s := &dns.Server{PacketConn: conn, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		if m := f(r); m != nil {
			_ = w.WriteMsg(m)
		}
	})}
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		if err := errors.Join(s.Shutdown(), <-done); err != nil {
			t.Error(err)
		}
	})
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

// records answers with what a table has, in the text of a zone file.
func records(asked *atomic.Int64, table map[string]string) func(*dns.Msg) *dns.Msg {
	return func(r *dns.Msg) *dns.Msg {
		asked.Add(1)
		m := new(dns.Msg).SetReply(r)
		name := strings.ToLower(r.Question[0].Name)
		text, ok := table[name]
		if !ok {
			m.Rcode = dns.RcodeNameError
			m.Ns = append(m.Ns, &dns.SOA{Hdr: dns.RR_Header{Name: "example.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 300}, Ns: "a.", Mbox: "b.", Minttl: 300})
			return m
		}
		if rr, err := dns.NewRR(r.Question[0].Name + " 300 " + text); err == nil && rr.Header().Rrtype == r.Question[0].Qtype {
			m.Answer = append(m.Answer, rr)
		}
		return m
	}
}

func startForwarder(t testing.TB, o forward.Options) *forward.Forwarder {
	t.Helper()
	o.Logger = slog.New(slog.DiscardHandler)
	f, err := forward.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

// realZones are one of no Snapshot, and what comes next.
func realZones(t testing.TB) (empty, full *zone.Zone) {
	t.Helper()
	empty, err := zone.New(zone.Options{Domain: "cluster.local", Servers: []netip.Addr{netip.MustParseAddr("10.96.0.10")}})
	if err != nil {
		t.Fatal(err)
	}
	in, err := modeltest.Apply(model.Input{}, objects)
	if err != nil {
		t.Fatal(err)
	}
	return empty, empty.Next(model.Build(in, nil))
}

// TestWhole has the real zone, and the real forwarder with an upstream on loopback.
func TestWhole(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	up := upstream(t, records(&asked, map[string]string{"www.example.": "A 192.0.2.1", "intern.corp.example.": "A 192.0.2.2"}))
	f := startForwarder(t, forward.Options{Upstreams: map[string][]forward.Upstream{".": {{Addr: up}}}})
	empty, full := realZones(t)
	s := start(t, Options{
		Zone: empty, Forwarder: Forward(f), Searches: []string{"corp.example"},
		Namespace: func(netip.Addr) (string, bool) { return "shop", true },
		PodExists: func(_ context.Context, namespace string, addr netip.Addr) (bool, error) {
			return namespace == "shop" && addr == netip.MustParseAddr("10.1.0.7"), nil
		},
	})
	for _, network := range []string{"udp", "tcp"} {
		wantBrief(t, ask(t, s, network, question("web.shop.svc.cluster.local.", dns.TypeA)), "SERVFAIL")
		wantBrief(t, ask(t, s, network, question("www.example.", dns.TypeA)), "NOERROR www.example. A 192.0.2.1")
	}
	s.SetZone(full)
	for _, c := range []struct{ name, want string }{
		{"web.shop.svc.cluster.local.", "NOERROR web.shop.svc.cluster.local. A 10.96.0.1"},
		{"no.shop.svc.cluster.local.", "NXDOMAIN"},
		{"outside.shop.svc.cluster.local.",
			"NOERROR outside.shop.svc.cluster.local. CNAME www.example. www.example. A 192.0.2.1"},
		{"10-1-0-7.shop.pod.cluster.local.", "NOERROR 10-1-0-7.shop.pod.cluster.local. A 10.1.0.7"},
		{"10-1-0-8.shop.pod.cluster.local.", "NXDOMAIN"},
		{"www.example.shop.svc.cluster.local.",
			"NOERROR www.example.shop.svc.cluster.local. CNAME www.example. www.example. A 192.0.2.1"},
		{"intern.shop.svc.cluster.local.",
			"NOERROR intern.shop.svc.cluster.local. CNAME intern.corp.example. intern.corp.example. A 192.0.2.2"},
		{"web.shop.svc.cluster.local.shop.svc.cluster.local.",
			"NOERROR web.shop.svc.cluster.local.shop.svc.cluster.local. CNAME web.shop.svc.cluster.local. web.shop.svc.cluster.local. A 10.96.0.1"},
		{"www.example.other.svc.cluster.local.", "NXDOMAIN"},
		{"nowhere.example.shop.svc.cluster.local.", "NXDOMAIN"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			r := ask(t, s, network, question(c.name, dns.TypeA))
			wantBrief(t, r, c.want)
			if r.Rcode == dns.RcodeNameError && (len(r.Ns) != 1 || r.Ns[0].Header().Name != "cluster.local.") {
				t.Errorf("%s: authority %v, want our SOA", c.name, r.Ns)
			}
		}
	}
	before := asked.Load()
	for range 20 {
		ask(t, s, "udp", question("www.example.shop.svc.cluster.local.", dns.TypeA))
		ask(t, s, "udp", question("outside.shop.svc.cluster.local.", dns.TypeA))
	}
	if got := asked.Load() - before; got > 0 {
		t.Errorf("the upstream was asked %d times for what the cache has", got)
	}
	var text bytes.Buffer
	if err := s.WriteMetrics(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`endpointd_dns_upstream_up{upstream="`, "endpointd_dns_cache_hits_total ", `endpointd_dns_upstream_duration_seconds_bucket{le="+Inf"} `} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no metric %s", want)
		}
	}
}

// TestLoop has an upstream that asks us: we notice, and it is not asked any more.
func TestLoop(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var back netip.AddrPort
	up := upstream(t, func(r *dns.Msg) *dns.Msg {
		mu.Lock()
		defer mu.Unlock()
		m, _, err := new(dns.Client).Exchange(r, back.String())
		if err != nil {
			return nil
		}
		return m
	})
	mu.Lock()
	looped := make(chan struct{}, 1)
	f := startForwarder(t, forward.Options{
		Upstreams: map[string][]forward.Upstream{".": {{Addr: up}}},
		Loop: func(forward.Upstream) {
			select {
			case looped <- struct{}{}:
			default:
			}
		},
	})
	s := start(t, Options{Forwarder: Forward(f)})
	back = s.Addrs()[0]
	mu.Unlock()
	<-looped
	testkit.Await(t, patience, func() error {
		if metric(t, s, "endpointd_dns_upstream_loops{") != 1 {
			return errors.New("the metrics know of no loop")
		}
		return nil
	})
	wantBrief(t, ask(t, s, "udp", question("www.example.", dns.TypeA)), "SERVFAIL")
}

// TestWholeAllocations holds what the real zone and cache answer to no allocation.
func TestWholeAllocations(t *testing.T) {
	var asked atomic.Int64
	up := upstream(t, records(&asked, map[string]string{"www.example.": "A 192.0.2.1"}))
	f := startForwarder(t, forward.Options{Upstreams: map[string][]forward.Upstream{".": {{Addr: up}}}})
	_, full := realZones(t)
	b := newBench(t, Options{
		Zone: full, Forwarder: Forward(f), Searches: []string{"corp.example"},
		Namespace: func(netip.Addr) (string, bool) { return "shop", true },
	})
	for _, name := range []string{
		"web.shop.svc.cluster.local.", "no.shop.svc.cluster.local.", "www.example.", "outside.shop.svc.cluster.local.",
		"www.example.shop.svc.cluster.local.", "web.shop.svc.cluster.local.shop.svc.cluster.local.",
	} {
		rq := &request{packet: pack(t, question(name, dns.TypeA)), client: netip.MustParseAddrPort("127.0.0.1:53"), at: time.Now()}
		out := make([]byte, maxUDPReply)
		if b.w.answer(rq, out) == wait {
			b.w.answerPatiently(t.Context(), rq, out)
		}
		allocs := testing.AllocsPerRun(1000, func() {
			if b.w.answer(rq, out) != ready {
				t.Errorf("%s is not answered at once", name)
			}
			b.w.finish(rq)
		})
		if allocs > 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}
