package server

import (
	"bytes"
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// FuzzAnswer puts any packet to a worker: it does not panic, and what it answers is a response to that packet, as long as it may be at most, that
// another library can read.
func FuzzAnswer(f *testing.F) {
	forwarder := newFakeForwarder(f)
	_, full := realZones(f)
	s, err := New(f.Context(), Options{
		Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Sockets: 1, Zone: full, Forwarder: forwarder,
		Namespace: func(a netip.Addr) (string, bool) { return map[bool]string{true: "shop", false: "ns"}[a.Is6()], true },
		Searches:  []string{"corp.example"}, Limits: Limits{PerSecond: -1}, Transfer: everybody,
		PodExists: func(context.Context, string, netip.Addr) (bool, error) { return true, nil },
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	for _, name := range []string{
		"web.ns.svc.cluster.test.", "many.ns.svc.cluster.test.", "ext.ns.svc.cluster.test.", "10-0-0-7.ns.pod.cluster.test.", ".", "localhost.",
		"www.example.", "www.example.ns.svc.cluster.test.", "web.ns.svc.cluster.test.ns.svc.cluster.test.", "single.ns.svc.cluster.test.",
		"web.shop.svc.cluster.local.", "_http._tcp.web.shop.svc.cluster.local.", "outside.shop.svc.cluster.local.", "1.0.96.10.in-addr.arpa.",
		"cluster.local.", "10-1-0-7.shop.pod.cluster.local.", "www.example.shop.svc.cluster.local.",
		"web.shop.svc.cluster.local.shop.svc.cluster.local.",
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeAXFR, dns.TypeANY} {
			m := question(name, qtype)
			f.Add(pack(f, m), false)
			m.SetEdns0(4096, true)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}}
			f.Add(pack(f, m), true)
		}
	}
	part := question("cluster.local.", dns.TypeIXFR)
	for _, serial := range []uint32{1, 1 << 31} {
		part.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: "cluster.local.", Rrtype: dns.TypeSOA, Class: dns.ClassINET}, Ns: ".", Mbox: ".", Serial: serial}}
		f.Add(pack(f, part), true)
	}
	w := newWorker(s, s.slow)
	f.Fuzz(func(t *testing.T, packet []byte, tcp bool) {
		s.SetZone(newFakeZone())
		checkAnswer(t, w, &request{packet: packet, client: netip.MustParseAddrPort("127.0.0.1:5353"), tcp: tcp, at: time.Now()})
		s.SetZone(full)
		checkAnswer(t, w, &request{packet: packet, client: netip.MustParseAddrPort("[::1]:5353"), tcp: tcp, at: time.Now()})
	})
}

func checkAnswer(t *testing.T, w *worker, rq *request) {
	t.Helper()
	before, out := bytes.Clone(rq.packet), make([]byte, maxUDPReply)
	check := func() {
		limit := w.size
		reply := w.finish(rq)
		switch {
		case len(reply) > limit:
			t.Errorf("%d octets, at most %d", len(reply), limit)
		case !bytes.Equal(reply[:2], before[:2]):
			t.Errorf("ID %x of %x", reply[:2], before[:2])
		case reply[2]&0x80 == 0:
			t.Error("no response")
		}
		if err := new(dns.Msg).Unpack(reply); err != nil && len(w.q.Name) > 0 {
			t.Errorf("%x is answered by %x: %v", before, reply, err)
		}
	}
	switch w.answer(rq, out) {
	case drop:
		return
	case wait:
		check()
		w.answerPatiently(t.Context(), rq, out)
	}
	check()
	if !bytes.Equal(before, rq.packet) {
		t.Error("the packet was changed")
	}
}
