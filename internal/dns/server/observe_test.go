package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/testkit"
)

func tap(t testing.TB, s *Server, f LogFilter) *Tap {
	t.Helper()
	tap, err := s.Tap(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tap.Close)
	return tap
}

// heard takes what there is.
func heard(tap *Tap) (all []*Exchange) {
	for {
		select {
		case e := <-tap.Exchanges():
			all = append(all, e)
		default:
			return all
		}
	}
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func TestTapsHearWhatFits(t *testing.T) {
	t.Parallel()
	b := newBench(t, Options{Now: newClock().Now, Allow: everybody})
	tests := []struct {
		name   string
		filter LogFilter
		want   int
	}{
		{"all", LogFilter{}, 6},
		{"a name", LogFilter{Suffix: "Web.ns.svc.cluster.test"}, 2},
		{"a domain", LogFilter{Suffix: "cluster.test."}, 4},
		{"the root", LogFilter{Suffix: "."}, 6},
		{"clients", LogFilter{Clients: prefixes("10.1.0.0/16")}, 3},
		{"more clients", LogFilter{Clients: prefixes("10.1.0.0/16", "10.2.0.1/32")}, 6},
		{"both", LogFilter{Clients: prefixes("10.1.0.1/32"), Suffix: "example"}, 1},
	}
	taps := make([]*Tap, len(tests))
	for i := range tests { // all at once
		taps[i] = tap(t, b.s, tests[i].filter)
	}
	put := func() {
		for _, client := range []string{"10.1.0.1", "10.2.0.1"} {
			for _, name := range []string{"WEB.ns.svc.cluster.test.", "xweb.ns.svc.cluster.test.", "www.example."} {
				b.put(client, false, question(name, dns.TypeA))
			}
		}
	}
	put()
	for i, test := range tests {
		if got := heard(taps[i]); len(got) != test.want {
			t.Errorf("%s: %d exchanges, want %d", test.name, len(got), test.want)
		}
		taps[i].Close()
		taps[i].Close()
	}
	put()
	for i, test := range tests {
		if got := heard(taps[i]); len(got) != 0 {
			t.Errorf("%s: %d exchanges after the end", test.name, len(got))
		}
	}
	if b.s.taps.all.Load() != nil {
		t.Error("requests look for taps though there are none")
	}
}

func TestExchangeIsALine(t *testing.T) {
	t.Parallel()
	c := newClock()
	b := newBench(t, Options{Now: c.Now, Allow: everybody})
	heardOf := tap(t, b.s, LogFilter{})
	for _, m := range []*dns.Msg{
		question("web.ns.svc.cluster.test.", dns.TypeA), question("ext.ns.svc.cluster.test.", dns.TypeA), question("no.ns.svc.cluster.test.", dns.TypeA),
		question("web.ns.svc.cluster.test.", dns.TypeAAAA), question("a\\001\\[b.example.", dns.TypeA), question("web.ns.svc.cluster.test.", 1234),
	} {
		b.put("10.1.0.1", false, m)
	}
	b.put("10.1.0.1", true, question("many.ns.svc.cluster.test.", dns.TypeA))
	b.put("2001:db8::1", false, question("many.ns.svc.cluster.test.", dns.TypeA))
	var text strings.Builder
	for _, e := range heard(heardOf) {
		_, rest, _ := strings.Cut(e.String(), "  ") // not in the machine's time zone
		text.WriteString(rest + "\n")
	}
	testkit.Golden(t, "exchanges.golden", []byte(text.String()))
	if len(strings.Fields(ExchangeHead())) != 8 {
		t.Errorf("head: %s", ExchangeHead())
	}
}

func TestTapLeavesOut(t *testing.T) {
	t.Parallel()
	c := newClock()
	b := newBench(t, Options{Now: c.Now, Allow: everybody})
	paced, slow := tap(t, b.s, LogFilter{PerSecond: 5}), tap(t, b.s, LogFilter{PerSecond: maxPerSecond})
	put := func() { b.put("10.1.0.1", false, question("web.ns.svc.cluster.test.", dns.TypeA)) }
	for range 2 * tapLength {
		put()
	}
	if got, omitted := len(heard(paced)), paced.Omitted(); got != 5 || omitted != 2*tapLength-5 {
		t.Errorf("at a rate of 5: %d and %d left out, want 5 and %d", got, omitted, 2*tapLength-5)
	}
	if got, omitted := len(heard(slow)), slow.Omitted(); got != tapLength || omitted != tapLength {
		t.Errorf("nobody takes: %d and %d left out, want %d and %[3]d", got, omitted, tapLength)
	}
	c.advance(time.Second)
	put()
	for _, tap := range []*Tap{paced, slow} {
		if got, omitted := len(heard(tap)), tap.Omitted(); got != 1 || omitted != 0 {
			t.Errorf("later: %d and %d left out, want 1 and none", got, omitted)
		}
	}
}

func TestTapsAreBounded(t *testing.T) {
	t.Parallel()
	b := newBench(t, Options{})
	for _, bad := range []LogFilter{{Suffix: "a..b"}, {PerSecond: -1}, {PerSecond: maxPerSecond + 1}} {
		if _, err := b.s.Tap(bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	for range maxTaps {
		tap(t, b.s, LogFilter{})
	}
	if _, err := b.s.Tap(LogFilter{}); err == nil {
		t.Error("there can be any number")
	}
	if err := b.s.Log(t.Context(), LogFilter{}); err == nil {
		t.Error("the log is one more than there can be")
	}
}

func TestUntappedCostsNothing(t *testing.T) {
	b := newBench(t, Options{})
	tapped := tap(t, b.s, LogFilter{Suffix: "example"})
	w, out := newWorker(b.s, b.s.slow), make([]byte, maxUDPReply)
	packet, err := question("web.ns.svc.cluster.test.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	rq := request{packet: packet, client: netip.MustParseAddrPort("127.0.0.1:5353"), at: time.Now()}
	answer := func() {
		if w.answer(&rq, out) == ready {
			w.finish(&rq)
		}
	}
	if n := testing.AllocsPerRun(100, answer); n != 0 {
		t.Errorf("%v allocations for an answer that nobody wants to hear of", n)
	}
	tapped.Close()
	full := tap(t, b.s, LogFilter{PerSecond: 1})
	answer()
	if n := testing.AllocsPerRun(100, answer); n != 0 || len(full.exchanges) > 2 {
		t.Errorf("%v allocations for an answer that there is no room for, and %d heard", n, len(full.exchanges))
	}
}

// Many listen, come and go while answers are given; the race detector looks on.
func TestTapsComeAndGo(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	stays := tap(t, s, LogFilter{PerSecond: maxPerSecond})
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for range 50 {
				if tap, err := s.Tap(LogFilter{}); err == nil {
					heard(tap)
					tap.Close()
				}
			}
		})
	}
	const questions = 50
	for range questions {
		ask(t, s, "udp", question("web.ns.svc.cluster.test.", dns.TypeA))
	}
	work.Wait()
	if got := len(heard(stays)); got != questions {
		t.Errorf("%d heard, want %d", got, questions)
	}
}

// lines is a log that says when there is something in it.
type lines struct{ c chan string }

func (l lines) Write(p []byte) (int, error) {
	l.c <- string(p)
	return len(p), nil
}

func TestLog(t *testing.T) {
	t.Parallel()
	log := lines{make(chan string, 10)}
	s := start(t, Options{Logger: slog.New(slog.NewJSONHandler(log, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Log(ctx, LogFilter{Suffix: "cluster.test"}) }()
	testkit.Await(t, patience, func() error {
		if s.taps.all.Load() == nil {
			return errors.New("nobody listens yet")
		}
		return nil
	})
	ask(t, s, "udp", question("www.example.", dns.TypeA))
	ask(t, s, "udp", question("Web.ns.svc.cluster.test.", dns.TypeA))
	var got map[string]any
	if err := json.Unmarshal([]byte(<-log.c), &got); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"msg": "query", "name": "Web.ns.svc.cluster.test.", "type": "A", "rcode": "NOERROR", "transport": "udp", "answer": "10.0.0.1", "truncated": false, "omitted": 0.0,
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if s.taps.all.Load() != nil {
		t.Error("it listens on")
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	c := newClock()
	b := newBench(t, Options{Now: c.Now})
	for range 3 {
		b.put("127.0.0.1", false, question("web.ns.svc.cluster.test.", dns.TypeA))
	}
	b.put("127.0.0.1", true, question("no.ns.svc.cluster.test.", dns.TypeNULL))
	b.put("127.0.0.1", false, question("many.ns.svc.cluster.test.", dns.TypeA))
	b.put("192.0.2.1", false, question("many.ns.svc.cluster.test.", dns.TypeA))
	b.s.Programmed(3 * time.Millisecond)
	b.s.Programmed(time.Minute)
	b.s.Programmed(-time.Minute) // clocks differ
	c.advance(90 * time.Second)
	var text bytes.Buffer
	if err := b.s.WriteMetrics(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`endpointd_dns_responses_total{transport="udp",type="A",rcode="NOERROR"} 4`,
		`endpointd_dns_responses_total{transport="udp",type="A",rcode="REFUSED"} 1`,
		`endpointd_dns_responses_total{transport="tcp",type="other",rcode="NXDOMAIN"} 1`,
		`endpointd_dns_truncated_total 1`,
		`endpointd_dns_refused_clients_total 1`,
		`endpointd_dns_snapshot_age_seconds 90`,
		`endpointd_dns_programming_duration_seconds_bucket{le="5e-05"} 1`,
		`endpointd_dns_programming_duration_seconds_bucket{le="0.0025"} 1`,
		`endpointd_dns_programming_duration_seconds_bucket{le="0.005"} 2`,
		`endpointd_dns_programming_duration_seconds_bucket{le="30"} 2`,
		`endpointd_dns_programming_duration_seconds_bucket{le="60"} 3`,
		`endpointd_dns_programming_duration_seconds_bucket{le="+Inf"} 3`,
		`endpointd_dns_programming_duration_seconds_sum 60.003`,
		`endpointd_dns_programming_duration_seconds_count 3`,
		`endpointd_dns_request_duration_seconds_count{path="at_once"} 0`,
		`# TYPE endpointd_dns_request_duration_seconds histogram`,
	} {
		if !strings.Contains(text.String(), want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	m := &metricsText{}
	m.family("x", "gauge", "a\\b\nc")
	m.sample("x", 1, "l", "a\"b\\c\nd")
	if got, want := m.text.String(), "# HELP x a\\\\b\\nc\n# TYPE x gauge\nx{l=\"a\\\"b\\\\c\\nd\"} 1\n"; got != want {
		t.Errorf("escaped as %q, want %q", got, want)
	}
}

func TestLatencyIsCounted(t *testing.T) {
	t.Parallel()
	s, stop := startUntil(t, Options{Forwarder: newFakeForwarder(t)})
	for _, network := range []string{"udp", "tcp"} {
		ask(t, s, network, question("web.ns.svc.cluster.test.", dns.TypeA))
	}
	ask(t, s, "udp", question("www.example.", dns.TypeA))
	ask(t, s, "tcp", question("target.example.", dns.TypeA))
	stop() // what is counted after a response was sent is counted now
	for path, want := range map[string]float64{"at_once": 2, "waited": 2} {
		if got := metric(t, s, `endpointd_dns_request_duration_seconds_count{path="`+path+`"}`); got != want {
			t.Errorf("%s: %v requests, want %v", path, got, want)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	listen := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	for name, o := range map[string]Options{
		"no address":       {Zone: newFakeZone()},
		"no zone":          {Listen: listen},
		"a search domain":  {Listen: listen, Zone: newFakeZone(), Searches: []string{"a..b"}},
		"negative waiting": {Listen: listen, Zone: newFakeZone(), Waiting: -1},
		"a rate":           {Listen: listen, Zone: newFakeZone(), Limits: Limits{PerSecond: maxPerSecond + 1}},
	} {
		if s, err := New(context.Background(), o); err == nil {
			s.Close()
			t.Errorf("%s: taken", name)
		}
	}
}
