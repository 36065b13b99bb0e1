package server

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/testkit"
)

const webAnswer = "NOERROR web.ns.svc.cluster.test. A 10.0.0.1"

func TestAnswers(t *testing.T) {
	t.Parallel()
	f := newFakeForwarder(t)
	s := start(t, Options{
		Forwarder: f, Searches: []string{"corp.example", "."},
		PodExists: func(context.Context, string, netip.Addr) (bool, error) { return true, nil },
	})
	ptr6, _ := dns.ReverseAddr("::1")
	for _, c := range []struct {
		name, question string
		qtype          uint16
		want           string
	}{
		{"a name of the zone", "web.ns.svc.cluster.test.", dns.TypeA, webAnswer},
		{"letter case is kept", "WEB.ns.svc.cluster.test.", dns.TypeA, "NOERROR WEB.ns.svc.cluster.test. A 10.0.0.1"},
		{"a name of others", "www.example.", dns.TypeA, "NOERROR www.example. A 192.0.2.1"},
		{"the same from the cache", "www.example.", dns.TypeA, "NOERROR www.example. A 192.0.2.1"},
		{"a name that nobody has", "nobody.example.", dns.TypeA, "NXDOMAIN"},
		{"an ExternalName with its target", "ext.ns.svc.cluster.test.", dns.TypeA,
			"NOERROR ext.ns.svc.cluster.test. CNAME target.example. target.example. A 192.0.2.1"},
		{"a pod that the API is asked for", "10-0-0-7.ns.pod.cluster.test.", dns.TypeA, "NOERROR 10-0-0-7.ns.pod.cluster.test. A 10.0.0.7"},
		{"a search path that ends in the name itself", "www.example.ns.svc.cluster.test.", dns.TypeA,
			"NOERROR www.example.ns.svc.cluster.test. CNAME www.example. www.example. A 192.0.2.1"},
		{"its other family, which there is not", "www.example.ns.svc.cluster.test.", dns.TypeAAAA,
			"NOERROR www.example.ns.svc.cluster.test. CNAME www.example."},
		{"a search path that ends in a domain of the node", "single.ns.svc.cluster.test.", dns.TypeA,
			"NOERROR single.ns.svc.cluster.test. CNAME single.corp.example. single.corp.example. A 192.0.2.1"},
		{"a search path that leads nowhere", "no.where.ns.svc.cluster.test.", dns.TypeA, "NXDOMAIN"},
		{"a search path with a name of the zone", "web.ns.svc.cluster.test.ns.svc.cluster.test.", dns.TypeA,
			"NOERROR web.ns.svc.cluster.test.ns.svc.cluster.test. CNAME web.ns.svc.cluster.test. web.ns.svc.cluster.test. A 10.0.0.1"},
		{"a search path with what the zone does not have", "web.no.svc.cluster.test.ns.svc.cluster.test.", dns.TypeA, "NXDOMAIN"},
		{"a type that nobody searches for", "www.example.ns.svc.cluster.test.", dns.TypeTXT, "NXDOMAIN"},
		{"localhost in a search path", "localhost.ns.svc.cluster.test.", dns.TypeA, "NXDOMAIN"},
		{"localhost", "a.LocalHost.", dns.TypeA, "NOERROR a.LocalHost. A 127.0.0.1"},
		{"localhost of IPv6", "localhost.", dns.TypeAAAA, "NOERROR localhost. AAAA ::1"},
		{"another type of localhost", "localhost.", dns.TypeMX, "NOERROR"},
		{"loopback", "1.0.0.127.in-addr.arpa.", dns.TypePTR, "NOERROR 1.0.0.127.in-addr.arpa. PTR localhost."},
		{"loopback of IPv6", ptr6, dns.TypePTR, "NOERROR " + ptr6 + " PTR localhost."},
		{"invalid", "x.invalid.", dns.TypeA, "NXDOMAIN"},
		{"onion", "x.onion.", dns.TypeA, "NXDOMAIN"},
		{"the root", ".", dns.TypeNS, "NXDOMAIN"},
		{"a probe", "probe.example.", dns.TypeA, "REFUSED"},
		{"a type that no record has", "www.example.", dns.TypeTSIG, "NOTIMP"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			r := ask(t, s, network, question(c.question, c.qtype))
			if got := brief(r); got != c.want {
				t.Errorf("%s, %s: got %q, want %q", c.name, network, got, c.want)
			}
			if !r.RecursionAvailable {
				t.Errorf("%s: no RA", c.name)
			}
		}
	}
	if slices.Contains(f.questions(), "single.") {
		t.Error("a top-level domain was asked for that the client did not ask for")
	}
	if slices.ContainsFunc(f.questions(), func(n string) bool { return dns.IsSubDomain("cluster.test.", n) || dns.IsSubDomain("localhost.", n) }) {
		t.Errorf("a name that is nobody else's business went upstream: %q", f.questions())
	}
	if got := metric(t, s, "endpointd_dns_loops_total"); got != 2 {
		t.Errorf("%v probes counted, want 2", got)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Forwarder: newFakeForwarder(t)})
	chaos := question("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	update := new(dns.Msg).SetUpdate("cluster.test.")
	alone := question("www.example.", dns.TypeA)
	alone.RecursionDesired = false
	newer := question("web.ns.svc.cluster.test.", dns.TypeA)
	newer.SetEdns0(1232, false)
	newer.IsEdns0().SetVersion(1)
	notify := new(dns.Msg).SetNotify("cluster.test.")
	for _, c := range []struct {
		name string
		m    *dns.Msg
		want int
	}{
		{"another class", chaos, dns.RcodeRefused},
		{"an update", update, dns.RcodeNotImplemented},
		{"a notify", notify, dns.RcodeNotImplemented},
		{"a transfer", question("cluster.test.", dns.TypeAXFR), dns.RcodeRefused},
		{"a part of one", question("cluster.test.", dns.TypeIXFR), dns.RcodeRefused},
		{"no recursion wanted", alone, dns.RcodeRefused},
		{"EDNS of a later version", newer, dns.RcodeBadVers},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if got := ask(t, s, network, c.m); got.Rcode != c.want {
				t.Errorf("%s, %s: %s, want %s", c.name, network, dns.RcodeToString[got.Rcode], dns.RcodeToString[c.want])
			}
		}
	}
}

func TestWhatCannotBeAsked(t *testing.T) {
	t.Parallel()
	f := newFakeForwarder(t)
	f.broken = true
	s := start(t, Options{Forwarder: f, PodExists: func(context.Context, string, netip.Addr) (bool, error) { return false, errors.New("no API") }})
	for name, want := range map[string]string{
		"www.example.":                     "SERVFAIL",
		"ext.ns.svc.cluster.test.":         "NOERROR ext.ns.svc.cluster.test. CNAME target.example.",
		"www.example.ns.svc.cluster.test.": "NXDOMAIN",
		"10-0-0-7.ns.pod.cluster.test.":    "SERVFAIL",
		"web.ns.svc.cluster.test.":         webAnswer,
	} {
		wantBrief(t, ask(t, s, "udp", question(name, dns.TypeA)), want)
	}
}

func TestNothingToForwardTo(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	r := ask(t, s, "udp", question("www.example.", dns.TypeA))
	wantBrief(t, r, "REFUSED")
	if r.RecursionAvailable {
		t.Error("RA without a forwarder")
	}
	wantBrief(t, ask(t, s, "udp", question("www.example.ns.svc.cluster.test.", dns.TypeA)), "NXDOMAIN")
	wantBrief(t, ask(t, s, "udp", question("10-0-0-7.ns.pod.cluster.test.", dns.TypeA)), "NXDOMAIN")
}

func TestNewZoneIsInTheNextAnswer(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	for i := range 50 {
		addr := netip.AddrFrom4([4]byte{10, 9, 9, byte(i)})
		s.SetZone(fakeZone{addr})
		wantBrief(t, ask(t, s, "udp", question("web.ns.svc.cluster.test.", dns.TypeA)), "NOERROR web.ns.svc.cluster.test. A "+addr.String())
	}
}

func TestPodsAreAskedForOnce(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	c := newClock()
	s := start(t, Options{Now: c.Now, PodExists: func(context.Context, string, netip.Addr) (bool, error) { return asked.Add(1) == 1, nil }})
	pod := func(want string) {
		t.Helper()
		wantBrief(t, ask(t, s, "udp", question("10-0-0-7.ns.pod.cluster.test.", dns.TypeA)), want)
	}
	const is = "NOERROR 10-0-0-7.ns.pod.cluster.test. A 10.0.0.7"
	pod(is)
	c.advance(podExists - time.Nanosecond)
	pod(is)
	c.advance(time.Nanosecond)
	pod("NXDOMAIN")
	pod("NXDOMAIN")
	if asked.Load() != 2 {
		t.Errorf("the API was asked %d times, want 2", asked.Load())
	}
}

// TestFullPool has more requests of one client than may wait, half of all: the others are told at once.
func TestFullPool(t *testing.T) {
	t.Parallel()
	f := newFakeForwarder(t)
	f.block = make(chan struct{})
	s := start(t, Options{Forwarder: f, Waiting: 4, Timeout: time.Hour})
	first := make(chan *dns.Msg, 2)
	for _, name := range []string{"www.example.", "target.example."} {
		go func() { first <- ask(t, s, "udp", question(name, dns.TypeA)) }()
	}
	testkit.Await(t, patience, func() error {
		if n := f.resolving(); n != 2 {
			return errors.New("not all are waiting")
		}
		return nil
	})
	for _, network := range []string{"udp", "tcp"} {
		wantBrief(t, ask(t, s, network, question("none.example.", dns.TypeA)), "SERVFAIL")
		wantBrief(t, ask(t, s, network, question("ext.ns.svc.cluster.test.", dns.TypeA)), "NOERROR ext.ns.svc.cluster.test. CNAME target.example.")
		wantBrief(t, ask(t, s, network, question("web.ns.svc.cluster.test.", dns.TypeA)), webAnswer)
	}
	if got := metric(t, s, "endpointd_dns_overloaded_total"); got != 4 {
		t.Errorf("%v requests could not wait, want 4", got)
	}
	close(f.block)
	for range 2 {
		if r := <-first; r.Rcode != dns.RcodeSuccess || len(r.Answer) != 1 {
			t.Errorf("one that waited: %s", brief(r))
		}
	}
}

func TestAuthenticData(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Forwarder: newFakeForwarder(t)})
	m := question("www.example.", dns.TypeA)
	if ask(t, s, "udp", m).AuthenticatedData {
		t.Error("AD for a client that does not ask for it")
	}
	m.AuthenticatedData = true
	if !ask(t, s, "udp", m).AuthenticatedData {
		t.Error("no AD for a client that asks for it")
	}
}
