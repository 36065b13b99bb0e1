package server

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A bench has a server whose sockets nobody reads, to put packets to its workers as if from any client.
type bench struct {
	t testing.TB
	s *Server
	w *worker
}

func newBench(t testing.TB, o Options) *bench {
	t.Helper()
	o.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	o.Sockets = 1
	if o.Zone == nil {
		o.Zone = newFakeZone()
	}
	s, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return &bench{t, s, newWorker(s, s.slow)}
}

// put returns the response, nil if there is none.
func (b *bench) put(client string, tcp bool, m *dns.Msg) *dns.Msg {
	b.t.Helper()
	rq := &request{packet: pack(b.t, m), client: netip.AddrPortFrom(netip.MustParseAddr(client), 5353), tcp: tcp, at: b.s.o.Now()}
	if b.w.answer(rq, make([]byte, maxUDPReply)) == drop {
		return nil
	}
	r := new(dns.Msg)
	if err := r.Unpack(b.w.finish(rq)); err != nil {
		b.t.Fatal(err)
	}
	return r
}

func everybody(netip.Addr) bool { return true }

func TestWhoMayAsk(t *testing.T) {
	t.Parallel()
	pods := netip.MustParsePrefix("10.1.0.0/16")
	web := question("web.ns.svc.cluster.test.", dns.TypeA)
	for _, c := range []struct {
		client string
		allow  func(netip.Addr) bool
		silent bool
		want   string
	}{
		{"127.0.0.1", nil, false, webAnswer},
		{"::1", nil, false, webAnswer},
		{"192.0.2.1", nil, false, "REFUSED"},
		{"192.0.2.1", nil, true, ""},
		{"10.1.2.3", pods.Contains, true, webAnswer},
		{"127.0.0.1", pods.Contains, false, "REFUSED"},
	} {
		b := newBench(t, Options{Allow: c.allow, DropOthers: c.silent})
		for _, tcp := range []bool{false, true} {
			got := ""
			if r := b.put(c.client, tcp, web); r != nil {
				got = brief(r)
			}
			if got != c.want {
				t.Errorf("%s: got %q, want %q", c.client, got, c.want)
			}
		}
	}
}

// TestOthersByTCP refuses the first request of somebody who may not ask, and closes the connection.
func TestOthersByTCP(t *testing.T) {
	t.Parallel()
	for _, silent := range []bool{true, false} {
		s := start(t, Options{Allow: func(netip.Addr) bool { return false }, DropOthers: silent})
		c := connect(t, s)
		if _, err := c.Write(frame(t, question("web.ns.svc.cluster.test.", dns.TypeA))); err != nil {
			t.Fatal(err)
		}
		if !silent {
			r, err := (&dns.Conn{Conn: c}).ReadMsg()
			if err != nil {
				t.Fatal(err)
			}
			wantBrief(t, r, "REFUSED")
		}
		wantClosed(t, c)
	}
}

// count puts a question so often, and returns how many answers, empty ones with TC, and nothing there were.
func (b *bench) count(client string, times int, m *dns.Msg) (answered, slipped, silent int) {
	for range times {
		switch r := b.put(client, false, m); {
		case r == nil:
			silent++
		case r.Truncated && len(r.Answer) == 0:
			slipped++
		default:
			answered++
		}
	}
	return answered, slipped, silent
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	c := newClock()
	b := newBench(t, Options{Now: c.Now, Allow: func(a netip.Addr) bool { return a != netip.MustParseAddr("203.0.113.1") }, Limits: Limits{
		PerSecond: 10, Burst: 20, Own: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, OwnPerSecond: 100,
	}})
	web := question("web.ns.svc.cluster.test.", dns.TypeA)
	for _, step := range []struct {
		client                    string
		wait                      time.Duration
		times                     int
		answered, slipped, silent int
	}{
		{"192.0.2.1", 0, 30, 20, 5, 5},
		{"192.0.2.200", 0, 10, 0, 5, 5}, // of the same prefix
		{"192.0.3.1", 0, 10, 10, 0, 0},
		{"192.0.2.1", 500 * time.Millisecond, 9, 5, 2, 2},
		{"192.0.2.1", time.Hour, 20, 20, 0, 0},
		{"2001:db8::1", 0, 24, 20, 2, 2},
		{"2001:db8:0:ff::1", 0, 2, 0, 1, 1},
		{"2001:db8:0:100::1", 0, 2, 2, 0, 0},
		{"10.1.0.1", 0, 102, 100, 1, 1},
		{"10.1.0.2", 0, 100, 100, 0, 0}, // own ones by address
		{"127.0.0.1", 0, 1000, 1000, 0, 0},
		{"203.0.113.1", 0, 30, 20, 0, 10}, // what is refused is limited, and does not slip
	} {
		c.advance(step.wait)
		answered, slipped, silent := b.count(step.client, step.times, web)
		if answered != step.answered || slipped != step.slipped || silent != step.silent {
			t.Errorf("%s: %d answered, %d slipped, %d silent; want %d, %d, %d",
				step.client, answered, slipped, silent, step.answered, step.slipped, step.silent)
		}
	}
	if r := b.put("192.0.2.1", true, web); r == nil || r.Truncated {
		t.Error("TCP is limited")
	}
}

// TestLimiterIsBounded has more clients than the table has places: what floods is limited all the same, and nobody else for long.
func TestLimiterIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	l := newLimiter(Limits{PerSecond: 100, Burst: 100}, now)
	flood := netip.MustParseAddr("198.51.100.1")
	passed, refused := 0, 0
	for i := range 1 << 18 {
		if l.over(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now.Add(time.Duration(i)*time.Microsecond)) {
			refused++
		}
		if !l.over(flood, now.Add(time.Duration(i)*time.Microsecond)) {
			passed++
		}
	}
	// A quarter of a second: its burst, 26 more, and what it wins when the table forgets it.
	if passed > 300 || passed < 100 {
		t.Errorf("%d requests of a flood passed", passed)
	}
	// 256 clients of one prefix each asked once: their prefix is over after 100.
	if refused > 1<<18*156/256 {
		t.Errorf("%d of %d requests of others did not pass", refused, 1<<18)
	}
	if len(l.table) != limiterSets {
		t.Errorf("the table has %d sets", len(l.table))
	}
}

// withCookie is a question with a cookie, in hexadecimal digits.
func withCookie(cookie string) *dns.Msg {
	m := question("web.ns.svc.cluster.test.", dns.TypeA)
	m.SetEdns0(1232, false)
	m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: cookie}}
	return m
}

func cookieOf(t testing.TB, r *dns.Msg) string {
	t.Helper()
	for _, o := range r.IsEdns0().Option {
		if c, ok := o.(*dns.EDNS0_COOKIE); ok {
			return c.Cookie
		}
	}
	t.Fatal("the response has no cookie")
	return ""
}

func TestCookies(t *testing.T) {
	t.Parallel()
	c := newClock()
	b := newBench(t, Options{Now: c.Now, Allow: everybody, Limits: Limits{PerSecond: 1, Burst: 1, Slip: -1}})
	const mine, client = "0102030405060708", "192.0.2.1"
	full := cookieOf(t, b.put(client, false, withCookie(mine)))
	if len(full) != 32 || full[:16] != mine {
		t.Fatalf("cookie %s", full)
	}
	wantPassed := func(why, client, cookie string, want bool) {
		t.Helper()
		b.put(client, false, withCookie(mine)) // the second in a second is over the limit
		if got := b.put(client, false, withCookie(cookie)) != nil; got != want {
			t.Errorf("%s: passed %v", why, got)
		}
	}
	wantPassed("ours", client, full, true)
	wantPassed("of another client", "192.0.2.2", full, false)
	wantPassed("with another client cookie", client, "ff"+full[2:], false)
	wantPassed("changed", client, full[:30]+fmt.Sprintf("%02x", unhex(t, full[30:])[0]^1), false)
	wantPassed("longer than ours", client, full+"0102030405060708", false)
	c.advance(time.Hour)
	wantPassed("of the period before", client, full, true)
	newer := cookieOf(t, b.put(client, false, withCookie(full)))
	if newer == full {
		t.Error("the cookie did not change in an hour")
	}
	c.advance(time.Hour)
	wantPassed("of two periods before", client, full, false)
	wantPassed("the newer one", client, newer, true)
	c.advance(10 * time.Hour)
	wantPassed("of long ago", client, newer, false)
	if r := b.put(client, true, withCookie(mine[:14])); r.Rcode != dns.RcodeFormatError {
		t.Errorf("a cookie of 7 octets: %s", brief(r))
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestAllocations holds what is answered at once to none.
func TestAllocations(t *testing.T) {
	f := newFakeForwarder(t)
	b := newBench(t, Options{Allow: everybody, Limits: Limits{PerSecond: -1}, Forwarder: f, Zone: newFakeZone()})
	cookie := cookieOf(t, b.put("192.0.2.1", false, withCookie("0102030405060708")))
	for name, m := range map[string]*dns.Msg{
		"an address": question("web.ns.svc.cluster.test.", dns.TypeA),
		"many":       question("many.ns.svc.cluster.test.", dns.TypeA),
		"a cookie":   withCookie(cookie),
		"NXDOMAIN":   question("web.other.cluster.test.", dns.TypeSRV),
		"localhost":  question("localhost.", dns.TypeA),
		"refused":    question("cluster.test.", dns.TypeAXFR),
	} {
		rq := &request{packet: pack(t, m), client: netip.MustParseAddrPort("192.0.2.1:53"), at: time.Now()}
		out := make([]byte, maxUDPReply)
		allocs := testing.AllocsPerRun(1000, func() {
			if b.w.answer(rq, out) == ready {
				b.w.finish(rq)
			}
		})
		if allocs > 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}
