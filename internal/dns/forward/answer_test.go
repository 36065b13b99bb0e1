package forward

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

func testLimits() limits { return limits{max: time.Hour, maxNegative: 5 * time.Minute} }

// accept makes an Answer of records as an upstream would send them.
func accept(t testing.TB, name string, rtype uint16, dnssec bool, m *dns.Msg) *Answer {
	t.Helper()
	m.Response, m.Compress = true, true
	m.Question = []dns.Question{{Name: name, Qtype: rtype, Qclass: dns.ClassINET}}
	packet, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	m, err = readMessage(packet)
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAnswer(question(appendQuestion(nil, asked(t, name, rtype, dnssec))), m, testLimits())
	if err != nil {
		t.Fatal(err)
	}
	a.at, a.kept = time.Unix(0, 0), a.ttl > 0
	return a
}

func asked(t testing.TB, name string, rtype uint16, dnssec bool) *wire.Query {
	t.Helper()
	if dnssec {
		return ask(t, name, rtype, withDNSSEC)
	}
	return ask(t, name, rtype)
}

func TestOnlyWhatBelongsToTheQuestionIsTaken(t *testing.T) {
	const sig = " 300 IN RRSIG A 8 2 300 20300101000000 20200101000000 1 example.org. AAAA"
	const soa = "example.org. 900 IN SOA ns.example.org. root.example.org. 1 2 3 4 60"
	cases := []struct {
		name, answer, authority string
		rtype                   uint16
		dnssec                  bool
		want                    string
		ttl                     time.Duration
	}{
		{name: "others' records", answer: "www.example.org. 300 IN A 10.0.0.1\nwww.bank.test. 300 IN A 6.6.6.6\nexample.org. 60 IN A 6.6.6.6",
			want: "www.example.org. 300 IN A 10.0.0.1", ttl: 300 * time.Second},
		{name: "other types", answer: "www.example.org. 300 IN AAAA ::1\nwww.example.org. 300 IN A 10.0.0.1", want: "www.example.org. 300 IN A 10.0.0.1", ttl: 300 * time.Second},
		{name: "name servers", answer: "www.example.org. 300 IN A 10.0.0.1", authority: "example.org. 5 IN NS ns.bank.test.",
			want: "www.example.org. 300 IN A 10.0.0.1", ttl: 300 * time.Second},
		{name: "chain in no order", answer: "b.example.net. 30 IN A 10.0.0.2\nwww.example.org. 300 IN CNAME a.example.net.\na.example.net. 200 IN CNAME B.example.net.\nc.example.net. 1 IN A 6.6.6.6",
			want: "www.example.org. 300 IN CNAME a.example.net.\na.example.net. 200 IN CNAME B.example.net.\nB.example.net. 30 IN A 10.0.0.2", ttl: 30 * time.Second},
		{name: "CNAME asked for", rtype: dns.TypeCNAME, answer: "www.example.org. 300 IN CNAME a.example.net.\na.example.net. 200 IN A 10.0.0.1",
			want: "www.example.org. 300 IN CNAME a.example.net.", ttl: 300 * time.Second},
		{name: "DNAME", answer: "example.org. 300 IN DNAME example.net.\nwww.example.org. 0 IN CNAME www.example.net.\nwww.example.net. 50 IN A 10.0.0.1\ntest. 7 IN DNAME bad.\norg. 7 IN DNAME bad.",
			want: "example.org. 300 IN DNAME example.net.\nwww.example.org. 0 IN CNAME www.example.net.\nwww.example.net. 50 IN A 10.0.0.1"},
		{name: "no data", authority: soa + "\nbank.test. 900 IN NS ns.bank.test.", want: "authority: example.org. 60 IN SOA ns.example.org. root.example.org. 1 2 3 4 60", ttl: time.Minute},
		{name: "no data, SOA of another zone", authority: strings.Replace(soa, "example.org.", "bank.test.", 1)},
		{name: "no data behind a chain", answer: "www.example.org. 20 IN CNAME a.example.org.", authority: soa,
			want: "www.example.org. 20 IN CNAME a.example.org.\nauthority: example.org. 60 IN SOA ns.example.org. root.example.org. 1 2 3 4 60", ttl: 20 * time.Second},
		{name: "no data, SOA keeps it for long", authority: "org. 9000 IN SOA a. b. 1 2 3 4 8000", want: "authority: org. 300 IN SOA a. b. 1 2 3 4 8000", ttl: 5 * time.Minute},
		{name: "TTL is too long", answer: "www.example.org. 90000 IN A 10.0.0.1", want: "www.example.org. 3600 IN A 10.0.0.1", ttl: time.Hour},
		{name: "TTL is negative", answer: "www.example.org. 4294967295 IN A 10.0.0.1", want: "www.example.org. 0 IN A 10.0.0.1"},
		{name: "signatures that nobody asked for", answer: "www.example.org. 300 IN A 10.0.0.1\nwww.example.org." + sig, want: "www.example.org. 300 IN A 10.0.0.1", ttl: 300 * time.Second},
		{name: "signatures", dnssec: true, answer: "www.example.org. 300 IN A 10.0.0.1\nwww.example.org." + sig + "\nother.example.org." + sig,
			authority: "a.example.org. 60 IN NSEC z.example.org. A\na.bank.test. 60 IN NSEC z.bank.test. A\nexample.org. 60 IN NS ns.example.org.",
			want:      "www.example.org. 300 IN A 10.0.0.1\nwww.example.org." + sig + "\nauthority: a.example.org. 60 IN NSEC z.example.org. A", ttl: time.Minute},
		{name: "DNAME, signed", dnssec: true, answer: "www.example.org. 0 IN CNAME www.example.net.\nexample.org. 300 IN DNAME example.net.\nexample.org." + strings.Replace(sig, " A 8", " DNAME 8", 1) +
			"\norg." + strings.Replace(sig, " A 8", " DNAME 8", 1),
			want: "example.org. 300 IN DNAME example.net.\nwww.example.org. 0 IN CNAME www.example.net.\nexample.org." + strings.Replace(sig, " A 8", " DNAME 8", 1)},
		{name: "ANY", rtype: dns.TypeANY, answer: "www.example.org. 300 IN CNAME a.example.net.\nwww.example.org. 300 IN TXT \"x\"\na.example.net. 200 IN A 10.0.0.1",
			want: "www.example.org. 300 IN CNAME a.example.net.\nwww.example.org. 300 IN TXT \"x\"", ttl: 300 * time.Second},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			rtype := c.rtype
			if rtype == 0 {
				rtype = dns.TypeA
			}
			m := new(dns.Msg)
			for line := range strings.Lines(c.answer) {
				m.Answer = append(m.Answer, record(t, line))
			}
			for line := range strings.Lines(c.authority) {
				m.Ns = append(m.Ns, record(t, line))
			}
			const name = "www.example.org."
			a := accept(t, name, rtype, c.dnssec, m)
			if got := text(respond(t, a, asked(t, name, rtype, c.dnssec), a.at)); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if a.ttl != c.ttl {
				t.Errorf("kept for %v, want %v", a.ttl, c.ttl)
			}
		})
	}
}

func TestALongChainIsRefused(t *testing.T) {
	m := new(dns.Msg)
	for i := range maxChain + 2 {
		m.Answer = append(m.Answer, record(t, fmt.Sprintf("n%d.example. 5 IN CNAME n%d.example.", i, (i+1)%(maxChain+1))))
	}
	if _, err := newAnswer(newQuestion([]byte("\x02n0\x07example\x00"), dns.TypeA), m, testLimits()); err == nil {
		t.Error("a chain without end was taken")
	}
}

// randomMessage is an answer as it may come: chains, types with and without compression, names that have ends in common.
func randomMessage(rng *rand.Rand) (name string, rtype uint16, m *dns.Msg) {
	label := func() string {
		return []string{"a", "bb", "xn--x", `w\.w`, "Mixed", strings.Repeat("l", 60), `\000\255`}[rng.IntN(7)]
	}
	ends := []string{"example.org.", "net.", ".", "deep.sub.example.org."}
	random := func() string {
		text := ""
		for range rng.IntN(3) {
			text += label() + "."
		}
		end := ends[rng.IntN(len(ends))]
		if text != "" && end == "." {
			return text
		}
		return text + end
	}
	m = new(dns.Msg)
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeMX, dns.TypeNS, dns.TypePTR, dns.TypeSRV, dns.TypeTXT, dns.TypeSOA, dns.TypeHTTPS, 65280}
	rtype = types[rng.IntN(len(types))]
	name = label() + "." + strings.TrimPrefix(random(), ".")
	owner := name
	seen := map[string]bool{strings.ToLower(owner): true}
	for range rng.IntN(4) {
		target := random()
		if seen[strings.ToLower(target)] {
			break
		}
		seen[strings.ToLower(target)] = true
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: header(rng, owner, dns.TypeCNAME), Target: target})
		owner = target
	}
	for range rng.IntN(6) {
		m.Answer = append(m.Answer, randomRecord(rng, header(rng, owner, rtype), random))
	}
	return name, rtype, m
}

func header(rng *rand.Rand, owner string, rtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: rtype, Class: dns.ClassINET, Ttl: 100 + rng.Uint32N(3000)}
}

func randomRecord(rng *rand.Rand, h dns.RR_Header, name func() string) dns.RR {
	switch h.Rrtype {
	case dns.TypeA:
		return &dns.A{Hdr: h, A: []byte{10, byte(rng.Uint32()), 0, 1}}
	case dns.TypeAAAA:
		addr := netip.MustParseAddr("fd00::1").As16()
		return &dns.AAAA{Hdr: h, AAAA: addr[:]}
	case dns.TypeMX:
		return &dns.MX{Hdr: h, Preference: uint16(rng.Uint32()), Mx: name()}
	case dns.TypeNS:
		return &dns.NS{Hdr: h, Ns: name()}
	case dns.TypePTR:
		return &dns.PTR{Hdr: h, Ptr: name()}
	case dns.TypeSRV:
		return &dns.SRV{Hdr: h, Port: 80, Target: name()}
	case dns.TypeSOA:
		return &dns.SOA{Hdr: h, Ns: name(), Mbox: name(), Serial: rng.Uint32(), Minttl: 7}
	case dns.TypeHTTPS:
		return &dns.HTTPS{SVCB: dns.SVCB{Hdr: h, Priority: 1, Target: name(), Value: []dns.SVCBKeyValue{&dns.SVCBAlpn{Alpn: []string{"h2"}}}}}
	case dns.TypeTXT:
		return &dns.TXT{Hdr: h, Txt: []string{"one", strings.Repeat("two", rng.IntN(80))}}
	default:
		return &dns.RFC3597{Hdr: h, Rdata: "c00c0102"} // looks like a pointer, and is none
	}
}

// TestRecordsAreReadAsTheyWere puts random answers into responses at both places, and has the library read them.
func TestRecordsAreReadAsTheyWere(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 3000 {
		name, rtype, truth := randomMessage(rng)
		a := accept(t, name, rtype, false, truth.Copy())
		const age = 40
		for _, rr := range truth.Answer {
			rr.Header().Ttl -= age
		}
		expected := strings.ToLower(text(truth))
		now := a.at.Add(age*time.Second + 999*time.Millisecond)

		q := asked(t, name, rtype, false)
		direct := respond(t, a, q, now)
		if got := strings.ToLower(text(direct)); got != expected {
			t.Fatalf("seed %d: %s\ngot\n%s\nwant\n%s", seed, name, got, expected)
		}
		if len(direct.Answer) > 0 && direct.Answer[0].Header().Name != direct.Question[0].Name {
			t.Fatalf("seed %d: the letter case of %s is another one than asked for: %s", seed, name, direct.Answer[0])
		}

		// As the target of a CNAME of ours.
		other := ask(t, "search.default.svc.cluster.local.", rtype)
		var r wire.Response
		r.Begin(nil, other, dns.MaxMsgSize, 1232)
		at := r.AddName(wire.Answer, wire.QuestionAt, dns.TypeCNAME, 5, q.Name)
		if !a.Append(&r, at, now) {
			t.Fatalf("seed %d: %s does not fit", seed, name)
		}
		m := unpack(t, r.Finish())
		m.Answer = m.Answer[1:]
		if got := strings.ToLower(text(m)); got != expected {
			t.Fatalf("seed %d: behind a CNAME: %s\ngot\n%s\nwant\n%s", seed, name, got, expected)
		}
	}
}

// TestLongAnswers is about pointers, which reach 16 KiB.
func TestLongAnswers(t *testing.T) {
	m := new(dns.Msg)
	for i := range 1500 {
		m.Answer = append(m.Answer, record(t, fmt.Sprintf("www.example.org. 60 IN MX %d mail%d.n%d.example.net.", i, i, i/2)))
	}
	expected := text(m)
	a := accept(t, "www.example.org.", dns.TypeMX, false, m.Copy())
	if len(a.data) < 2*maxPointer {
		t.Fatalf("%d octets are too few for this test", len(a.data))
	}
	q := ask(t, "www.example.org.", dns.TypeMX)
	if got := text(respond(t, a, q, a.at)); got != expected {
		t.Error("1500 records are read as others")
	}

	// As far behind as it gets: behind CNAMEs of ours that are as long as names can be.
	long := ask(t, strings.Repeat(strings.Repeat("x", 60)+".", 4), dns.TypeMX)
	var r wire.Response
	r.Begin(nil, long, dns.MaxMsgSize, 1232)
	for range 6 {
		r.AddName(wire.Answer, wire.QuestionAt, dns.TypeCNAME, 5, long.Name)
	}
	at := r.AddName(wire.Answer, wire.QuestionAt, dns.TypeCNAME, 5, q.Name)
	if !a.Append(&r, at, a.at) {
		t.Fatal("it does not fit")
	}
	got := unpack(t, r.Finish())
	if got.Answer = got.Answer[7:]; text(got) != expected {
		t.Error("1500 records behind CNAMEs are read as others")
	}
}

func TestNamesAreCompressed(t *testing.T) {
	m := new(dns.Msg)
	for i := range 20 {
		m.Answer = append(m.Answer, record(t, fmt.Sprintf("a.long.name.example.org. 60 IN MX %d mail%d.another.name.example.net.", i, i)))
	}
	a := accept(t, "a.long.name.example.org.", dns.TypeMX, false, m)
	m.Compress = true
	packet, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q := asked(t, "a.long.name.example.org.", dns.TypeMX, false)
	if ours, theirs := len(a.data), len(packet)-wire.HeaderLen-len(q.Question); ours > theirs {
		t.Errorf("records take %d octets, the library needs %d", ours, theirs)
	}
}

func TestWhatDoesNotFitIsTruncated(t *testing.T) {
	m := new(dns.Msg)
	for i := range 100 {
		m.Answer = append(m.Answer, record(t, fmt.Sprintf("many.example. 60 IN A 10.0.0.%d", i)))
	}
	a := accept(t, "many.example.", dns.TypeA, false, m)
	q := asked(t, "many.example.", dns.TypeA, false)
	var r wire.Response
	r.Begin(nil, q, 512, 1232)
	if a.Append(&r, wire.QuestionAt, a.at) {
		t.Error("100 records are said to fit into 512 octets")
	}
	if got := unpack(t, r.Finish()); !got.Truncated || len(got.Answer) != 0 {
		t.Errorf("truncated %v with %d records, want TC and none", got.Truncated, len(got.Answer))
	}
}

// FuzzUpstream is an upstream that says anything, to the question and not.
func FuzzUpstream(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		_, _, m := randomMessage(rng)
		m.Response, m.Compress = true, true
		if packet, err := m.Pack(); err == nil {
			f.Add(packet[2:], true)
			f.Add(packet[2:], false)
		}
	}
	loop := []byte("\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x01\x00\x00")
	f.Add(loop, false)
	f.Add([]byte{}, true)
	q := newQuestion([]byte("\x01a\x07example\x03org\x00"), dns.TypeA)
	f.Fuzz(func(t *testing.T, data []byte, ours bool) {
		const id = 4711
		packet, question := q.pack(id, request{mixed: true})
		packet = append(packet[:2:2], data...)
		if ours && len(data) >= 10 { // what follows the question is the fuzzer's
			packet = append(append(packet[:12:12], question...), data[10:]...)
			packet[2], packet[4], packet[5] = packet[2]|0x80, 0, 1
		}
		if judge(packet, id, question) == isOther {
			return
		}
		m, err := readMessage(packet)
		if err != nil {
			return
		}
		a, err := newAnswer(q, m, testLimits())
		if err != nil {
			return
		}
		a.at = time.Unix(0, 0)
		client := ask(t, "A.example.org.", dns.TypeA)
		got := respond(t, a, client, a.at)
		belongs := map[string]bool{"a.example.org.": true}
		for _, rr := range got.Answer {
			h := rr.Header()
			if _, isDNAME := rr.(*dns.DNAME); !belongs[strings.ToLower(h.Name)] && !isDNAME {
				t.Fatalf("%s does not belong to the question", rr)
			}
			if cname, ok := rr.(*dns.CNAME); ok {
				belongs[strings.ToLower(cname.Target)] = true
			}
			if h.Rrtype != dns.TypeA && h.Rrtype != dns.TypeCNAME && h.Rrtype != dns.TypeDNAME {
				t.Fatalf("%s was not asked for", rr)
			}
		}
		for _, rr := range got.Ns {
			if _, ok := rr.(*dns.SOA); !ok {
				t.Fatalf("%s was not asked for", rr)
			}
		}
		if a.ttl > time.Hour {
			t.Fatalf("kept for %v", a.ttl)
		}
	})
}
