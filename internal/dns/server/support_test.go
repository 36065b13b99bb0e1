package server

import (
	"bytes"
	"context"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const patience = 20 * time.Second

// start runs a server with what is not set in o for the test's time.
func start(t testing.TB, o Options) *Server {
	t.Helper()
	s, _ := startUntil(t, o)
	return s
}

// startUntil is start with a way to end it before, which returns when it has ended.
func startUntil(t testing.TB, o Options) (*Server, func()) {
	t.Helper()
	if o.Zone == nil {
		o.Zone = newFakeZone()
	}
	if o.Listen == nil {
		o.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	}
	s, err := New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func question(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg).SetQuestion(name, qtype)
	return m
}

// ask puts a question over a network.
func ask(t testing.TB, s *Server, network string, m *dns.Msg) *dns.Msg {
	t.Helper()
	return askAt(t, s.Addrs()[0].String(), network, m)
}

func askAt(t testing.TB, addr, network string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: patience, UDPSize: dns.MaxMsgSize}
	r, _, err := c.Exchange(m, addr)
	if err != nil {
		t.Fatalf("%s %s: %v", network, m.Question[0].String(), err)
	}
	return r
}

// brief is what a response says: RCODE, TC, and the answer's names and contents.
func brief(r *dns.Msg) string {
	words := []string{dns.RcodeToString[r.Rcode]}
	if r.Truncated {
		words = append(words, "TC")
	}
	for _, rr := range r.Answer {
		content := strings.TrimPrefix(rr.String(), rr.Header().String())
		words = append(words, rr.Header().Name, dns.TypeToString[rr.Header().Rrtype], content)
	}
	return strings.Join(words, " ")
}

func wantBrief(t testing.TB, r *dns.Msg, want string) {
	t.Helper()
	if got := brief(r); got != want {
		t.Errorf("%s: got %q, want %q", r.Question[0].String(), got, want)
	}
}

// metric is the sum of the samples that begin so.
func metric(t testing.TB, s *Server, prefix string) (sum float64) {
	t.Helper()
	var text bytes.Buffer
	if err := s.WriteMetrics(&text); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text.String()) {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			fields := strings.Fields(rest)
			n, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

// A clock stands until it is moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Unix(1_000_000, 0)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
