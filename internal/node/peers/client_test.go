package peers

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/testkit"
)

// outcomes of all answers, in order.
func outcomes(answers []Answer) string {
	var all []string
	for _, a := range answers {
		all = append(all, a.Peer.Name+" "+a.Outcome.String())
	}
	return strings.Join(all, ", ")
}

func TestAcknowledge(t *testing.T) {
	ca := newAuthority(t)
	two, three := ca.agent(t, "node-2"), ca.agent(t, "node-3")
	c := ca.client(t, nil)
	two.applied.reach("100")
	three.applied.reach("99")
	answers := make(chan []Answer, 1)
	go func() { answers <- c.Acknowledge(t.Context(), []Peer{two.peer, three.peer}, "100") }()
	testkit.Await(t, patient, func() error { // it waits for node-3 alone
		if two.listener.accepted.Load() == 0 || three.listener.accepted.Load() == 0 {
			return fmt.Errorf("not asked")
		}
		return nil
	})
	select {
	case a := <-answers:
		t.Fatalf("node-3 has not applied it: %v", outcomes(a))
	default:
	}
	three.applied.reach("100")
	if got, want := outcomes(<-answers), "node-2 applied, node-3 applied"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := c.Acknowledge(t.Context(), nil, "100"); len(got) != 0 {
		t.Errorf("without other nodes: %v", got)
	}
}

// A question is one round trip: the connection is there, also for many at once.
func TestConnectionsAreKept(t *testing.T) {
	ca := newAuthority(t)
	two := ca.agent(t, "node-2")
	two.applied.reach("7")
	c := ca.client(t, nil)
	nodes := []Peer{two.peer}
	if got := outcomes(c.Acknowledge(t.Context(), nodes, "1")); got != "node-2 applied" {
		t.Fatal(got)
	}
	var asking sync.WaitGroup
	for range 50 {
		asking.Go(func() {
			if got := outcomes(c.Acknowledge(t.Context(), nodes, "8")); got != "node-2 applied" {
				t.Error(got)
			}
		})
	}
	two.applied.reach("8")
	asking.Wait()
	if n := two.listener.accepted.Load(); n != 1 {
		t.Errorf("%d connections were made", n)
	}
}

func TestNodeThatWasRestarted(t *testing.T) {
	ca := newAuthority(t)
	c := ca.client(t, nil)
	port := listen(t)
	for i := range 2 {
		two := ca.start(t, "node-2", lent{port}, ca.node(t, "node-2"), nil)
		two.applied.reach("7")
		if got := c.Acknowledge(t.Context(), []Peer{two.peer}, "7"); got[0].Outcome != Applied {
			t.Errorf("life %d: %v", i, got[0].Err)
		}
		two.stop()
	}
	// Another node has its address now.
	three := ca.start(t, "node-3", lent{port}, ca.node(t, "node-3"), nil)
	three.applied.reach("7")
	if got := c.Acknowledge(t.Context(), []Peer{three.peer}, "7"); got[0].Outcome != Applied {
		t.Error(got[0].Err)
	}
	three.peer.Name = "node-2"
	if got := c.Acknowledge(t.Context(), []Peer{three.peer}, "7"); got[0].Outcome != Foreign {
		t.Errorf("got %v over the connection to node-3", got[0].Outcome)
	}
}

func TestNodesThatDoNotAcknowledge(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	status := func(code int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", code) })
	}
	silent := listen(t) // takes connections, and nobody speaks
	plain := httptest.NewServer(status(http.StatusOK))
	defer plain.Close()
	peer := func(name, address string) Peer {
		at := netip.MustParseAddrPort(address)
		return Peer{Name: name, Addr: at.Addr(), Port: at.Port()}
	}
	strange := stranger.start(t, "other-cluster", listen(t), stranger.node(t, "other-cluster"), nil)
	well := ca.agent(t, "well")
	well.applied.reach("7")
	renamed := ca.agent(t, "other")
	renamed.applied.reach("7")
	renamed.peer.Name = "renamed"

	unknowing := ca.start(t, "kubelet", listen(t), ca.node(t, "kubelet"), status(http.StatusNotFound))
	unwilling := ca.start(t, "kubelet", listen(t), ca.node(t, "kubelet"), status(http.StatusUnauthorized))
	busy := ca.start(t, "busy", listen(t), ca.node(t, "busy"), status(http.StatusTooManyRequests))

	quick := ca.client(t, func(o *Options) { o.ConnectTimeout = 50 * time.Millisecond })
	c := ca.client(t, nil)
	for _, test := range []struct {
		name   string
		client *Client
		peer   Peer
		want   Outcome
		err    string
	}{
		{"it is as it should be", c, well.peer, Applied, ""},
		{"nobody listens", c, peer("gone", reserve(t)), Unreachable, "connection refused"},
		{"nobody answers", quick, peer("silent", silent.Addr().String()), Unreachable, ""},
		{"a kubelet that knows of no such thing", c, unknowing.peer, Foreign, "status 404"},
		{"a kubelet that does not let us", c, unwilling.peer, Foreign, "status 401"},
		{"too many ask", c, busy.peer, Late, "no"},
		{"another cluster's node", c, strange.peer, Foreign, "certificate"},
		{"another node", c, renamed.peer, Foreign, "certificate is valid for other, not renamed"},
		{"no TLS", c, peer("plain", plain.Listener.Addr().String()), Foreign, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := test.client.Acknowledge(t.Context(), []Peer{test.peer}, "7")[0]
			if got.Outcome != test.want || got.Peer != test.peer {
				t.Errorf("got %v (%v), want %v", got.Outcome, got.Err, test.want)
			}
			if (got.Err == nil) != (test.want == Applied) || got.Err != nil && !strings.Contains(got.Err.Error(), test.peer.Name) {
				t.Errorf("the error does not say which node: %v", got.Err)
			}
			if got.Err != nil && !strings.Contains(got.Err.Error(), test.err) {
				t.Errorf("error %v, want %q", got.Err, test.err)
			}
		})
	}
}

// Nobody waits for a node longer than he wants to, and the others' answers are there.
func TestNodeThatIsLate(t *testing.T) {
	ca := newAuthority(t)
	well := ca.agent(t, "well")
	well.applied.reach("7")
	asked := make(chan struct{}, 10)
	never := NewHandler(HandlerOptions{Wait: func(ctx context.Context, _ string) error {
		asked <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}})
	late := ca.start(t, "late", listen(t), ca.node(t, "late"), never)
	nodes := []Peer{well.peer, late.peer}

	c := ca.client(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan []Answer, 1)
	go func() { answers <- c.Acknowledge(ctx, nodes, "7") }()
	<-asked
	testkit.Await(t, patient, func() error {
		if len(c.slots) != 1 {
			return fmt.Errorf("%d questions are under way", len(c.slots))
		}
		return nil
	})
	cancel()
	got := <-answers
	if outcomes(got) != "well applied, late late" {
		t.Errorf("got %s: %v", outcomes(got), got)
	}

	bounded := ca.client(t, func(o *Options) { o.Timeout, o.ConnectTimeout = 300*time.Millisecond, patient })
	if got := bounded.Acknowledge(t.Context(), []Peer{late.peer}, "7")[0]; got.Outcome == Applied || got.Outcome == Foreign {
		t.Errorf("got %v, %v", got.Outcome, got.Err)
	}
}

// It answers not yet each time, and is asked again.
func TestNodeThatNeedsLongerThanItsPatience(t *testing.T) {
	ca := newAuthority(t)
	var slow watermark
	times := make(chan struct{}, 1000)
	two := ca.start(t, "node-2", listen(t), ca.node(t, "node-2"), NewHandler(HandlerOptions{Patience: 10 * time.Millisecond, Wait: func(ctx context.Context, version string) error {
		times <- struct{}{}
		return slow.wait(ctx, version)
	}}))
	answers := make(chan []Answer, 1)
	c := ca.client(t, nil)
	go func() { answers <- c.Acknowledge(t.Context(), []Peer{two.peer}, "7") }()
	for range 3 {
		<-times
	}
	slow.reach("7")
	if got := <-answers; got[0].Outcome != Applied {
		t.Error(got[0].Err)
	}
}

func TestQuestionsAreBounded(t *testing.T) {
	ca := newAuthority(t)
	two := ca.agent(t, "node-2")
	c := ca.client(t, func(o *Options) { o.Concurrency = 1 })
	first, cancel := context.WithCancel(t.Context())
	done := make(chan []Answer, 1)
	go func() { done <- c.Acknowledge(first, []Peer{two.peer}, "7") }()
	testkit.Await(t, patient, func() error {
		if len(c.slots) != 1 {
			return fmt.Errorf("nothing is asked")
		}
		return nil
	})
	over, stop := context.WithCancel(t.Context())
	stop()
	if got := c.Acknowledge(over, []Peer{two.peer, two.peer}, "7"); outcomes(got) != "node-2 late, node-2 late" {
		t.Errorf("got %s", outcomes(got))
	}
	cancel()
	<-done
	two.applied.reach("7")
	if got := c.Acknowledge(t.Context(), []Peer{two.peer, two.peer, two.peer}, "7"); outcomes(got) != "node-2 applied, node-2 applied, node-2 applied" {
		t.Errorf("got %s", outcomes(got))
	}
}

func TestClientNeedsCertificates(t *testing.T) {
	ca := newAuthority(t)
	user := ca.user(t, "somebody")
	for name, config := range map[string]*tls.Config{
		"nothing":        nil,
		"no CA":          {Certificates: user.Certificates},
		"no certificate": {RootCAs: user.RootCAs},
		"trusts anybody": {RootCAs: user.RootCAs, Certificates: user.Certificates, InsecureSkipVerify: true}, //nolint:gosec // it is refused
	} {
		if _, err := New(Options{TLS: config}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// BenchmarkAcknowledge asks nodes that have applied it already, over connections that are there.
func BenchmarkAcknowledge(b *testing.B) {
	for _, n := range []int{1, 10} {
		b.Run(fmt.Sprintf("nodes=%d", n), func(b *testing.B) {
			ca := newAuthority(b)
			var nodes []Peer
			for i := range n {
				g := ca.agent(b, fmt.Sprintf("node-%d", i+2))
				g.applied.reach("7")
				nodes = append(nodes, g.peer)
			}
			c := ca.client(b, nil)
			c.Acknowledge(b.Context(), nodes, "7")
			for b.Loop() {
				if got := c.Acknowledge(b.Context(), nodes, "7"); got[n-1].Outcome != Applied {
					b.Fatal(got[n-1].Err)
				}
			}
		})
	}
}
