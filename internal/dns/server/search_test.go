package server

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// patiently is put for a client that waits.
func (b *bench) patiently(m *dns.Msg) *dns.Msg {
	b.t.Helper()
	rq := &request{packet: pack(b.t, m), client: netip.MustParseAddrPort("127.0.0.1:5353"), at: b.s.o.Now()}
	out := make([]byte, maxUDPReply)
	if b.w.answer(rq, out) == wait {
		b.w.answerPatiently(b.t.Context(), rq, out)
	}
	r := new(dns.Msg)
	if err := r.Unpack(b.w.finish(rq)); err != nil {
		b.t.Fatal(err)
	}
	return r
}

// TestSearchOrder tries the node's domains in their order and the name itself last, as the pod would; the first where the name exists answers.
func TestSearchOrder(t *testing.T) {
	t.Parallel()
	const path = ".ns.svc.cluster.test."
	label := strings.Repeat("x", 60)
	long := label + "." + label + "." + label + ".y" // with the second domain it is too long
	for _, c := range []struct {
		name, rest string
		exists     map[string]bool // name → whether it has an address
		want       string          // where it was found
		asked      []string
	}{
		{"in the first", "db", map[string]bool{"db.one.example.": true, "db.two.example.net.": true}, "db.one.example.", []string{"db.one.example."}},
		{"in the second", "db", map[string]bool{"db.two.example.net.": true}, "db.two.example.net.", []string{"db.one.example.", "db.two.example.net."}},
		{"alone", "db.x", map[string]bool{"db.x.": true}, "db.x.", []string{"db.x.one.example.", "db.x.two.example.net.", "db.x."}},
		{"without a dot it is not asked for alone", "db", map[string]bool{"db.": true}, "", []string{"db.one.example.", "db.two.example.net."}},
		{"there without an address", "db.x", map[string]bool{"db.x.one.example.": false, "db.x.": true}, "db.x.one.example.", []string{"db.x.one.example."}},
		{"nowhere", "db.x", nil, "", []string{"db.x.one.example.", "db.x.two.example.net.", "db.x."}},
		{"too long for a domain", long, map[string]bool{long + ".": true}, long + ".", []string{long + ".one.example.", long + "."}},
		{"a name that is local", "db.localhost", nil, "", nil},
	} {
		f := newFakeForwarder(t)
		f.names = map[string][]netip.Addr{}
		for name, has := range c.exists {
			f.names[name] = nil
			if has {
				f.names[name] = []netip.Addr{netip.MustParseAddr("192.0.2.9")}
			}
		}
		domain := "two.example.net"
		if c.rest == long {
			domain = strings.Repeat("z.", 40) + "net"
		}
		b := newBench(t, Options{Forwarder: f, Searches: []string{"one.example", domain}})
		r := b.patiently(question(c.rest+path, dns.TypeA))
		want := "NXDOMAIN"
		if c.want != "" {
			want = "NOERROR " + c.rest + path + " CNAME " + c.want
			if c.exists[c.want] {
				want += " " + c.want + " A 192.0.2.9"
			}
		}
		if got := brief(r); got != want {
			t.Errorf("%s: got %q, want %q", c.name, got, want)
		}
		if got := f.questions(); !slices.Equal(got, c.asked) {
			t.Errorf("%s: asked for %q, want %q", c.name, got, c.asked)
		}
	}
}

// TestSearchOfStrangers leaves alone whoever's namespace is not known, or is another one.
func TestSearchOfStrangers(t *testing.T) {
	t.Parallel()
	for _, namespace := range []string{"", "other"} {
		f := newFakeForwarder(t)
		b := newBench(t, Options{Forwarder: f, Namespace: func(netip.Addr) (string, bool) { return namespace, namespace != "" }})
		wantBrief(t, b.patiently(question("www.example.ns.svc.cluster.test.", dns.TypeA)), "NXDOMAIN")
		if got := f.questions(); len(got) > 0 {
			t.Errorf("asked for %q", got)
		}
	}
}

// TestSearchWithCookie: who shows a cookie gets one, also if the answer took more than one name.
func TestSearchWithCookie(t *testing.T) {
	t.Parallel()
	b := newBench(t, Options{Forwarder: newFakeForwarder(t)})
	for _, name := range []string{"www.example.ns.svc.cluster.test.", "web.ns.svc.cluster.test.", "web.ns.ns.svc.cluster.test."} {
		m := question(name, dns.TypeA)
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}}
		r := b.patiently(m)
		if opt := r.IsEdns0(); opt == nil || len(opt.Option) != 1 {
			t.Errorf("no cookie in %v", r)
		}
	}
}

// TestForwardedAndTruncated has an answer of others that does not fit UDP.
func TestForwardedAndTruncated(t *testing.T) {
	t.Parallel()
	f := newFakeForwarder(t)
	for i := range 100 {
		f.names["big.example."] = append(f.names["big.example."], netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	s := start(t, Options{Forwarder: f})
	for range 2 { // waited for, and from the cache
		if r := ask(t, s, "udp", question("big.example.", dns.TypeA)); !r.Truncated {
			t.Errorf("no TC over UDP: %d records", len(r.Answer))
		}
		if r := ask(t, s, "tcp", question("big.example.", dns.TypeA)); r.Truncated || len(r.Answer) != 100 {
			t.Errorf("over TCP: TC %v, %d records", r.Truncated, len(r.Answer))
		}
	}
}

// TestExternalNameWithoutRecursion gives what is ours to who wants no more.
func TestExternalNameWithoutRecursion(t *testing.T) {
	t.Parallel()
	f := newFakeForwarder(t)
	b := newBench(t, Options{Forwarder: f, Now: func() time.Time { return time.Unix(1, 0) }})
	m := question("ext.ns.svc.cluster.test.", dns.TypeA)
	m.RecursionDesired = false
	wantBrief(t, b.patiently(m), "NOERROR ext.ns.svc.cluster.test. CNAME target.example.")
	delete(f.names, "target.example.")
	m.RecursionDesired = true
	wantBrief(t, b.patiently(m), "NXDOMAIN ext.ns.svc.cluster.test. CNAME target.example.") // RFC 6604
	if got := f.questions(); len(got) != 1 {
		t.Errorf("asked for %q", got)
	}
}
