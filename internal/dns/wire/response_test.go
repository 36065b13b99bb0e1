package wire

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// parsed is the Query of a question.
func parsed(t testing.TB, packet []byte) *Query {
	t.Helper()
	q := new(Query)
	if rcode, ok := q.Parse(packet); rcode != 0 || !ok {
		t.Fatalf("RCODE %d, %v: % x", rcode, ok, packet)
	}
	return q
}

func wireName(t testing.TB, text string) []byte {
	t.Helper()
	name, err := AppendName(nil, text)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// lines are records as in a zone file.
func lines(records ...dns.RR) []string {
	var text []string
	for _, rr := range records {
		text = append(text, strings.Join(strings.Fields(rr.String()), " "))
	}
	return text
}

func TestResponse(t *testing.T) {
	t.Parallel()
	q := parsed(t, question(t, "A.Example.", cookie("0102030405060708")))
	var r Response
	r.Begin(make([]byte, 0, 1232), q, q.Limit(false, 1232), 1400)
	r.SetAuthoritative()
	r.SetRecursionAvailable()
	r.SetCookie([]byte("0123456789abcdef"))
	target := r.AddName(Answer, QuestionAt, dns.TypeCNAME, 7, wireName(t, "B.example."))
	r.AddAddr(Answer, target, 8, netip.MustParseAddr("192.0.2.1"))
	r.AddAddr(Answer, target, 8, netip.MustParseAddr("2001:db8::1"))
	srv := r.AddSRV(Answer, QuestionAt, 9, 1, 2, 3, wireName(t, "c.example."))
	r.Add(Answer, QuestionAt, dns.TypeTXT, 1<<31-1, []byte("\x02hi"))
	r.AddSOA(Authority, QuestionAt+2, 10, &SOA{MName: wireName(t, "ns.example."), RName: wireName(t, "."), Serial: 1, Refresh: 2, Retry: 3, Expire: 4, Minimum: 5})
	r.AddAddr(Additional, srv, 0, netip.MustParseAddr("192.0.2.2"))
	if got := [...]int{r.Count(Answer), r.Count(Authority), r.Count(Additional)}; got != [...]int{5, 1, 1} {
		t.Errorf("counts %v", got)
	}
	m := respond(t, "the response", q, &r)
	if !m.Authoritative || !m.RecursionAvailable || m.Truncated {
		t.Errorf("flags of %v", m)
	}
	opt := m.IsEdns0()
	if opt == nil || opt.UDPSize() != 1400 || !opt.Do() || len(opt.Option) != 1 || opt.Option[0].String() != fmt.Sprintf("%x", "0123456789abcdef") {
		t.Errorf("EDNS %v", opt)
	}
	got := append(append(lines(m.Answer...), lines(m.Ns...)...), lines(m.Extra[:1]...)...)
	want := []string{
		"A.Example. 7 IN CNAME B.example.",
		"B.example. 8 IN A 192.0.2.1",
		"B.example. 8 IN AAAA 2001:db8::1",
		"A.Example. 9 IN SRV 1 2 3 c.example.",
		`A.Example. 2147483647 IN TXT "hi"`,
		"Example. 10 IN SOA ns.example. . 1 2 3 4 5",
		"c.example. 0 IN A 192.0.2.2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestResponseLimit fills responses to the last octet and beyond.
func TestResponseLimit(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		title   string
		section Section
		packet  []byte
		tc      bool
	}{
		{"answer", Answer, question(t, "a.example."), true},
		{"answer with EDNS", Answer, question(t, "a.example.", cookie("0102030405060708")), true},
		{"authority", Authority, question(t, "a.example."), true},
		{"additional", Additional, question(t, "a.example."), false},
	} {
		q := parsed(t, c.packet)
		var r Response
		r.Begin(nil, q, 512, 1232)
		r.SetCookie([]byte("0123456789abcdef"))
		n := 0
		for r.AddAddr(c.section, QuestionAt, 5, addr) {
			n++
		}
		if r.Truncated() != c.tc || r.Room() >= 16 || r.Count(c.section) != n {
			t.Errorf("%s: truncated %v, room %d, %d of %d records", c.title, r.Truncated(), r.Room(), r.Count(c.section), n)
		}
		message := r.Finish()
		if len(message) > 512 || len(message)+16 <= 512 {
			t.Errorf("%s: %d octets", c.title, len(message))
		}
		var m dns.Msg
		if err := m.Unpack(message); err != nil || m.Truncated != c.tc || len(m.Answer)+len(m.Ns)+len(m.Extra) < n {
			t.Errorf("%s: %v\n%v", c.title, err, &m)
		}
	}
}

func TestResponseBack(t *testing.T) {
	t.Parallel()
	q := parsed(t, question(t, "a.example."))
	var r Response
	r.Begin(nil, q, 512, 1232)
	addr := netip.MustParseAddr("192.0.2.1")
	r.AddAddr(Answer, QuestionAt, 5, addr)
	mark, length := r.Mark(), r.Len()
	for r.AddAddr(Answer, QuestionAt, 5, addr) {
	}
	if !r.Truncated() {
		t.Error("it is not truncated")
	}
	r.Back(mark)
	if r.Truncated() || r.Len() != length || r.Count(Answer) != 1 {
		t.Errorf("truncated %v, %d octets, %d records", r.Truncated(), r.Len(), r.Count(Answer))
	}
	if m := respond(t, "the response", q, &r); len(m.Answer) != 1 {
		t.Error(m)
	}
}

// TestFarOwner: what compression cannot point to owns no record.
// TestKeepAlive: who asks for it is told how long a connection may be idle, in tenths of a second, and nobody else.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		options []dns.EDNS0
		idle    time.Duration
		want    int // -1 = no option
	}{
		{[]dns.EDNS0{&dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE}}, 10 * time.Second, 100},
		{[]dns.EDNS0{&dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE}}, -time.Second, 0},
		{[]dns.EDNS0{&dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE}, cookie("0102030405060708")}, 10 * time.Hour, 65535},
		{[]dns.EDNS0{cookie("0102030405060708")}, time.Second, -1},
	} {
		q := parsed(t, question(t, "a.example.", c.options...))
		var r Response
		r.Begin(nil, q, 512, 512)
		r.SetCookie([]byte("0123456789abcdef"))
		r.SetKeepAlive(c.idle)
		full := false
		for !full {
			full = !r.AddAddr(Answer, QuestionAt, 1, netip.MustParseAddr("192.0.2.1"))
		}
		m := respond(t, fmt.Sprint(c.idle), q, &r)
		got := -1
		for _, o := range m.IsEdns0().Option {
			if k, ok := o.(*dns.EDNS0_TCP_KEEPALIVE); ok {
				got = int(k.Timeout)
			}
		}
		if got != c.want || len(m.IsEdns0().Option) != 1+min(got+1, 1) {
			t.Errorf("%v: %v", c.idle, m)
		}
		if n := r.Len(); n > 512 || n < 512-16-11-20-6 {
			t.Errorf("%d octets", n)
		}
	}
}

func TestAuthenticData(t *testing.T) {
	t.Parallel()
	q := parsed(t, question(t, "a.example."))
	for _, set := range [][]bool{{}, {true}, {true, false}, {false, true}} {
		var r Response
		r.Begin(nil, q, 512, 512)
		for _, yes := range set {
			r.SetAuthenticData(yes)
		}
		var m dns.Msg
		if err := m.Unpack(r.Finish()); err != nil || m.AuthenticatedData != (len(set) > 0 && set[len(set)-1]) {
			t.Errorf("%v: %v %v", set, err, &m)
		}
	}
}

// TestNamed: an owner that is not in the message is written, and others can point to it.
func TestNamed(t *testing.T) {
	t.Parallel()
	q := parsed(t, question(t, "Zone.Example."))
	var r Response
	r.Begin(nil, q, 200, 512)
	two := netip.MustParseAddr("192.0.2.2")
	addr := netip.MustParseAddr("192.0.2.1").AsSlice()
	if at := r.AddNamed(Answer, wireName(t, "zone.example."), dns.TypeA, 1, addr); at != QuestionAt {
		t.Errorf("the question's name is at %d", at)
	}
	at := r.AddNamed(Answer, wireName(t, "b.a.zone.example."), dns.TypeA, 2, addr)
	r.AddAddr(Answer, at, 3, two)
	want := []string{
		"Zone.Example. 1 IN A 192.0.2.1", "b.a.Zone.Example. 2 IN A 192.0.2.1", "b.a.Zone.Example. 3 IN A 192.0.2.2",
	}
	mark := r.Mark()
	for n := 0; ; n++ {
		before := r.Len()
		if r.AddNamed(Answer, wireName(t, fmt.Sprintf("n%d.zone.example.", n)), dns.TypeA, 4, addr) == 0 {
			if r.Len() != before || !r.Truncated() || n == 0 {
				t.Errorf("%d octets after %d, truncated: %v", r.Len(), before, r.Truncated())
			}
			break
		}
	}
	r.Back(mark)
	if m := respond(t, "names", q, &r); m.Truncated || !slices.Equal(lines(m.Answer...), want) {
		t.Errorf("%v", m)
	}
}

func TestFarOwner(t *testing.T) {
	t.Parallel()
	q := parsed(t, question(t, "a.example."))
	var r Response
	r.Begin(nil, q, dns.MaxMsgSize, 1232)
	for r.Len() <= maxOffset {
		if r.AddAddr(Answer, QuestionAt, 5, netip.MustParseAddr("2001:db8::1")) {
			continue
		}
		t.Fatal("it is full")
	}
	at := r.AddSRV(Answer, QuestionAt, 5, 0, 0, 1, wireName(t, "b.example."))
	if at <= maxOffset || r.AddAddr(Additional, at, 5, netip.MustParseAddr("192.0.2.1")) || r.Truncated() {
		t.Errorf("the target is at %d; truncated %v", at, r.Truncated())
	}
	if m := respond(t, "the response", q, &r); len(m.Extra) != 0 {
		t.Error(m.Extra)
	}
}

func TestRaw(t *testing.T) {
	t.Parallel()
	q := parsed(t, question(t, "a.example."))
	var r Response
	r.Begin(nil, q, 512, 1232)
	record := "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\x01\x02\x03\x04"
	if !r.Raw(func(message []byte) ([]byte, [3]int) { return append(message, record+record...), [3]int{1, 0, 1} }) {
		t.Error("it does not fit")
	}
	length := r.Len()
	for _, n := range []int{r.Room() + 1, 9999} {
		if r.Raw(func(message []byte) ([]byte, [3]int) { return append(message, make([]byte, n)...), [3]int{9, 9, 9} }) || r.Len() != length {
			t.Errorf("%d octets fit, and there are %d", n, r.Len())
		}
	}
	if m := respond(t, "the response", q, &r); len(m.Answer) != 1 || len(m.Extra) != 1 {
		t.Error(m)
	}
}

// TestExtendedRCode: without EDNS there is no room for its upper bits.
func TestExtendedRCode(t *testing.T) {
	t.Parallel()
	for _, packet := range [][]byte{question(t, "a.example."), question(t, "a.example.", cookie("0102030405060708"))} {
		q := parsed(t, packet)
		var r Response
		r.Begin(nil, q, 512, 1232)
		r.SetRCode(dns.RcodeBadCookie)
		respond(t, fmt.Sprintf("%+v", q.EDNS), q, &r)
	}
}

// FuzzResponse writes what the fuzzer's octets say, and reads it with miekg/dns.
func FuzzResponse(f *testing.F) {
	f.Add([]byte{0})
	f.Add([]byte{1, 200, 0, 3, 1, 4, 2, 5, 3, 6, 4, 7, 9, 9, 9})
	f.Add([]byte(strings.Repeat("\x02\x07", 300)))
	f.Add([]byte(strings.Repeat("\x03\x0d", 900)))
	f.Fuzz(func(t *testing.T, data []byte) {
		next := func(n int) int {
			if len(data) == 0 {
				return 0
			}
			b := int(data[0])
			data = data[1:]
			return b % n
		}
		var options []dns.EDNS0
		if next(2) == 1 {
			options = []dns.EDNS0{}
		}
		q := parsed(t, question(t, []string{"a.example.", ".", strings.Repeat("a.", 126)}[next(3)], options...))
		limit := []int{512, 1232, dns.MaxMsgSize}[next(3)]
		w := &writing{t: t, owners: []int{QuestionAt}, names: []string{NameString(q.Name)}}
		w.r.Begin(make([]byte, next(2)*600), q, limit, 1232)
		if next(2) == 1 {
			w.r.SetCookie([]byte("0123456789abcdef"))
		}
		for section := Answer; section <= Additional; section++ {
			for len(data) > 0 {
				op := next(8)
				if op == 7 {
					break
				}
				w.add(section, op, next(256))
			}
		}
		truncated := w.r.Truncated()
		w.check(limit, truncated, w.r.Finish())
	})
}

// writing is a response on its way, and the records that it should have.
type writing struct {
	t      testing.TB
	r      Response
	owners []int
	names  []string
	want   [3][]string
}

func (w *writing) add(s Section, op, n int) {
	owner, name, ttl := w.owners[n%len(w.owners)], w.names[n%len(w.names)], uint32(n)*77
	before, mark := w.r.Len(), w.r.Mark()
	target := strings.Repeat("t.", n%100)
	if n%7 == 0 {
		target = "."
	}
	target = dns.Fqdn(target)
	var text string
	var at int
	done := false
	switch op {
	case 0, 1:
		addr := netip.AddrFrom4([4]byte{byte(n), 2, 3, 4})
		text, done = "A "+addr.String(), w.r.AddAddr(s, owner, ttl, addr)
	case 2:
		addr := netip.AddrFrom16([16]byte{0x20, 1, byte(n), 1})
		text, done = "AAAA "+addr.String(), w.r.AddAddr(s, owner, ttl, addr)
	case 3:
		at = w.r.AddName(s, owner, dns.TypePTR, ttl, wireName(w.t, target))
		text, done = "PTR "+target, at != 0
	case 4:
		at = w.r.AddSRV(s, owner, ttl, 1, uint16(n), 3, wireName(w.t, target))
		text, done = fmt.Sprintf("SRV 1 %d 3 %s", n, target), at != 0
	case 5:
		soa := SOA{MName: wireName(w.t, target), RName: wireName(w.t, target), Serial: 1, Refresh: 2, Retry: 3, Expire: 4, Minimum: uint32(n)}
		text, done = fmt.Sprintf("SOA %s %s 1 2 3 4 %d", target, target, n), w.r.AddSOA(s, owner, ttl, &soa)
	case 6:
		if w.r.AddAddr(s, owner, ttl, netip.AddrFrom4([4]byte{})) {
			w.r.Back(mark)
		}
	}
	switch {
	case done:
		w.want[s] = append(w.want[s], fmt.Sprintf("%s %d IN %s", name, ttl, text))
		if at != 0 {
			w.owners, w.names = append(w.owners, at), append(w.names, target)
		}
	case w.r.Len() != before:
		w.t.Fatalf("what was not added is %d octets", w.r.Len()-before)
	}
}

func (w *writing) check(limit int, truncated bool, message []byte) {
	if len(message) > limit {
		w.t.Fatalf("%d octets of %d", len(message), limit)
	}
	var m dns.Msg
	if err := m.Unpack(message); err != nil {
		w.t.Fatalf("%v: % x", err, message)
	}
	if m.Truncated != truncated {
		w.t.Errorf("TC is %v", m.Truncated)
	}
	if n := len(m.Extra); n > 0 && m.Extra[n-1].Header().Rrtype == dns.TypeOPT {
		m.Extra = m.Extra[:n-1]
	}
	for i, section := range [...][]dns.RR{m.Answer, m.Ns, m.Extra} {
		if got := lines(section...); !slices.Equal(got, w.want[i]) {
			w.t.Errorf("section %d is\n%s\nwant\n%s", i, strings.Join(got, "\n"), strings.Join(w.want[i], "\n"))
		}
	}
}

func TestResponseDoesNotAllocate(t *testing.T) { // not parallel: AllocsPerRun counts the whole process
	if allocs := testing.AllocsPerRun(100, writer(t)); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func BenchmarkResponse(b *testing.B) {
	write := writer(b)
	b.ReportAllocs()
	for b.Loop() {
		write()
	}
}

// writer writes one response of each kind of record.
func writer(t testing.TB) func() {
	q := parsed(t, question(t, "a.ns.svc.cluster.local.", cookie("0102030405060708")))
	buf, name, addr, server := make([]byte, 1232), wireName(t, "ns.dns.cluster.local."), netip.MustParseAddr("192.0.2.1"), []byte("0123456789abcdef")
	return func() {
		var r Response
		r.Begin(buf, q, 1232, 1232)
		r.SetCookie(server)
		r.AddAddr(Answer, QuestionAt, 5, addr)
		r.AddName(Answer, QuestionAt, dns.TypePTR, 5, name)
		at := r.AddSRV(Answer, QuestionAt, 5, 0, 100, 80, name)
		r.AddSOA(Authority, QuestionAt+2, 5, &SOA{MName: name, RName: name, Serial: 1})
		r.AddAddr(Additional, at, 5, addr)
		if len(r.Finish()) < 200 {
			t.Error("it is short")
		}
	}
}
