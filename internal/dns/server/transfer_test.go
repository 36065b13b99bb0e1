package server

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/testkit"
)

const transferred = "cluster.local."

// receive transfers a zone, and returns its records as text and in how many messages they came.
func receive(t testing.TB, c net.Conn, m *dns.Msg) (records []string, messages int) {
	t.Helper()
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(m); err != nil {
		t.Fatal(err)
	}
	for len(records) < 2 || records[len(records)-1] != records[0] {
		r, err := conn.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if r.Rcode != dns.RcodeSuccess || !r.Authoritative || r.Truncated || r.Id != m.Id || len(r.Answer) == 0 {
			t.Fatalf("%v", r)
		}
		for _, rr := range r.Answer {
			records = append(records, strings.ToLower(rr.String()))
		}
		messages++
	}
	return records, messages
}

// everything is what a zone has to transfer, with the SOA at both ends.
func everything(t testing.TB, z Zone) []string {
	t.Helper()
	name, err := wire.AppendName(nil, transferred)
	if err != nil {
		t.Fatal(err)
	}
	records, rcode := z.Transfer(name)
	if rcode != dns.RcodeSuccess {
		t.Fatalf("RCODE %d", rcode)
	}
	var all []string
	for r := range records {
		header := dns.RR_Header{Name: wire.NameString(r.Name), Rrtype: r.Type, Class: dns.ClassINET, Ttl: r.TTL, Rdlength: uint16(len(r.Data))}
		rr, _, err := dns.UnpackRRWithHeader(header, r.Data, 0)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.ToLower(rr.String()))
	}
	return append(all, all[0])
}

// TestTransfer compares one that takes many messages with what the zone has, and asks something on the same connection after it.
func TestTransfer(t *testing.T) {
	t.Parallel()
	z, err := benchZone(2000)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, Options{Zone: z, Transfer: everybody})
	plain, edns := question(transferred, dns.TypeAXFR), question("Cluster.LOCAL.", dns.TypeAXFR)
	edns.SetEdns0(1232, false)
	edns.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}}
	older := question(transferred, dns.TypeIXFR)
	older.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: transferred, Rrtype: dns.TypeSOA, Class: dns.ClassINET}, Ns: ".", Mbox: ".", Serial: z.Serial() - 1}}
	c := connect(t, s)
	want := everything(t, z)
	for _, m := range []*dns.Msg{plain, edns, older} {
		got, messages := receive(t, c, m)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d records, want %d", m.Question[0].String(), len(got), len(want))
		}
		if messages < 5 {
			t.Errorf("%d records in %d messages", len(got), messages)
		}
		conn := &dns.Conn{Conn: c}
		if err := conn.WriteMsg(question("service-7.ns-7.svc.cluster.local.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		r, err := conn.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		wantBrief(t, r, "NOERROR service-7.ns-7.svc.cluster.local. A 10.96.0.7")
	}
	in, err := new(dns.Transfer).In(plain, s.Addrs()[0].String()) // as a secondary does
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for e := range in {
		if n += len(e.RR); e.Error != nil {
			t.Error(e.Error)
		}
	}
	if n != len(want) {
		t.Errorf("%d records, want %d", n, len(want))
	}
	if got := metric(t, s, `endpointd_dns_unsent_total`); got != 0 {
		t.Errorf("%v messages were not sent", got)
	}
	testkit.Await(t, patience, func() error { // the last message has gone before its place is given back
		if n := s.pool.waiting(); n != 0 {
			return fmt.Errorf("%d places in the pool are taken", n)
		}
		return nil
	})
}

func TestNoTransfer(t *testing.T) {
	t.Parallel()
	z, err := benchZone(1)
	if err != nil {
		t.Fatal(err)
	}
	same := question(transferred, dns.TypeIXFR)
	same.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: transferred, Rrtype: dns.TypeSOA, Class: dns.ClassINET}, Ns: ".", Mbox: ".", Serial: z.Serial()}}
	other := question(transferred, dns.TypeAXFR)
	other.Question[0].Qclass = dns.ClassCHAOS
	open := start(t, Options{Zone: z, Transfer: everybody})
	nobody := start(t, Options{Zone: z, Transfer: func(netip.Addr) bool { return false }})
	unsaid := start(t, Options{Zone: z})
	for _, c := range []struct {
		title, network string
		s              *Server
		m              *dns.Msg
		rcode, records int
	}{
		{"nobody may", "tcp", nobody, question(transferred, dns.TypeAXFR), dns.RcodeRefused, 0},
		{"nobody may, a part", "tcp", nobody, question(transferred, dns.TypeIXFR), dns.RcodeRefused, 0},
		{"nobody may, over UDP", "udp", nobody, question(transferred, dns.TypeIXFR), dns.RcodeRefused, 0},
		{"nothing is said", "tcp", unsaid, question(transferred, dns.TypeAXFR), dns.RcodeRefused, 0},
		{"over UDP", "udp", open, question(transferred, dns.TypeAXFR), dns.RcodeNotImplemented, 0},
		{"a part over UDP", "udp", open, question(transferred, dns.TypeIXFR), dns.RcodeSuccess, 1},
		{"a part that the client has", "tcp", open, same, dns.RcodeSuccess, 1},
		{"below the zone", "tcp", open, question("svc."+transferred, dns.TypeAXFR), dns.RcodeNotAuth, 0},
		{"a reverse zone", "tcp", open, question("96.10.in-addr.arpa.", dns.TypeAXFR), dns.RcodeNotAuth, 0},
		{"another zone", "tcp", open, question("example.", dns.TypeIXFR), dns.RcodeNotAuth, 0},
		{"another class", "tcp", open, other, dns.RcodeRefused, 0},
	} {
		r := ask(t, c.s, c.network, c.m)
		if r.Rcode != c.rcode || len(r.Answer) != c.records {
			t.Errorf("%s: %v", c.title, r)
		}
		for _, rr := range r.Answer {
			if soa, ok := rr.(*dns.SOA); !ok || soa.Serial != z.Serial() {
				t.Errorf("%s: %v", c.title, rr)
			}
		}
	}
}

// TestTransferIsOfOneZone: a zone that comes meanwhile is the next transfer's.
func TestTransferIsOfOneZone(t *testing.T) {
	t.Parallel()
	before, err := benchZone(3000)
	if err != nil {
		t.Fatal(err)
	}
	after, err := benchZone(10)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, Options{Zone: before, Transfer: everybody})
	c := connect(t, s)
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(question(transferred, dns.TypeAXFR)); err != nil {
		t.Fatal(err)
	}
	var got []string
	want := everything(t, before)
	for len(got) < len(want) {
		m, err := conn.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		for _, rr := range m.Answer {
			got = append(got, strings.ToLower(rr.String()))
		}
		s.SetZone(after)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d records that are not those of the zone at the beginning", len(got))
	}
	if got, _ := receive(t, c, question(transferred, dns.TypeAXFR)); !slices.Equal(got, everything(t, after)) {
		t.Errorf("%d records afterwards", len(got))
	}
}

// TestTransferToNobody: clients that never read keep their places for a bounded time, and others are answered meanwhile.
func TestTransferToNobody(t *testing.T) {
	t.Parallel()
	z, err := benchZone(10_000)
	if err != nil {
		t.Fatal(err)
	}
	const places = 4
	s := start(t, Options{Zone: z, Transfer: everybody, Waiting: places, TCP: TCPOptions{Transfer: 2 * time.Second, Idle: time.Hour}})
	frames := frame(t, question(transferred, dns.TypeAXFR))
	for range 5 { // more than socket buffers hold
		frames = append(frames, frames...)
	}
	var stuck []*net.TCPConn
	for range places / 2 { // all that one address gets
		c := connect(t, s)
		_ = c.SetReadBuffer(4096)
		if _, err := c.Write(frames); err != nil {
			t.Fatal(err)
		}
		stuck = append(stuck, c)
	}
	testkit.Await(t, patience, func() error {
		if n := s.pool.waiting(); n != places/2 {
			return fmt.Errorf("%d places are taken", n)
		}
		return nil
	})
	r := ask(t, s, "tcp", question("service-7.ns-7.svc.cluster.local.", dns.TypeA))
	wantBrief(t, r, "NOERROR service-7.ns-7.svc.cluster.local. A 10.96.0.7")
	testkit.Await(t, patience, func() error {
		if n, left := s.pool.waiting(), s.streams.count(); n+left != 0 {
			return fmt.Errorf("%d places are taken, %d connections are open", n, left)
		}
		return nil
	})
	for _, c := range stuck {
		wantClosed(t, c)
	}
	if got := metric(t, s, "endpointd_dns_unsent_total"); got != places/2 {
		t.Errorf("%v messages were not taken, want %d", got, places/2)
	}
}

// TestTooManyTransfers: who finds no place is told to come again.
func TestTooManyTransfers(t *testing.T) {
	t.Parallel()
	z, err := benchZone(10)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, Options{Zone: z, Transfer: everybody, Waiting: 1})
	client := netip.MustParseAddr("127.0.0.1")
	if !s.pool.take(client) {
		t.Fatal("no place")
	}
	if r := ask(t, s, "tcp", question(transferred, dns.TypeAXFR)); r.Rcode != dns.RcodeServerFailure || len(r.Answer) != 0 {
		t.Errorf("without a place: %v", r)
	}
	s.pool.give(client)
	if got, _ := receive(t, connect(t, s), question(transferred, dns.TypeAXFR)); len(got) < 10 {
		t.Errorf("with a place: %q", got)
	}
}

// TestEndDuringTransfer: a client that does not read holds the end of the server up for no longer than any other.
func TestEndDuringTransfer(t *testing.T) {
	t.Parallel()
	z, err := benchZone(10_000)
	if err != nil {
		t.Fatal(err)
	}
	s, stop := startUntil(t, Options{Zone: z, Transfer: everybody, Drain: 10 * time.Millisecond, TCP: TCPOptions{Transfer: time.Hour, Idle: time.Hour}})
	c := connect(t, s)
	_ = c.SetReadBuffer(4096)
	frames := frame(t, question(transferred, dns.TypeAXFR))
	for range 5 {
		frames = append(frames, frames...)
	}
	if _, err := c.Write(frames); err != nil {
		t.Fatal(err)
	}
	testkit.Await(t, patience, func() error {
		if s.pool.waiting() == 0 {
			return fmt.Errorf("nobody transfers")
		}
		return nil
	})
	stop()
}

// TestKeepAlive: over TCP who asks is told how long a connection may be idle, and over UDP nobody is.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	s := start(t, Options{TCP: TCPOptions{Idle: 7 * time.Second}})
	for _, c := range []struct {
		network string
		asked   bool
		want    []uint16
	}{{"tcp", true, []uint16{70}}, {"tcp", false, nil}, {"udp", true, nil}} {
		m := question("web.ns.svc.cluster.test.", dns.TypeA)
		m.SetEdns0(1232, false)
		if c.asked {
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE}}
		}
		r := ask(t, s, c.network, m)
		wantBrief(t, r, webAnswer)
		var got []uint16
		for _, o := range r.IsEdns0().Option {
			if k, ok := o.(*dns.EDNS0_TCP_KEEPALIVE); ok {
				got = append(got, k.Timeout)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s, asked %v: %v, want %v", c.network, c.asked, got, c.want)
		}
	}
}
