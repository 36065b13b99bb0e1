package peers

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/testkit"
)

// get asks a server as a user and returns the status code.
func get(t *testing.T, who *tls.Config, g *agent, target string) (int, error) {
	t.Helper()
	config := who.Clone()
	config.ServerName = g.peer.Name
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+g.listener.Addr().String()+target, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return 0, err
	}
	return response.StatusCode, response.Body.Close()
}

func TestOnlyNodesMayAsk(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	g := ca.agent(t, "node-2")
	g.applied.reach("7")
	anonymous := &tls.Config{RootCAs: ca.pool()}
	node := ca.user(t, "system:node:node-1", "system:nodes")
	for _, test := range []struct {
		name   string
		who    *tls.Config
		target string
		code   int
	}{
		{"a node", node, Path + "?resourceVersion=7", 204},
		{"the group alone", ca.user(t, "somebody", "system:nodes"), Path + "?resourceVersion=7", 403},
		{"the name alone", ca.user(t, "system:node:node-1"), Path + "?resourceVersion=7", 403},
		{"administrator", ca.user(t, "admin", "system:masters"), Path + "?resourceVersion=7", 403},
		{"API server", ca.user(t, "endpointd-apiserver", "endpointd:apiservers"), Path + "?resourceVersion=7", 403},
		{"anonymous", anonymous, Path + "?resourceVersion=7", 401},
		{"no version", node, Path, 400},
		{"not a version", node, Path + "?resourceVersion=seven", 400},
		{"zero", node, Path + "?resourceVersion=0", 400},
		{"something else", node, "/endpointd/v1/secrets", 404},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, err := get(t, test.who, g, test.target)
			if err != nil || code != test.code {
				t.Errorf("got %d, %v, want %d", code, err, test.code)
			}
		})
	}
	t.Run("a node of another cluster", func(t *testing.T) {
		other := stranger.user(t, "system:node:node-1", "system:nodes")
		other.RootCAs = ca.pool()
		if code, err := get(t, other, g, Path+"?resourceVersion=7"); err == nil {
			t.Errorf("got %d", code)
		}
	})
	t.Run("without TLS", func(t *testing.T) {
		request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, Path, http.NoBody)
		answer := record{}
		NewHandler(HandlerOptions{Wait: g.applied.wait}).ServeHTTP(&answer, request)
		if answer.code != 401 {
			t.Errorf("got %d", answer.code)
		}
	})
}

// record is a http.ResponseWriter that keeps the code.
type record struct{ code int }

func (*record) Header() http.Header            { return http.Header{} }
func (*record) Write(text []byte) (int, error) { return len(text), nil }
func (r *record) WriteHeader(code int)         { r.code = code }

func TestQuestionsThatWaitAreBounded(t *testing.T) {
	ca := newAuthority(t)
	var applied watermark
	waiting := make(chan struct{}, 10)
	left := make(chan struct{}, 10)
	g := ca.start(t, "node-2", listen(t), ca.node(t, "node-2"), NewHandler(HandlerOptions{Waiters: 1, Patience: patient, Wait: func(ctx context.Context, version string) error {
		waiting <- struct{}{}
		defer func() { left <- struct{}{} }()
		return applied.wait(ctx, version)
	}}))
	ctx, cancel := context.WithCancel(t.Context())
	c := ca.client(t, nil)
	done := make(chan []Answer, 1)
	go func() { done <- c.Acknowledge(ctx, []Peer{g.peer}, "7") }()
	<-waiting
	node := ca.user(t, "system:node:node-3", "system:nodes")
	if code, err := get(t, node, g, Path+"?resourceVersion=7"); err != nil || code != 429 {
		t.Errorf("got %d, %v", code, err)
	}
	cancel() // who does not wait any more takes no place
	<-done
	<-left
	applied.reach("7")
	testkit.Await(t, patient, func() error {
		if code, err := get(t, node, g, Path+"?resourceVersion=7"); err != nil || code != 204 {
			return fmt.Errorf("got %d, %w", code, err)
		}
		return nil
	})
}

// A node that ends does not wait for what it will never apply.
func TestServerEndsWhileQuestionsWait(t *testing.T) {
	ca := newAuthority(t)
	waiting := make(chan struct{}, 10)
	var applied watermark
	g := ca.start(t, "node-2", listen(t), ca.node(t, "node-2"), NewHandler(HandlerOptions{Patience: time.Hour, Wait: func(ctx context.Context, version string) error {
		waiting <- struct{}{}
		return applied.wait(ctx, version)
	}}))
	done := make(chan []Answer, 1)
	c := ca.client(t, nil)
	go func() { done <- c.Acknowledge(t.Context(), []Peer{g.peer}, "7") }()
	<-waiting
	g.stop()
	if got := (<-done)[0]; got.Outcome != Late && got.Outcome != Unreachable {
		t.Errorf("got %v, %v", got.Outcome, got.Err)
	}
}
