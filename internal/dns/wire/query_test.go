package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// question is a request for an address, with EDNS if options is not nil.
func question(t testing.TB, name string, options ...dns.EDNS0) []byte {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeA)
	m.Id = 0x1234
	if options != nil {
		m.SetEdns0(1232, true)
		m.IsEdns0().Option = options
	}
	return pack(t, m)
}

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	packet, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return packet
}

func cookie(octets string) dns.EDNS0 { return &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: octets} }

func TestParse(t *testing.T) {
	t.Parallel()
	plain := question(t, "a.example.")
	edns := question(t, "a.example.", cookie("0102030405060708"))
	const none = -1 // nothing is to be answered
	set := func(packet []byte, at int, octets ...byte) []byte {
		packet = bytes.Clone(packet)
		copy(packet[at:], octets)
		return packet
	}
	add := func(packet []byte, section int, record string) []byte {
		packet = append(bytes.Clone(packet), record...)
		at := 6 + 2*section
		binary.BigEndian.PutUint16(packet[at:], binary.BigEndian.Uint16(packet[at:])+1)
		return packet
	}
	const opt, a = "\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00", "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\x01\x02\x03\x04"
	for _, c := range []struct {
		title  string
		packet []byte
		rcode  int
	}{
		{"a question", plain, dns.RcodeSuccess},
		{"with EDNS and a cookie", edns, dns.RcodeSuccess},
		{"nothing", nil, none},
		{"half a header", plain[:HeaderLen-1], none},
		{"a response", set(plain, 2, 0x80), none},
		{"NOTIFY", set(plain, 2, 4<<3), dns.RcodeNotImplemented},
		{"UPDATE", set(plain, 2, 5<<3), dns.RcodeNotImplemented},
		{"STATUS", set(plain, 2, 2<<3), dns.RcodeNotImplemented},
		{"an opcode that there is not", set(plain, 2, 15<<3), dns.RcodeNotImplemented},
		{"a response to NOTIFY", set(plain, 2, 0x80|4<<3), none},
		{"header alone, no question", set(plain, 4, 0, 0)[:HeaderLen], dns.RcodeFormatError},
		{"header alone, one question", plain[:HeaderLen], dns.RcodeFormatError},
		{"two questions", set(append(bytes.Clone(plain), plain[HeaderLen:]...), 4, 0, 2), dns.RcodeFormatError},
		{"65535 questions", set(plain, 4, 0xff, 0xff), dns.RcodeFormatError},
		{"a name that is cut off", plain[:HeaderLen+5], dns.RcodeFormatError},
		{"a question without a class", plain[:len(plain)-2], dns.RcodeFormatError},
		{"a name that points to itself", set(plain, HeaderLen, 0xc0, HeaderLen), dns.RcodeFormatError},
		{"a label of 64", set(plain, HeaderLen, 0x40), dns.RcodeFormatError},
		{"a name of 256", append(append(bytes.Clone(plain[:HeaderLen]), strings.Repeat("\x01a", 127)+"\x01"...), 'a', 0, 0, 1, 0, 1), dns.RcodeFormatError},
		{"a name of 255", append(append(bytes.Clone(plain[:HeaderLen]), strings.Repeat("\x01a", 127)...), 0, 0, 1, 0, 1), dns.RcodeSuccess},
		{"something behind it", append(bytes.Clone(plain), 1, 2, 3), dns.RcodeSuccess},
		{"a record in every section", add(add(add(plain, 0, a), 1, a), 2, a), dns.RcodeSuccess},
		{"OPT behind another additional record", add(add(plain, 2, a), 2, opt), dns.RcodeSuccess},
		{"OPT before another additional record", add(add(plain, 2, opt), 2, a), dns.RcodeSuccess},
		{"a record that is not there", set(plain, 11, 1), dns.RcodeFormatError},
		{"65535 records that are not there", set(plain, 6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), dns.RcodeFormatError},
		{"a record that is cut off", add(plain, 2, a[:len(a)-1]), dns.RcodeFormatError},
		{"a record whose name never ends", add(plain, 2, strings.Repeat("\x3f"+strings.Repeat("a", 63), 5)), dns.RcodeFormatError},
		{"a record with half a pointer", add(plain, 2, "\xc0"), dns.RcodeFormatError},
		{"two OPTs", add(add(plain, 2, opt), 2, opt), dns.RcodeFormatError},
		{"OPT as an answer", add(plain, 0, opt), dns.RcodeFormatError},
		{"OPT as an authority", add(plain, 1, opt), dns.RcodeFormatError},
		{"OPT with a name", add(plain, 2, "\x01a"+opt), dns.RcodeFormatError},
		{"EDNS version 1", add(plain, 2, "\x00\x00\x29\x04\xd0\x00\x01\x00\x00\x00\x00"), dns.RcodeBadVers},
		{"an option without a length", add(plain, 2, "\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x03\x00\x0a\x00"), dns.RcodeFormatError},
		{"an option that is longer than OPT", add(plain, 2, "\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x05\x00\x03\x00\x02a"), dns.RcodeFormatError},
		{"an unknown option", add(plain, 2, "\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x06\xff\xee\x00\x02ab"), dns.RcodeSuccess},
		{"a cookie of 7", question(t, "a.example.", cookie("01020304050607")), dns.RcodeFormatError},
		{"a cookie of 15", question(t, "a.example.", cookie(strings.Repeat("01", 15))), dns.RcodeFormatError},
		{"a cookie of 16", question(t, "a.example.", cookie(strings.Repeat("01", 16))), dns.RcodeSuccess},
		{"a cookie of 40", question(t, "a.example.", cookie(strings.Repeat("01", 40))), dns.RcodeSuccess},
		{"a cookie of 41", question(t, "a.example.", cookie(strings.Repeat("01", 41))), dns.RcodeFormatError},
	} {
		var q Query
		rcode, answerable := q.Parse(c.packet)
		if !answerable {
			rcode = none
		}
		if rcode != c.rcode {
			t.Errorf("%s: RCODE %d, want %d", c.title, rcode, c.rcode)
		}
		if answerable {
			var r Response
			r.Begin(nil, &q, q.Limit(false, 1232), 1232)
			r.SetRCode(rcode)
			respond(t, c.title, &q, &r)
		}
		if rcode == dns.RcodeSuccess {
			compareQuery(t, c.title, c.packet, &q)
		}
	}
}

// respond finishes a response, which must be one to the request.
func respond(t testing.TB, title string, q *Query, r *Response) *dns.Msg {
	t.Helper()
	want := r.RCode()
	if !q.EDNS.Present {
		want &= 0xf
	}
	message := r.Finish()
	var m dns.Msg
	if err := m.Unpack(message); err != nil {
		t.Fatalf("%s: %v: % x", title, err, message)
	}
	if !m.Response || m.Id != q.ID || m.Opcode != int(q.Opcode) || m.RecursionDesired != q.RecursionDesired || m.CheckingDisabled != q.CheckingDisabled ||
		m.Zero || m.AuthenticatedData || m.Rcode != want || len(m.Question) != min(len(q.Question), 1) {
		t.Fatalf("%s: the response to %+v is\n%v", title, q, &m)
	}
	if len(q.Question) > 0 && !bytes.Equal(message[HeaderLen:HeaderLen+len(q.Question)], q.Question) {
		t.Fatalf("%s: the question is not repeated in % x", title, message)
	}
	return &m
}

// compareQuery holds a Query against what miekg/dns makes of its packet.
func compareQuery(t testing.TB, title string, packet []byte, q *Query) {
	t.Helper()
	var m dns.Msg
	if err := m.Unpack(packet); err != nil {
		return // of a record that nobody looks into
	}
	if m.Id != q.ID || m.Opcode != int(q.Opcode) || m.RecursionDesired != q.RecursionDesired ||
		m.AuthenticatedData != q.AuthenticData || m.CheckingDisabled != q.CheckingDisabled {
		t.Errorf("%s: header of %+v, not of\n%v", title, q, &m)
	}
	if got := (dns.Question{Name: NameString(q.Name), Qtype: q.Type, Qclass: q.Class}); len(m.Question) != 1 || got != m.Question[0] {
		t.Errorf("%s: %+v, want %+v", title, got, m.Question)
	}
	opt := m.IsEdns0()
	keepAlive := opt != nil && slices.ContainsFunc(opt.Option, func(o dns.EDNS0) bool { return o.Option() == dns.EDNS0TCPKEEPALIVE })
	if keepAlive != q.EDNS.KeepAlive {
		t.Errorf("%s: keepalive %v, want %v", title, q.EDNS.KeepAlive, keepAlive)
	}
	if (opt != nil) != q.EDNS.Present {
		t.Errorf("%s: EDNS %+v, want %v", title, q.EDNS, opt)
	}
	if opt == nil {
		return
	}
	if opt.UDPSize() != q.EDNS.UDPSize || opt.Version() != q.EDNS.Version || opt.Do() != q.EDNS.DNSSECOK {
		t.Errorf("%s: EDNS %+v, want %v", title, q.EDNS, opt)
	}
	for _, option := range opt.Option {
		if c, ok := option.(*dns.EDNS0_COOKIE); ok {
			if hex.EncodeToString(q.EDNS.Cookie) != c.Cookie {
				t.Errorf("%s: cookie %x, want %s", title, q.EDNS.Cookie, c.Cookie)
			}
			break
		}
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	size := func(n uint16) *Query { return &Query{EDNS: EDNS{Present: true, UDPSize: n}} }
	for _, c := range []struct {
		title string
		q     *Query
		tcp   bool
		ours  int
		want  int
	}{
		{"without EDNS", &Query{}, false, 1232, 512},
		{"less than the least", size(0), false, 1232, 512},
		{"less than ours", size(1000), false, 1232, 1000},
		{"more than ours", size(4096), false, 1232, 1232},
		{"ours is less than the least", size(4096), false, 100, 512},
		{"TCP", size(600), true, 1232, 65535},
		{"TCP without EDNS", &Query{}, true, 1232, 65535},
	} {
		if got := c.q.Limit(c.tcp, c.ours); got != c.want {
			t.Errorf("%s: %d, want %d", c.title, got, c.want)
		}
	}
}

// FuzzParse puts any packet, and holds what is read against miekg/dns, both ways.
func FuzzParse(f *testing.F) {
	f.Add(question(f, "a.example."))
	f.Add(question(f, "A.eXample.", cookie("0102030405060708"), &dns.EDNS0_PADDING{Padding: []byte{0, 0}}))
	m := new(dns.Msg)
	m.SetNotify("example.")
	f.Add(pack(f, m))
	m.SetUpdate("example.")
	f.Add(pack(f, m))
	m.SetAxfr("example.").SetTsig("key.", dns.HmacSHA256, 300, 0)
	f.Add(pack(f, m))
	f.Fuzz(func(t *testing.T, packet []byte) {
		var q Query
		rcode, answerable := q.Parse(packet)
		if !answerable {
			if len(packet) >= HeaderLen && packet[2]&0x80 == 0 {
				t.Fatalf("no answer to % x", packet)
			}
			return
		}
		var r Response
		r.Begin(nil, &q, q.Limit(false, 1232), 1232)
		r.SetRCode(rcode)
		respond(t, "the response", &q, &r)
		switch rcode {
		case dns.RcodeSuccess:
			compareQuery(t, "the request", packet, &q)
		case dns.RcodeFormatError:
			if reason := wellFormed(packet); reason != "" {
				t.Fatalf("FORMERR to %s: % x", reason, packet)
			}
		case dns.RcodeNotImplemented, dns.RcodeBadVers:
		default:
			t.Fatalf("RCODE %d", rcode)
		}
	})
}

// wellFormed describes a request that miekg/dns finds nothing wrong with, and that is none of those which we refuse and it does not.
func wellFormed(packet []byte) string {
	var m dns.Msg
	if m.Unpack(packet) != nil || len(m.Question) != 1 || binary.BigEndian.Uint16(packet[4:]) != 1 || compressed(packet[HeaderLen:]) {
		return ""
	}
	if n := nameLength(packet[HeaderLen:]); HeaderLen+n+4 > len(packet) {
		return "" // it takes a question without a type
	}
	opts := 0
	for _, section := range [...][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype == dns.TypeOPT {
				opts++
			}
		}
	}
	opt := m.IsEdns0()
	switch {
	case opts > 1, opts == 1 && (opt == nil || opt.Hdr.Name != "."):
		return ""
	case len(m.Answer) != int(binary.BigEndian.Uint16(packet[6:])), len(m.Ns) != int(binary.BigEndian.Uint16(packet[8:])),
		len(m.Extra) != int(binary.BigEndian.Uint16(packet[10:])):
		return "" // it takes a packet that ends early
	}
	if opt != nil {
		for _, option := range opt.Option {
			if c, ok := option.(*dns.EDNS0_COOKIE); ok && len(c.Cookie) != 16 && (len(c.Cookie) < 32 || len(c.Cookie) > 80) {
				return ""
			}
		}
	}
	return m.String()
}

func TestParseDoesNotAllocate(t *testing.T) { // not parallel: AllocsPerRun counts the whole process
	packet := question(t, "a.ns.svc.cluster.local.", cookie("0102030405060708"))
	if allocs := testing.AllocsPerRun(100, func() {
		var q Query
		if rcode, ok := q.Parse(packet); rcode != 0 || !ok {
			t.Error(rcode, ok)
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func BenchmarkParse(b *testing.B) {
	packet := question(b, "a.ns.svc.cluster.local.", cookie("0102030405060708"))
	b.ReportAllocs()
	for b.Loop() {
		var q Query
		q.Parse(packet)
	}
}
