package zone

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/model"
)

// TestWalk takes random steps, some of them from a Zone of long ago, and compares each Zone with one from nothing, and its answers with the oracle's.
func TestWalk(t *testing.T) {
	t.Parallel()
	for i := range 5 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			t.Logf("seed %d", seed)
			d := dice{rand.New(rand.NewPCG(seed, 0))}
			type visit struct {
				in       model.Input
				snapshot *model.Snapshot
				zone     *Zone
				dump     string
			}
			past := []visit{{zone: newZone(t)}}
			for range 25 {
				was := past[len(past)-1]
				if d.one(8) {
					was = past[d.IntN(len(past))]
				}
				in := was.in
				for range 1 + d.IntN(6) {
					in = d.step(in)
				}
				now := visit{in: in, snapshot: model.Build(in, was.snapshot)}
				now.zone = was.zone.Next(now.snapshot)
				now.dump = dump(now.zone)
				if anew := dump(newZone(t).Next(now.snapshot)); anew != now.dump {
					t.Fatalf("step by step:\n%s\nfrom nothing:\n%s", now.dump, anew)
				}
				consult(t, d, now.snapshot, now.zone)
				if t.Failed() {
					t.Fatal(model.Text(now.snapshot))
				}
				past = append(past, now)
			}
			for _, v := range past[1:] {
				if now := dump(v.zone); now != v.dump {
					t.Errorf("a Zone became another:\n%s\nwas:\n%s", now, v.dump)
				}
			}
		})
	}
}

// dump is all of an index as text.
func dump(z *Zone) string {
	var b strings.Builder
	for key, s := range z.services.All {
		fmt.Fprintf(&b, "%q %+v\n", key, *s)
	}
	for key, n := range z.namespaces.All {
		fmt.Fprintf(&b, "%q %d\n", key, n)
	}
	for key, list := range z.pointers.All {
		fmt.Fprintf(&b, "%x %+v\n", key, list)
	}
	for key, list := range z.pods.All {
		fmt.Fprintf(&b, "%x %+v\n", key, list)
	}
	fmt.Fprintln(&b, z.cuts)
	return b.String()
}

// consult puts all questions to a Zone and to the oracle.
func consult(t *testing.T, d dice, s *model.Snapshot, z *Zone) {
	t.Helper()
	o := newOracle(s, z.Serial())
	transferred(t, z, o)
	for _, name := range o.names() {
		if !d.one(3) {
			continue // another step asks for it
		}
		for _, rtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeCNAME, dns.TypeTXT, dns.TypeSOA, dns.TypeNS, dns.TypeMX} {
			want := o.answer(name, dns.TypeToString[rtype])
			asked := name
			if d.one(2) {
				asked = strings.ToUpper(name)
			}
			got, m := put(t, z, asked, rtype, d.Uint64())
			if want.ttl < 0 {
				want.zone = "" // nothing says it
			}
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
				t.Errorf("%s %s\ngot  %+v\nwant %+v", dns.TypeToString[rtype], name, got, want)
				return
			}
			if m != nil && !o.complete(t, m) {
				t.Errorf("%s %s: the additional section is wrong:\n%v", dns.TypeToString[rtype], name, m)
				return
			}
		}
	}
	searches(t, d, z, o)
}

// put a question; the response is nil if nothing was written.
func put(t *testing.T, z *Zone, name string, rtype uint16, random uint64) (expectation, *dns.Msg) {
	t.Helper()
	q, r := begin(t, asked(t, name, rtype), true)
	outcome := z.Answer(q, r, random)
	if outcome.Kind == NotOurs || outcome.Kind == AskPod {
		return expectation{outcome: outcome.Kind}, nil
	}
	m := new(dns.Msg)
	if err := m.Unpack(r.Finish()); err != nil {
		t.Fatal(err)
	}
	got := expectation{outcome: outcome.Kind, rcode: dns.RcodeToString[m.Rcode], ttl: -1}
	for i, rr := range m.Answer {
		if i == 0 && rr.Header().Name != name {
			t.Errorf("letter case of %s: %s", name, rr.Header().Name)
		}
		h := rr.Header()
		data := strings.TrimPrefix(rr.String(), h.String())
		got.answer = append(got.answer, fmt.Sprintf("%s %d %s %s", strings.ToLower(h.Name), h.Ttl, dns.TypeToString[h.Rrtype], data))
	}
	if outcome.Kind == Done && len(got.answer) > 0 && m.Answer[len(m.Answer)-1].Header().Rrtype != dns.TypeCNAME {
		slices.Sort(got.answer)
	}
	for _, rr := range m.Ns {
		got.ttl, got.zone = int(rr.Header().Ttl), strings.ToLower(rr.Header().Name)
		slices.Sort(got.answer)
		if soa := rr.(*dns.SOA); soa.Minttl != rr.Header().Ttl {
			t.Errorf("SOA %v", soa)
		}
	}
	return got, m
}

func begin(t testing.TB, packet []byte, tcp bool) (*wire.Query, *wire.Response) {
	t.Helper()
	q, r := new(wire.Query), new(wire.Response)
	if rcode, ok := q.Parse(packet); rcode != 0 || !ok {
		t.Fatal(rcode, ok)
	}
	r.Begin(nil, q, q.Limit(tcp, 1232), 1232)
	return q, r
}

// complete says whether every target in the zone has its addresses in the response, and nothing else is there.
func (o *oracle) complete(t *testing.T, m *dns.Msg) bool {
	t.Helper()
	var want, got []string
	for _, rr := range m.Answer {
		var target string
		switch rr := rr.(type) {
		case *dns.SRV:
			target = rr.Target
		case *dns.NS:
			target = rr.Ns
		case *dns.PTR:
			if !o.exists(rr.Ptr) {
				t.Errorf("PTR to %s, which is not there", rr.Ptr)
			}
			continue
		default:
			continue
		}
		for _, rtype := range []string{"A", "AAAA"} {
			for _, data := range o.records[target][rtype] {
				want = append(want, fmt.Sprintf("%s %d %s %s", target, o.ttl[target], rtype, data))
			}
		}
	}
	for _, rr := range m.Extra {
		if h := rr.Header(); h.Rrtype != dns.TypeOPT {
			got = append(got, fmt.Sprintf("%s %d %s %s", h.Name, h.Ttl, dns.TypeToString[h.Rrtype], strings.TrimPrefix(rr.String(), h.String())))
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	return slices.Equal(got, slices.Compact(want))
}

// searches completes names, which must be as asking one after the other is.
func searches(t *testing.T, d dice, z *Zone, o *oracle) {
	t.Helper()
	for _, rest := range []string{"example.com", "x", "x.a", "x.a.svc", "h.x.a", "a.pod", "10-1-0-1.a.pod", "dns-version", "_http._tcp.x"} {
		namespace := d.namespace()
		var paths [3]string
		for i, suffix := range []string{"." + namespace + ".svc.", ".svc.", "."} {
			paths[i] = rest + suffix + domain
		}
		want := !slices.ContainsFunc(paths[:], func(name string) bool { return o.exists(name) || o.unknownPod(name) })
		wireName, err := wire.AppendName(nil, strings.ToUpper(paths[0]))
		if err != nil {
			t.Fatal(err)
		}
		got, ok := z.Search(nil, wireName, namespace)
		if ok != want || ok && wire.NameString(got) != rest+"." {
			t.Errorf("search for %s from %s: %q %v, want %v", rest, namespace, got, ok, want)
		}
		if _, ok := z.Search(nil, wireName, "elsewhere"); ok {
			t.Errorf("search for %s from another namespace", rest)
		}
	}
}

// TestNamespace: the pods are those of all Services, in the namespace of any.
func TestNamespace(t *testing.T) {
	t.Parallel()
	in := many(20)
	z := newZone(t).Next(model.Build(in, nil))
	addr := netip.MustParseAddr("10.128.0.26") // the first of service-13
	if ns, ok := z.Namespace(addr); ns != "ns-3" || !ok {
		t.Errorf("%q %v", ns, ok)
	}
	if ns, ok := z.Namespace(netip.MustParseAddr("::ffff:10.128.0.26")); ns != "ns-3" || !ok {
		t.Errorf("as an IPv6 socket says it: %q %v", ns, ok)
	}
	if ns, ok := z.Namespace(netip.MustParseAddr("192.0.2.1")); ok {
		t.Errorf("of an address of no pod: %q", ns)
	}
	for _, step := range []struct {
		title, namespace string
		known            bool
	}{{"another Service of the namespace", "ns-3", true}, {"another namespace", "ns-4", false}} {
		again := in.WithService(clusterIPService(13, 0)).WithSlice(endpointSlice(step.namespace, map[string]string{"ns-3": "service-3", "ns-4": "service-4"}[step.namespace], 26, 1))
		if ns, ok := z.Next(model.Build(again, z.Snapshot())).Namespace(addr); ok != step.known {
			t.Errorf("%s: %q %v", step.title, ns, ok)
		}
	}
	gone := in.WithoutSlice("ns-3", "service-13")
	if ns, ok := z.Next(model.Build(gone, z.Snapshot())).Namespace(addr); ok {
		t.Errorf("of a pod that is gone: %q", ns)
	}
}

// TestOrder: every record once, each as likely to be the first.
func TestOrder(t *testing.T) {
	t.Parallel()
	d := dice{rand.New(rand.NewPCG(1, 2))}
	for _, n := range []int{0, 1, 2, 3, 4, 5, 6, 7, 10, 64, 100} {
		firsts := make([]int, n)
		for range 100 * max(n, 1) {
			seen := make([]bool, n)
			o := newOrder(d.Uint64(), n)
			for i := 0; o.left > 0; i++ {
				at := o.next()
				if seen[at] {
					t.Fatalf("%d of %d twice", at, n)
				}
				if seen[at] = true; i == 0 {
					firsts[at]++
				}
				if n > 20 && i > 0 {
					break // the rest is seen once below
				}
			}
		}
		seen := make([]bool, n)
		for o := newOrder(d.Uint64(), n); o.left > 0; {
			seen[o.next()] = true
		}
		if slices.Contains(seen, false) {
			t.Errorf("not all of %d: %v", n, seen)
		}
		if n > 1 && (slices.Min(firsts) < 50 || slices.Max(firsts) > 150) {
			t.Errorf("first ones of %d: %v", n, firsts)
		}
	}
	if a, b := newOrder(3, 100), newOrder(4, 100); a.step == b.step {
		t.Error("all orders are turns of one")
	}
}

func TestParseDashed(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"1-2-3-4": "1.2.3.4", "255-255-255-255": "255.255.255.255", "fd02--1": "fd02::1", "--": "::", "--1": "::1", "1--": "1::", "1--0": "1::",
		"1-2-3-4-5-6-7-8": "1:2:3:4:5:6:7:8", "1-2-3--5-6-7-8": "1:2:3:0:5:6:7:8", "--2-3-4-5-6-7-8": "0:2:3:4:5:6:7:8",
		"": "", "-": "", "1": "", "1-2-3": "", "1-2-3-4-5": "", "1-2-3-256": "", "01-2-3-4": "", "1-2-3-4-": "", "-1-2-3-4": "", "1-2-3-x": "",
		"---": "", "1---2": "", "1--2--3": "", "1-2-3-4-5-6-7-8-9": "", "1-2-3-4-5-6-7-8--": "", "1-2-3-4--5-6-7-8": "", "12345--": "", "1-": "", "-1--": "",
	} {
		got, ok := parseDashed([]byte(text))
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%q: %v %v, want %q", text, got, ok, want)
		}
	}
	d := dice{rand.New(rand.NewPCG(3, 4))}
	for range 2000 {
		var octets [16]byte
		for i := range octets {
			octets[i] = byte(d.IntN(256) * d.IntN(2))
		}
		addr := netip.AddrFrom16(octets)
		if got, ok := parseDashed(AppendDashed(nil, addr)); !addr.Is4In6() && (!ok || got != addr) {
			t.Errorf("%s: %v %v", AppendDashed(nil, addr), got, ok)
		}
	}
}

// FuzzAnswer puts any packet to a Zone that has everything.
func FuzzAnswer(f *testing.F) {
	d := dice{rand.New(rand.NewPCG(5, 6))}
	in := many(20)
	for range 100 {
		in = d.step(in)
	}
	in = in.WithNetwork(model.Network{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("fd02::/63")}})
	s := model.Build(in, nil)
	z, empty := newZone(f).Next(s), newZone(f)
	for i, name := range newOracle(s, 0).names() {
		if i%23 == 0 { // more would keep a fuzzer busy
			f.Add(asked(f, name, []uint16{dns.TypeA, dns.TypeSRV, dns.TypeANY, dns.TypePTR, dns.TypeNS}[i%5]), uint64(i), i%2 == 0)
		}
	}
	f.Fuzz(func(t *testing.T, packet []byte, random uint64, tcp bool) {
		var q wire.Query
		if rcode, ok := q.Parse(packet); rcode != 0 || !ok {
			return
		}
		for _, z := range []*Zone{z, empty} {
			var r wire.Response
			r.Begin(nil, &q, q.Limit(tcp, 1232), 1232)
			before := r.Len()
			outcome := z.Answer(&q, &r, random)
			if (outcome.Kind == NotOurs || outcome.Kind == AskPod) && (r.Len() != before || r.RCode() != 0) {
				t.Fatalf("outcome %v, and something was written", outcome)
			}
			if outcome.Kind == AskPod {
				if outcome = z.AnswerPod(&q, &r, random%2 == 0); outcome.Kind != Done {
					t.Fatalf("outcome %v after it was said whether there is a pod", outcome)
				}
			}
			sane(t, outcome, r.Finish(), q.Limit(tcp, 1232))
			var rest [wire.MaxName]byte
			if found, ok := z.Search(rest[:0], q.Name, "a"); ok && len(found) >= len(q.Name) {
				t.Fatalf("the search for %q gave %q", q.Name, found)
			}
		}
	})
}

func sane(t *testing.T, outcome Outcome, message []byte, limit int) {
	t.Helper()
	var m dns.Msg
	if err := m.Unpack(message); err != nil || len(message) > limit {
		t.Fatalf("%v: %d octets of %d: % x", err, len(message), limit, message)
	}
	last := len(m.Answer) - 1
	switch {
	case outcome.Kind == NotOurs:
	case m.Rcode == dns.RcodeRefused || m.Rcode == dns.RcodeServerFailure:
		if m.Authoritative || last >= 0 || len(m.Ns) > 0 {
			t.Fatalf("%v", &m)
		}
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError, !m.Authoritative:
		t.Fatalf("%v", &m)
	case outcome.Kind == Follow:
		at := outcome.At
		if last < 0 || m.Answer[last].Header().Rrtype != dns.TypeCNAME || !bytes.Equal(message[at:at+len(outcome.Target)], outcome.Target) {
			t.Fatalf("%v\n%v", outcome, &m)
		}
	case m.Truncated:
	case m.Rcode == dns.RcodeNameError || last < 0:
		if len(m.Ns) != 1 || m.Ns[0].Header().Rrtype != dns.TypeSOA {
			t.Fatalf("there is no SOA in\n%v", &m)
		}
	}
}
