package server

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// logged are the lines that were logged, and empties the log.
func logged(t testing.TB, log *bytes.Buffer) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(log.String()) {
		var l map[string]any
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	log.Reset()
	return lines
}

func TestQueryLog(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	c := newClock()
	b := newBench(t, Options{Now: c.Now, Allow: everybody, Logger: slog.New(slog.NewJSONHandler(&log, nil))})
	put := func(client, name string) { b.put(client, false, question(name, dns.TypeA)) }
	all := func() {
		for _, client := range []string{"10.1.0.1", "10.2.0.1"} {
			for _, name := range []string{"WEB.ns.svc.cluster.test.", "xweb.ns.svc.cluster.test.", "www.example."} {
				put(client, name)
			}
		}
	}
	for _, s := range []struct {
		name   string
		filter *LogFilter
		want   int
	}{
		{"off", nil, 0},
		{"all", &LogFilter{}, 6},
		{"a name", &LogFilter{Suffix: "Web.ns.svc.cluster.test"}, 2},
		{"a domain", &LogFilter{Suffix: "cluster.test."}, 4},
		{"the root", &LogFilter{Suffix: "."}, 6},
		{"clients", &LogFilter{Client: netip.MustParsePrefix("10.1.0.0/16")}, 3},
		{"both", &LogFilter{Client: netip.MustParsePrefix("10.1.0.1/32"), Suffix: "example"}, 1},
		{"off again", nil, 0},
	} {
		if err := b.s.SetLog(s.filter); err != nil {
			t.Fatal(err)
		}
		all()
		if got := logged(t, &log); len(got) != s.want {
			t.Errorf("%s: %d lines, want %d", s.name, len(got), s.want)
		}
	}
	if err := b.s.SetLog(&LogFilter{PerSecond: 5}); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		put("10.1.0.1", "web.ns.svc.cluster.test.")
	}
	if n := len(logged(t, &log)); n != 5 {
		t.Errorf("%d lines in a second, want 5", n)
	}
	c.advance(time.Second)
	put("10.1.0.1", "web.ns.svc.cluster.test.")
	got := logged(t, &log)
	if len(got) != 1 || got[0]["omitted"] != 95.0 || got[0]["name"] != "web.ns.svc.cluster.test." || got[0]["type"] != "A" ||
		got[0]["rcode"] != "NOERROR" || got[0]["client"] != "10.1.0.1:5353" || got[0]["transport"] != "udp" {
		t.Errorf("logged %v", got)
	}
	for _, bad := range []*LogFilter{{Suffix: "a..b"}, {PerSecond: -1}} {
		if b.s.SetLog(bad) == nil {
			t.Errorf("%+v is taken", bad)
		}
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
		`endpointd_dns_programming_duration_seconds_bucket{le="5"} 2`,
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
