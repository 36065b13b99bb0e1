package stream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// errGone is the cause of the end of a session's context when it was the client that left.
var errGone = errors.New("the client has left")

// session is a connection that was taken over from HTTP. It is given to the upstream library in place of its
// ResponseWriter, because once that has taken the connection nobody else is told that the client left.
//
// It has no Unwrap on purpose: the library would look through it.
type session struct {
	http.ResponseWriter
	ctx    context.Context // ends with the client, or with the server
	cancel context.CancelCauseFunc
	grace  time.Duration // how long the connection may last after the server's end

	mu    sync.Mutex // guards all below
	conn  net.Conn
	stop  func() bool // stops waiting for the server's end
	timer *time.Timer // closes conn when grace is over
	ended bool
}

// newSession begins a session within the context of a request. Its owner calls end.
func newSession(w http.ResponseWriter, r *http.Request, grace time.Duration) *session {
	ctx, cancel := context.WithCancelCause(r.Context())
	return &session{ResponseWriter: w, ctx: ctx, cancel: cancel, grace: grace}
}

// Hijack implements http.Hijacker.
func (s *session) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(s.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	watched := &watchedConn{Conn: conn, gone: func() { s.cancel(errGone) }}
	var reader io.Reader = watched
	if n := rw.Reader.Buffered(); n > 0 {
		early, err := rw.Reader.Peek(n)
		if err != nil {
			_ = conn.Close()
			return nil, nil, err
		}
		reader = io.MultiReader(bytes.NewReader(bytes.Clone(early)), watched)
	}
	s.mu.Lock()
	s.conn = watched
	s.mu.Unlock()
	// The parent of ctx is the request's, which ends with the server: nobody else ends it after a takeover.
	stop := context.AfterFunc(s.ctx, s.closeLater)
	s.mu.Lock()
	s.stop = stop
	s.mu.Unlock()
	return watched, bufio.NewReadWriter(bufio.NewReader(reader), bufio.NewWriter(watched)), nil
}

func (s *session) closeLater() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.timer = time.AfterFunc(s.grace, func() { _ = s.conn.Close() }) // nothing to tell: the client had its time
	}
}

// end closes the connection.
func (s *session) end() {
	s.cancel(context.Canceled)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.stop != nil {
		s.stop()
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.conn != nil {
		_ = s.conn.Close() // mostly closed already
	}
}

// watchedConn tells when nothing more can come from the client.
type watchedConn struct {
	net.Conn
	gone  func()
	close sync.Once
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.gone()
	}
	if errors.Is(err, net.ErrClosed) {
		err = io.EOF // closed by us when all was said: to the libraries an end like any other, not one to log
	}
	return n, err
}

// Close may be called again. That is no error, for which the SPDY library would wait a second for somebody to take it.
func (c *watchedConn) Close() error {
	var err error
	c.close.Do(func() {
		c.gone()
		err = c.Conn.Close()
	})
	return err
}
