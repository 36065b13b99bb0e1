package peers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Peer is a node to ask.
type Peer struct {
	Name string
	Addr netip.Addr
	Port uint16 // of its HTTPS API; zero = 10250
}

const defaultPort = 10250

// Outcome is what came of a question.
type Outcome uint8

// The Outcomes.
const (
	Applied     Outcome = iota // its data planes have it
	Late                       // it did not say so in time
	Unreachable                // nobody could be asked
	Foreign                    // who is there is not this node, is none of ours, or does not let us ask
)

func (o Outcome) String() string {
	return [...]string{"applied", "late", "unreachable", "foreign"}[o]
}

// Answer is one node's. Err says why Outcome is not Applied.
type Answer struct {
	Peer    Peer
	Outcome Outcome
	Err     error
}

// Options of a Client. TLS is needed.
type Options struct {
	// TLS is how this node calls the API: its certificate, and the CA of the cluster, which has signed those of the other nodes.
	TLS *tls.Config
	// Timeout bounds the question to one node, the connection included; zero = 1 s.
	Timeout time.Duration
	// ConnectTimeout bounds the making of a connection, up to the end of the TLS handshake; zero = half of Timeout.
	ConnectTimeout time.Duration
	// Concurrency is how many questions may be under way at a time, those of all callers together; zero = 256.
	Concurrency int
}

const (
	defaultTimeout     = time.Second
	defaultConcurrency = 256
	// idleTimeout is longer than that of the servers, which decide.
	idleTimeout = 10 * time.Minute
	// A node that has vanished without a word is noticed by a ping that nobody answers, and a new connection is made next time.
	pingAfter   = 30 * time.Second
	pingTimeout = 2 * time.Second
	// again is a pause after an answer that came sooner than one of our handlers would give it.
	again = 20 * time.Millisecond
)

// Client asks nodes. It keeps connections to them; Close closes those.
type Client struct {
	o         Options
	transport *http.Transport
	slots     chan struct{} // has an item for each question under way
}

// New makes a Client. Without a CA or a certificate it would learn nothing it could trust, and that is an error.
func New(o Options) (*Client, error) {
	switch {
	case o.TLS == nil || o.TLS.RootCAs == nil || o.TLS.InsecureSkipVerify:
		return nil, errors.New("questions to other nodes: no CA of the cluster to know them by: use a kubeconfig with certificate-authority")
	case len(o.TLS.Certificates) == 0 && o.TLS.GetClientCertificate == nil:
		return nil, errors.New("questions to other nodes: no certificate of this node: make a kubeconfig with endpointd kubeconfig --node")
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.ConnectTimeout == 0 {
		o.ConnectTimeout = o.Timeout / 2
	}
	if o.Concurrency == 0 {
		o.Concurrency = defaultConcurrency
	}
	c := &Client{o: o, slots: make(chan struct{}, o.Concurrency)}
	c.transport = &http.Transport{
		DialTLSContext: c.connect, ForceAttemptHTTP2: true, DisableCompression: true,
		IdleConnTimeout: idleTimeout, MaxIdleConnsPerHost: 1,
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	return c, nil
}

// Close closes the connections that nobody uses.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Acknowledge asks all nodes at once whether their data planes have applied the EndpointSlices up to a resourceVersion, and waits until
// each has said so, or did not in its time, or ctx ends. The answers are in the order of nodes.
func (c *Client) Acknowledge(ctx context.Context, nodes []Peer, resourceVersion string) []Answer {
	answers := make([]Answer, len(nodes))
	var asking sync.WaitGroup
	for i, p := range nodes {
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			answers[i] = Answer{p, Late, fmt.Errorf("node %s was not asked: %w", p.Name, ctx.Err())}
			continue
		}
		asking.Go(func() {
			defer func() { <-c.slots }()
			answers[i] = c.ask(ctx, p, resourceVersion)
		})
	}
	asking.Wait()
	return answers
}

// ask goes on asking one node until it has applied it or its time is over.
func (c *Client) ask(ctx context.Context, p Peer, resourceVersion string) Answer {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	var asked question
	for {
		was := asked
		asked = c.once(ctx, p, resourceVersion)
		switch {
		case asked.err != nil && asked.reused && !was.reused && ctx.Err() == nil:
			continue // the connection was from before a restart of the node
		case asked.err != nil:
			return Answer{p, asked.outcome(), fmt.Errorf("ask node %s what it has applied: %w", p.Name, asked.err)}
		case asked.code == http.StatusNoContent:
			return Answer{Peer: p}
		case asked.code == http.StatusAccepted:
			select {
			case <-time.After(again):
			case <-ctx.Done():
				return Answer{p, Late, fmt.Errorf("node %s has not applied resourceVersion %s: %w", p.Name, resourceVersion, ctx.Err())}
			}
		case asked.code == http.StatusTooManyRequests || asked.code == http.StatusServiceUnavailable:
			return Answer{p, Late, fmt.Errorf("node %s: %s", p.Name, asked.text)}
		default:
			return Answer{p, Foreign, fmt.Errorf("node %s does not say what it has applied: status %d: %s", p.Name, asked.code, asked.text)}
		}
	}
}

// question is what came of one request.
type question struct {
	code   int
	text   string // why it was refused
	reused bool   // the connection was there
	got    bool   // there was a connection
	err    error
}

// outcome is that of an error.
func (q question) outcome() Outcome {
	var alert tls.AlertError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.Is(q.err, errOther), errors.As(q.err, &alert), errors.As(q.err, &certificate), errors.As(q.err, &record):
		return Foreign
	case q.got && (errors.Is(q.err, context.DeadlineExceeded) || errors.Is(q.err, context.Canceled)):
		return Late
	}
	return Unreachable
}

// errOther is that of a connection whose other end is another node by now.
var errOther = errors.New("its address is another node's")

// nameKey is the context's key of the node's name, for who makes the connection.
type nameKey struct{}

// once makes one request. Connections are kept by address; whose they are is seen by the certificate each time.
func (c *Client) once(ctx context.Context, p Peer, resourceVersion string) (q question) {
	var got, reused atomic.Bool
	defer func() { q.got, q.reused = got.Load(), reused.Load() }()
	ctx = httptrace.WithClientTrace(context.WithValue(ctx, nameKey{}, p.Name), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			got.Store(true)
			reused.Store(info.Reused)
		},
	})
	port := p.Port
	if port == 0 {
		port = defaultPort
	}
	target := url.URL{
		Scheme: "https", Host: netip.AddrPortFrom(p.Addr, port).String(), Path: Path,
		RawQuery: url.Values{parameter: {resourceVersion}}.Encode(),
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), http.NoBody)
	if err != nil {
		return question{err: err}
	}
	response, err := c.transport.RoundTrip(request)
	if err != nil {
		return question{err: err}
	}
	defer response.Body.Close() //nolint:errcheck // it was read as far as it matters
	if response.TLS == nil || response.TLS.PeerCertificates[0].VerifyHostname(p.Name) != nil {
		return question{err: errOther}
	}
	text, _ := io.ReadAll(io.LimitReader(response.Body, maxText)) // the code is the answer
	return question{code: response.StatusCode, text: strings.TrimSpace(string(text))}
}

// maxText bounds what is read of a refusal, in bytes.
const maxText = 300

// connect makes a connection to a node and sees to it that it is this one.
func (c *Client) connect(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.ConnectTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	config := c.o.TLS.Clone()
	config.ServerName, _ = ctx.Value(nameKey{}).(string)
	config.NextProtos = []string{"h2", "http/1.1"}
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // the error of the handshake is the one to tell
		return nil, err
	}
	return secure, nil
}
