package forward

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

const soaLine = "example. 900 IN SOA ns.example. root.example. 1 2 3 4 60"

func TestParseUpstream(t *testing.T) {
	good := map[string]string{ // text → what it is
		"10.0.0.53":            "10.0.0.53:53",
		"10.0.0.53:5353":       "10.0.0.53:5353",
		"fd00::53":             "[fd00::53]:53",
		"[fd00::53]":           "[fd00::53]:53",
		"[::1]:5353":           "[::1]:5353",
		"fe80::1%eth0":         "[fe80::1%eth0]:53",
		"::ffff:10.0.0.1":      "10.0.0.1:53",
		"tls://1.1.1.1":        "tls://1.1.1.1:853",
		"tls://1.1.1.1#one.dn": "tls://1.1.1.1:853#one.dn",
		"tls://[fd00::1]:8853#cloudflare-dns.com": "tls://[fd00::1]:8853#cloudflare-dns.com",
	}
	for text, expected := range good {
		u, err := ParseUpstream(text)
		if err != nil || u.String() != expected {
			t.Errorf("%s is %s, %v; want %s", text, u, err, expected)
		}
		if again, err := ParseUpstream(u.String()); err != nil || again != u {
			t.Errorf("%s read again is %s, %v", u, again, err)
		}
	}
	bad := map[string]string{ // text → what the error must say
		"":                        "want an IP address",
		"dns.google":              "host name would need DNS",
		"https://1.1.1.1":         "https:// is not known",
		"1.1.1.1#name":            "tls:// before it",
		"tls://1.1.1.1#":          "name in its certificate",
		"tls://1.1.1.1#a b":       "name in its certificate",
		"0.0.0.0":                 "no address of a server",
		"224.0.0.251:5353":        "no address of a server",
		"10.0.0.1:0":              "port 0",
		"10.0.0.1:99999":          "want an IP address",
		"tls://dns.google#google": "host name would need DNS",
	}
	for text, expected := range bad {
		if u, err := ParseUpstream(text); err == nil || !strings.Contains(err.Error(), expected) {
			t.Errorf("%q is %s, %v; want an error with %q", text, u, err, expected)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	up := func(text string) []Upstream {
		u, err := ParseUpstream(text)
		if err != nil {
			t.Fatal(err)
		}
		return []Upstream{u}
	}
	own := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("0.0.0.0:5353")}
	cases := []struct {
		name, want string
		upstreams  map[string][]Upstream
	}{
		{"our own address", "10.96.0.10:53 of . is this server's own address", map[string][]Upstream{".": up("10.96.0.10")}},
		{"loopback where we listen on all", "own address 0.0.0.0:5353", map[string][]Upstream{"corp.test": up("127.0.0.1:5353")}},
		{"a domain twice", "two lists", map[string][]Upstream{"corp.test": up("10.0.0.1"), "CORP.test.": up("10.0.0.1")}},
		{"no domain", `domain "a..b"`, map[string][]Upstream{"a..b": up("10.0.0.1")}},
	}
	for _, c := range cases {
		_, err := New(Options{Upstreams: c.upstreams, Own: own, Logger: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.want)
		}
	}
	if f, err := New(Options{Upstreams: map[string][]Upstream{".": up("10.96.0.10:54")}, Own: own, Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Errorf("another port of ours: %v", err)
	} else {
		end(f)
	}
}

func TestAnswersAgeInTheCache(t *testing.T) {
	up := newFake(t, records(t, "www.example. 100 IN CNAME x.example.", "x.example. 60 IN A 10.0.0.1"))
	c := new(clock)
	f := start(t, Options{Clock: c.now}, up.upstream())
	q := ask(t, "WWW.example.", dns.TypeA)
	want(t, f, q, "WWW.example. 100 IN CNAME x.example.", "x.example. 60 IN A 10.0.0.1")
	c.pass(59900 * time.Millisecond)
	want(t, f, ask(t, "www.EXAMPLE.", dns.TypeA), "www.EXAMPLE. 41 IN CNAME x.EXAMPLE.", "x.EXAMPLE. 1 IN A 10.0.0.1")
	if n := up.udp.Load(); n != 1 {
		t.Errorf("the upstream was asked %d times, want 1", n)
	}
	c.pass(100 * time.Millisecond)
	want(t, f, q, "WWW.example. 100 IN CNAME x.example.", "x.example. 60 IN A 10.0.0.1")
	if n := up.udp.Load(); n != 2 {
		t.Errorf("the upstream was asked %d times, want 2", n)
	}
}

func TestDOAndCDAreOtherQuestions(t *testing.T) {
	var mu sync.Mutex
	var got []string
	up := newFake(t, nil)
	up.say(func(r *dns.Msg) *dns.Msg {
		mu.Lock()
		defer mu.Unlock()
		line := "RD"
		for _, flag := range []struct {
			name string
			set  bool
		}{{"AD", r.AuthenticatedData}, {"CD", r.CheckingDisabled}, {"DO", r.IsEdns0().Do()}} {
			if flag.set {
				line += " " + flag.name
			}
		}
		got = append(got, line)
		m := records(t, "www.example. 60 IN A 10.0.0.1")(r)
		m.AuthenticatedData = true
		return m
	})
	f := start(t, Options{}, up.upstream())
	for range 2 {
		for _, q := range []*wire.Query{
			ask(t, "www.example.", dns.TypeA), ask(t, "www.example.", dns.TypeA, withDNSSEC),
			ask(t, "www.example.", dns.TypeA, func(m *dns.Msg) { m.CheckingDisabled = true }),
		} {
			if a := resolve(t, f, q); !a.AuthenticData() {
				t.Error("AD of the upstream is lost")
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if text := strings.Join(got, ", "); text != "RD AD, RD AD DO, RD AD CD" {
		t.Errorf("the upstream was asked with %s", text)
	}
}

func TestNegativeAnswers(t *testing.T) {
	const expected = "authority: example. 60 IN SOA ns.example. root.example. 1 2 3 4 60"
	cases := []struct {
		name  string
		tell  teller
		want  []string
		asked int64 // in 3 questions, the last one 60 s later
	}{
		{"NXDOMAIN", negative(t, dns.RcodeNameError, soaLine), []string{"NXDOMAIN", expected}, 2},
		{"NODATA", negative(t, dns.RcodeSuccess, soaLine), []string{expected}, 2},
		{"NXDOMAIN without SOA", negative(t, dns.RcodeNameError), []string{"NXDOMAIN"}, 3},
		{"NODATA without SOA", negative(t, dns.RcodeSuccess), nil, 3},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			up := newFake(t, c.tell)
			time := new(clock)
			f := start(t, Options{Clock: time.now}, up.upstream())
			q := ask(t, "www.example.", dns.TypeA)
			want(t, f, q, c.want...)
			resolve(t, f, q)
			time.pass(60e9)
			want(t, f, q, c.want...)
			if n := up.udp.Load(); n != c.asked {
				t.Errorf("the upstream was asked %d times, want %d", n, c.asked)
			}
		})
	}
}

func TestFailuresAreRememberedShortly(t *testing.T) {
	up := newFake(t, negative(t, dns.RcodeServerFailure))
	c := new(clock)
	f := start(t, Options{Clock: c.now}, up.upstream())
	q := ask(t, "www.example.", dns.TypeA)
	for range 3 {
		want(t, f, q, "SERVFAIL")
	}
	if n := up.udp.Load(); n != 1 {
		t.Errorf("the upstream was asked %d times within 5 s, want 1", n)
	}
	up.say(records(t, "www.example. 60 IN A 10.0.0.1"))
	c.pass(failureTTL)
	want(t, f, q, "www.example. 60 IN A 10.0.0.1")
	if status := f.Upstreams()[0]; !status.Healthy || status.Metrics.Errors.Load() != 1 {
		t.Errorf("an upstream that says SERVFAIL is there: healthy %v, errors %d", status.Healthy, status.Metrics.Errors.Load())
	}
}

func TestARefusalLeadsToTheNext(t *testing.T) {
	first, second := newFake(t, negative(t, dns.RcodeRefused)), newFake(t, records(t, "www.example. 60 IN A 10.0.0.1"))
	f := start(t, Options{}, first.upstream(), second.upstream())
	f.upstreams[1].rtt.Store(int64(time.Second))
	if f.upstreams[0].Upstream != first.upstream() {
		f.upstreams[0].rtt.Store(int64(time.Second))
		f.upstreams[1].rtt.Store(0)
	}
	want(t, f, ask(t, "www.example.", dns.TypeA), "www.example. 60 IN A 10.0.0.1")
}

func TestStaleWhenDown(t *testing.T) {
	up := newFake(t, records(t, "www.example. 60 IN A 10.0.0.1"))
	c := new(clock)
	f := start(t, Options{Clock: c.now}, up.upstream())
	q := ask(t, "www.example.", dns.TypeA)
	resolve(t, f, q)
	up.say(negative(t, dns.RcodeServerFailure))
	c.pass(time.Minute)
	want(t, f, q, "www.example. 30 IN A 10.0.0.1")
	asked := up.udp.Load()
	for range 3 { // it is excused now
		if _, ok := f.Lookup(q, c.now()); !ok {
			t.Fatal("what just could not be refreshed is not found")
		}
		want(t, f, q, "www.example. 30 IN A 10.0.0.1")
	}
	if n := up.udp.Load(); n != asked {
		t.Errorf("the upstream was asked %d times more within 5 s", n-asked)
	}
	c.pass(failureTTL)
	if _, ok := f.Lookup(q, c.now()); ok {
		t.Error("5 s later nobody looks whether the upstream is back")
	}
	want(t, f, q, "www.example. 30 IN A 10.0.0.1")
	if n := f.Metrics().Stale.Load(); n < 5 {
		t.Errorf("%d stale answers are counted, want at least 5", n)
	}
	c.pass(time.Hour)
	want(t, f, q, "SERVFAIL")
	up.say(records(t, "www.example. 60 IN A 10.0.0.2"))
	c.pass(failureTTL)
	want(t, f, q, "www.example. 60 IN A 10.0.0.2")
}

func TestStaleWhenSlow(t *testing.T) {
	release := make(chan struct{})
	up := newFake(t, records(t, "www.example. 60 IN A 10.0.0.1"))
	c := new(clock)
	f := start(t, Options{Clock: c.now, StaleWait: time.Millisecond}, up.upstream())
	q := ask(t, "www.example.", dns.TypeA)
	resolve(t, f, q)
	up.say(func(r *dns.Msg) *dns.Msg {
		<-release
		return records(t, "www.example. 60 IN A 10.0.0.2")(r)
	})
	c.pass(time.Minute)
	want(t, f, q, "www.example. 30 IN A 10.0.0.1")
	close(release)
	await(t, "the late answer is not in the cache", func() bool {
		a, ok := f.Lookup(q, c.now())
		return ok && !a.Stale(c.now())
	})
	want(t, f, q, "www.example. 60 IN A 10.0.0.2")
}

func TestEqualQuestionsFlyOnce(t *testing.T) {
	release := make(chan struct{})
	up := newFake(t, func(r *dns.Msg) *dns.Msg {
		<-release
		return records(t, "www.example. 60 IN A 10.0.0.1")(r)
	})
	f := start(t, Options{MaxInFlight: 1}, up.upstream())
	const clients = 50
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			a, err := f.Resolve(t.Context(), ask(t, "www.example.", dns.TypeA))
			if err != nil || a.RCode() != dns.RcodeSuccess || a.counts[0] != 1 {
				t.Errorf("%v, %v", a, err)
			}
		})
	}
	await(t, "not all wait for the flight", func() bool { return f.Metrics().Joined.Load() == clients-1 })
	if _, err := f.Resolve(t.Context(), ask(t, "other.example.", dns.TypeA)); !errors.Is(err, ErrBusy) {
		t.Errorf("a second question with room for one: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Resolve(ctx, ask(t, "www.example.", dns.TypeA)); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that is gone: %v", err)
	}
	close(release)
	wg.Wait()
	if n := f.upstreams[0].metrics.Questions.Load(); n != 1 {
		t.Errorf("the upstream got %d questions from %d clients", n, clients)
	}
}

func TestPopularAnswersAreRefreshedInTime(t *testing.T) {
	up := newFake(t, records(t, "www.example. 100 IN A 10.0.0.1"))
	c := new(clock)
	f := start(t, Options{Clock: c.now}, up.upstream())
	q := ask(t, "www.example.", dns.TypeA)
	resolve(t, f, q)
	c.pass(91 * time.Second)
	for range 2 {
		want(t, f, q, "www.example. 9 IN A 10.0.0.1")
	}
	if n := f.Metrics().Prefetch.Load(); n != 0 {
		t.Errorf("%d questions for what was found twice, want none", n)
	}
	up.say(records(t, "www.example. 100 IN A 10.0.0.2"))
	for range 5 {
		f.Lookup(q, c.now())
	}
	await(t, "the new answer is not in the cache", func() bool {
		a, ok := f.Lookup(q, c.now())
		return ok && a.at.Equal(c.now())
	})
	want(t, f, q, "www.example. 100 IN A 10.0.0.2")
	if n, asked := f.Metrics().Prefetch.Load(), up.udp.Load(); n != 1 || asked != 2 {
		t.Errorf("%d prefetches, %d questions; want 1 and 2", n, asked)
	}
}

func TestARefreshThatFailsIsTriedOnce(t *testing.T) {
	up := newFake(t, records(t, "www.example. 100 IN A 10.0.0.1"))
	c := new(clock)
	f := start(t, Options{Clock: c.now}, up.upstream())
	q := ask(t, "www.example.", dns.TypeA)
	resolve(t, f, q)
	up.say(negative(t, dns.RcodeServerFailure))
	c.pass(95 * time.Second)
	for range 3 {
		for range 10 {
			want(t, f, q, "www.example. 5 IN A 10.0.0.1")
		}
		await(t, "the refresh does not end", func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return len(f.flights) == 0
		})
	}
	if n := up.udp.Load(); n != 2 {
		t.Errorf("%d questions, want the first one and one refresh", n)
	}
}

func TestTheLeastTTL(t *testing.T) {
	up := newFake(t, records(t, "www.example. 0 IN A 10.0.0.1"))
	q := ask(t, "www.example.", dns.TypeA)
	none, some := start(t, Options{}, up.upstream()), start(t, Options{MinTTL: 5 * time.Second}, up.upstream())
	for range 3 {
		want(t, none, q, "www.example. 0 IN A 10.0.0.1")
	}
	if n := up.udp.Swap(0); n != 3 {
		t.Errorf("with TTL 0 the upstream was asked %d times, want 3", n)
	}
	c := new(clock)
	some.o.Clock = c.now
	for range 3 {
		want(t, some, q, "www.example. 5 IN A 10.0.0.1")
	}
	if n := up.udp.Load(); n != 1 {
		t.Errorf("with a least TTL the upstream was asked %d times, want 1", n)
	}
	if entries, bytes := some.Cached(); entries != 1 || bytes == 0 {
		t.Errorf("%d entries of %d bytes are cached, want one", entries, bytes)
	}
}

func TestStubDomains(t *testing.T) {
	all, corp, dev := newFake(t, records(t, "x. 60 IN A 10.0.0.1")), newFake(t, nil), newFake(t, nil)
	for up, addr := range map[*fake]string{all: "10.0.0.1", corp: "10.0.0.2", dev: "10.0.0.3"} {
		up.say(func(r *dns.Msg) *dns.Msg { return records(t, r.Question[0].Name+" 60 IN A "+addr)(r) })
	}
	f := start(t, Options{Upstreams: map[string][]Upstream{
		".": {all.upstream()}, "corp.test": {corp.upstream()}, "Dev.Corp.test.": {dev.upstream()},
	}})
	for name, addr := range map[string]string{
		"corp.test.": "10.0.0.2", "a.CORP.test.": "10.0.0.2", "a.b.dev.corp.test.": "10.0.0.3", "xcorp.test.": "10.0.0.1", "test.": "10.0.0.1", ".": "10.0.0.1",
	} {
		want(t, f, ask(t, name, dns.TypeA), name+" 60 IN A "+addr)
	}
	only := start(t, Options{Upstreams: map[string][]Upstream{"corp.test": {corp.upstream()}}})
	want(t, only, ask(t, "example.", dns.TypeA), "REFUSED")
	want(t, f, ask(t, "example.", dns.TypeAXFR), "REFUSED")
	if a, err := f.Resolve(t.Context(), new(wire.Query)); err != nil || a.RCode() != dns.RcodeRefused {
		t.Errorf("no question at all: %v, %v", a, err)
	}
	closed := start(t, Options{Upstreams: map[string][]Upstream{".": nil, "corp.test": {corp.upstream()}, "none.corp.test": nil}})
	for _, name := range []string{"example.", "com.", "a.none.corp.test."} {
		want(t, closed, ask(t, name, dns.TypeA), "NXDOMAIN")
	}
	want(t, closed, ask(t, ".", dns.TypeNS))
	want(t, closed, ask(t, "a.corp.test.", dns.TypeA), "a.corp.test. 60 IN A 10.0.0.2")
	want(t, f, ask(t, "version.bind.", dns.TypeTXT, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), "REFUSED")
}

func TestLoopsAreSeen(t *testing.T) {
	good := newFake(t, records(t, "www.example. 60 IN A 10.0.0.1"))
	loop := newFake(t, silence)
	var log bytes.Buffer
	var mu sync.Mutex
	var found []Upstream
	f := start(t, Options{
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Loop: func(u Upstream) {
			mu.Lock()
			defer mu.Unlock()
			found = append(found, u)
		},
	}, loop.upstream(), good.upstream())
	loop.say(func(r *dns.Msg) *dns.Msg { // it asks us
		q := new(wire.Query)
		packet, _ := r.Pack()
		q.Parse(packet)
		if f.IsLoopProbe(q.Name) {
			return new(dns.Msg).SetRcode(r, dns.RcodeRefused)
		}
		return records(t, "www.example. 60 IN A 6.6.6.6")(r)
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	await(t, "the loop is not seen", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(found) == 1 && found[0] == loop.upstream()
	})
	for _, status := range f.Upstreams() {
		if status.Loops != (status.Upstream == loop.upstream()) {
			t.Errorf("%s loops: %v", status.Upstream, status.Loops)
		}
	}
	want(t, f, ask(t, "www.example.", dns.TypeA), "www.example. 60 IN A 10.0.0.1")
	if f.IsLoopProbe([]byte("\x20"+strings.Repeat("0", loopRandom)+loopLabels)) || f.IsLoopProbe([]byte{0}) {
		t.Error("a name that was not sent is taken for a probe")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if text := log.String(); strings.Count(text, "leads back to this server") != 1 || !strings.Contains(text, loop.addr.String()) {
		t.Errorf("the log does not say once which upstream it is: %s", text)
	}
	if _, err := f.Resolve(t.Context(), ask(t, "after.example.", dns.TypeA)); !errors.Is(err, ErrClosed) {
		t.Errorf("a question after the end: %v", err)
	}
}
