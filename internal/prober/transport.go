package prober

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// maxAnswer is how much is read from a connection for one answer, headers and framing included, in bytes.
const maxAnswer = 1 << 20

// maxInterim is how many 1xx answers may come before the real one; net/http's number.
const maxInterim = 5

// past is a deadline that is over.
var past = time.Unix(1, 0)

// transport is an http.RoundTripper that opens a connection for each request. HTTP/1.1 without TLS, which nearly every probe is,
// needs no goroutine of its own, no pool and no lock here; everything else goes to net/http.
type transport struct {
	full func() *http.Transport // made when it is needed first
	h2c  bool
}

func newTransport(h2c bool) *transport {
	return &transport{h2c: h2c, full: sync.OnceValue(func() *http.Transport {
		t := &http.Transport{
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, // as documented: probes ask for life, not for identity
			DisableKeepAlives:  true,
			DisableCompression: true,
			ForceAttemptHTTP2:  true,
			DialContext:        func(ctx context.Context, _, addr string) (net.Conn, error) { return dial(ctx, addr) },
		}
		if h2c {
			t.Protocols = new(http.Protocols)
			t.Protocols.SetUnencryptedHTTP2(true)
		}
		return t
	})}
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.h2c || req.URL.Scheme != "http" {
		return t.full().RoundTrip(req)
	}
	ctx := req.Context()
	conn, err := dial(ctx, hostPort(req))
	if err != nil {
		return nil, err
	}
	a := &answer{conn: conn, left: maxAnswer, stop: bound(ctx, conn)}
	resp, err := a.read(req)
	if err != nil {
		_ = a.Close() // the connection is of no use to anybody
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	a.body, resp.Body = resp.Body, a
	return resp, nil
}

// hostPort is where to connect to: redirects may come without a port.
func hostPort(req *http.Request) string {
	if req.URL.Port() == "" {
		return net.JoinHostPort(req.URL.Hostname(), "80")
	}
	return req.URL.Host
}

// answer is the connection while its answer is read, and then the body of that.
type answer struct {
	conn net.Conn
	left int // bytes that may still come
	got  bool
	stop func() bool
	body io.ReadCloser
}

// read sends the request and reads the answer's header.
func (a *answer) read(req *http.Request) (*http.Response, error) {
	w := bufio.NewWriterSize(a.conn, 512) // one write, unless a probe has long headers
	err := req.Write(w)
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(wire{a}, 1024)
	for range maxInterim {
		resp, err := http.ReadResponse(r, req)
		if err != nil {
			return nil, a.explain(err)
		}
		if resp.StatusCode >= http.StatusOK || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, nil
		}
	}
	return nil, errors.New("net/http: too many 1xx informational responses")
}

// explain gives what went wrong in net/http's words.
func (a *answer) explain(err error) error {
	var network net.Error
	switch {
	case a.left <= 0:
		return fmt.Errorf("the header of the answer is larger than %d bytes", maxAnswer)
	case !a.got && errors.Is(err, io.ErrUnexpectedEOF):
		return io.EOF
	case errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case strings.HasPrefix(err.Error(), "malformed"):
		return fmt.Errorf("net/http: HTTP/1.x transport connection broken: %w", err)
	}
	return err
}

// Read reads the body.
func (a *answer) Read(p []byte) (int, error) { return a.body.Read(p) }

// Close closes the connection. What was not read of the body is not waited for.
func (a *answer) Close() error {
	a.stop()
	return a.conn.Close()
}

// wire reads the connection up to the bound.
type wire struct{ a *answer }

func (w wire) Read(p []byte) (int, error) {
	if w.a.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := w.a.conn.Read(p[:min(len(p), w.a.left)])
	w.a.left -= n
	w.a.got = w.a.got || n > 0
	return n, err
}
