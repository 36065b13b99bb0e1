package names

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/dns/zone"
	"github.com/endpointd/endpointd/internal/model"
)

// An answer is what is compared of one, in an order of its own.
type answer struct {
	rcode                         string
	answer, authority, additional []string
}

func (a *answer) String() string {
	return fmt.Sprintf("%s\n    answer %q\n    authority %q\n    additional %q", a.rcode, a.answer, a.authority, a.additional)
}

func (a *answer) same(b *answer) bool {
	return a.rcode == b.rcode && slices.Equal(a.answer, b.answer) && slices.Equal(a.authority, b.authority) && slices.Equal(a.additional, b.additional)
}

func newAnswer(m *dns.Msg) *answer {
	texts := func(records []dns.RR) []string {
		var all []string
		for _, rr := range records {
			if soa, ok := rr.(*dns.SOA); ok { // one each, and of its content only how long a client may remember
				all = append(all, fmt.Sprintf("%s %d SOA minimum %d", strings.ToLower(soa.Hdr.Name), soa.Hdr.Ttl, soa.Minttl))
				continue
			}
			all = append(all, strings.ToLower(strings.Join(strings.Fields(rr.String()), " ")))
		}
		slices.Sort(all)
		return all
	}
	return &answer{dns.RcodeToString[m.Rcode], texts(m.Answer), texts(m.Ns), texts(m.Extra)}
}

// ours answers as our server does: whether there is a pod that endpoints do not tell of is known to it from the API.
func ours(t *testing.T, z *zone.Zone, m *dns.Msg, pods map[string]bool) *dns.Msg {
	t.Helper()
	packet, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var q wire.Query
	if rcode, ok := q.Parse(packet); rcode != 0 || !ok {
		t.Fatalf("%s: %d %v", m.Question[0].String(), rcode, ok)
	}
	var r wire.Response
	r.Begin(nil, &q, q.Limit(true, 0), 1232)
	switch o := z.Answer(&q, &r, rand.Uint64()); o.Kind {
	case zone.AskPod:
		z.AnswerPod(&q, &r, pods[o.Namespace+"/"+o.Addr.String()])
	case zone.NotOurs:
		r.SetRCode(dns.RcodeRefused)
	}
	got := new(dns.Msg)
	if err := got.Unpack(r.Finish()); err != nil {
		t.Fatal(err)
	}
	return got
}

// questions are all that is asked.
func (w *world) questions() []*dns.Msg {
	names := slices.Concat(w.names, []string{
		"cluster.local", "svc.cluster.local", "pod.cluster.local", "dns-version.cluster.local", "x.cluster.local", "nobody.a.svc.cluster.local",
		"a.svc.cluster.local", "bare.svc.cluster.local", "none.svc.cluster.local", "a.pod.cluster.local", "x.y.z.a.svc.cluster.local",
		"10-9-9-9.a.pod.cluster.local", "x.a.pod.cluster.local",
	})
	addrs := slices.Concat(w.addrs, []netip.Addr{netip.MustParseAddr("10.96.77.77"), netip.MustParseAddr("fd00:96::7777")})
	var all []*dns.Msg
	for _, name := range names {
		for _, rtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypeCNAME, dns.TypeMX} {
			all = append(all, question(name, rtype))
		}
	}
	for _, addr := range addrs {
		name, err := dns.ReverseAddr(addr.String())
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, question(name, dns.TypePTR), question(name, dns.TypeA))
	}
	return append(all, question("cluster.local", dns.TypeSOA), question("cluster.local", dns.TypeNS))
}

// Both answer the same, but for what is in the list.
func TestSameAnswers(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t, seed)
			theirs := start(t, w.api, last+".a.svc.cluster.local")
			z, err := zone.New(zone.Options{Domain: "cluster.local", Servers: []netip.Addr{netip.MustParseAddr("10.96.0.10")}})
			if err != nil {
				t.Fatal(err)
			}
			z = z.Next(model.Build(w.in, nil))
			used := map[string]int{}
			reported := 0
			for _, m := range w.questions() {
				got, err := theirs.ask(m)
				if err != nil {
					t.Fatalf("%s: CoreDNS: %v", m.Question[0].String(), err)
				}
				a, b := newAnswer(ours(t, z, m, nil)), newAnswer(got)
				if a.same(b) {
					continue
				}
				if d := explain(m.Question[0], a, b); d != "" {
					used[d]++
					continue
				}
				if reported++; reported < 40 {
					t.Errorf("%s\n  ours:    %v\n  CoreDNS: %v", m.Question[0].String(), a, b)
				}
			}
			t.Logf("%d questions, differences that are meant: %v", len(w.questions()), used)
			for _, d := range differences() {
				if used[d.reason] == 0 {
					t.Errorf("no difference any more, so remove it from the list: %s", d.reason)
				}
			}
		})
	}
}

// A difference is one that is meant.
type difference struct {
	reason string
	covers func(q dns.Question, ours, theirs *answer) bool
}

func differences() []difference {
	nodata := func(a *answer) bool { return a.rcode == "NOERROR" && len(a.answer) == 0 }
	below := func(q dns.Question) int {
		return dns.CountLabel(q.Name) - dns.CountLabel("service.namespace.svc.cluster.local.")
	}
	isPort := func(q dns.Question) bool { return strings.HasPrefix(q.Name, "_") && below(q) == 2 }
	return []difference{
		{
			"an empty non-terminal is there (RFC 8020), as what is below it is",
			func(q dns.Question, ours, theirs *answer) bool {
				return theirs.rcode == "NXDOMAIN" && nodata(ours) && (strings.HasPrefix(q.Name, "_tcp.") || strings.HasPrefix(q.Name, "_udp.")) && below(q) == 1
			},
		},
		{
			"the specification has SRV records at the name of a port, and no addresses",
			func(q dns.Question, ours, theirs *answer) bool {
				return isPort(q) && (q.Qtype == dns.TypeA || q.Qtype == dns.TypeAAAA) && nodata(ours) && theirs.rcode == "NOERROR"
			},
		},
		{
			"the specification has addresses at the name of an endpoint or a pod, and no SRV records",
			func(q dns.Question, ours, theirs *answer) bool {
				return q.Qtype == dns.TypeSRV && (below(q) == 1 || strings.HasSuffix(q.Name, ".pod.cluster.local.")) && nodata(ours) && len(theirs.answer) > 0
			},
		},
		{
			"endpoints have names below headless Services only, and so have their addresses",
			func(q dns.Question, ours, theirs *answer) bool {
				return (below(q) == 1 || strings.HasSuffix(q.Name, ".arpa.")) && ours.rcode == "NXDOMAIN" && theirs.rcode == "NOERROR"
			},
		},
		{
			"an ExternalName gives its CNAME for every type, and also if it leads nowhere",
			func(_ dns.Question, ours, theirs *answer) bool {
				return slices.ContainsFunc(ours.answer, func(rr string) bool { return strings.Contains(rr, " cname ") }) && nodata(theirs)
			},
		},
		{
			"a name that has records of one type is there for the others too",
			func(q dns.Question, ours, theirs *answer) bool {
				special := []string{"cluster.local.", "svc.cluster.local.", "pod.cluster.local.", "dns-version.cluster.local.", "a.svc.cluster.local.", "a.pod.cluster.local."}
				return theirs.rcode == "NXDOMAIN" && nodata(ours) && (slices.Contains(special, q.Name) || strings.HasSuffix(q.Name, ".arpa.") && q.Qtype != dns.TypePTR)
			},
		},
		{
			"a namespace without Services has no name: nothing is below it",
			func(q dns.Question, ours, theirs *answer) bool {
				return q.Name == "bare.svc.cluster.local." && ours.rcode == "NXDOMAIN" && nodata(theirs)
			},
		},
		{
			"the zone has a name server with an address",
			func(q dns.Question, ours, theirs *answer) bool {
				return q.Qtype == dns.TypeNS && len(ours.answer) == 1 && len(ours.additional) == 1 && nodata(theirs)
			},
		},
		{
			"an endpoint that has no number for a port has no SRV record there, so it takes no part of the weight, and its name has all its addresses",
			func(q dns.Question, ours, theirs *answer) bool {
				isPart := func(rr string) bool { return slices.Contains(ours.additional, rr) }
				return q.Qtype == dns.TypeSRV && len(ours.answer) > 0 && slices.Equal(withoutWeights(ours.answer), withoutWeights(theirs.answer)) &&
					!slices.ContainsFunc(theirs.additional, func(rr string) bool { return !isPart(rr) })
			},
		},
		{
			"a port that has a number of no endpoint is not there",
			func(q dns.Question, ours, theirs *answer) bool {
				return isPort(q) && ours.rcode == "NXDOMAIN" && theirs.rcode == "NOERROR" && (q.Qtype != dns.TypeSRV || nodata(theirs))
			},
		},
		{
			"reverse zones are those of the cluster's ranges, not all addresses there are",
			func(q dns.Question, ours, theirs *answer) bool {
				return strings.HasSuffix(q.Name, ".arpa.") && ours.rcode == theirs.rcode && len(ours.answer)+len(theirs.answer) == 0 &&
					len(ours.authority) == 1 && strings.HasPrefix(theirs.authority[0], theirZone(q.Name))
			},
		},
	}
}

// withoutWeights are SRV records as text but for their weights, in order.
func withoutWeights(records []string) []string {
	var all []string
	for _, rr := range records {
		words := strings.Fields(rr)
		if len(words) == 8 {
			words[5] = "-"
		}
		all = append(all, strings.Join(words, " "))
	}
	slices.Sort(all)
	return all
}

// theirZone is CoreDNS's zone of a reverse name.
func theirZone(name string) string {
	labels := dns.SplitDomainName(name)
	return strings.Join(labels[len(labels)-2:], ".") + ". "
}

func explain(q dns.Question, ours, theirs *answer) string {
	for _, d := range differences() {
		if d.covers(q, ours, theirs) {
			return d.reason
		}
	}
	return ""
}
