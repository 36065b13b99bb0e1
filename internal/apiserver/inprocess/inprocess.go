// Package inprocess is an HTTP transport for clients that live in the process
// of their server: a request is a call of the handler, with no connection, no
// TLS and no framing between them.
//
// What flows in: requests of an http.Client. What flows out: calls of the
// handler, and its answer as it is written, so that a watch streams. Everything
// else is as for any client: the request passes the handler's whole chain of
// filters, and bodies are bytes, so nobody shares memory with the server.
//
// Invariants: a handler runs at most until its client closes the body or gives
// up, or until Close; it waits when pipeSize bytes of its answer are unread, so a
// slow reader costs no memory. A body that was broken off ends in an error, never
// in EOF.
//
// It refuses upgrades (exec, port-forward): those are for connections. Tests: in
// this folder, with plain handlers and the race detector.
package inprocess

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// Transport is an http.RoundTripper. Make it with [New].
type Transport struct {
	handler http.Handler
	served  chan struct{} // closed when handler is set

	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex // guards closed, and requests against a start after the wait
	closed   bool
	requests sync.WaitGroup // handlers under way
}

// ErrClosed is what requests get after Close.
var ErrClosed = errors.New("the server of this process has stopped")

// pipeSize is how much of an answer waits for its reader, in bytes, before the handler does: a few watch events or one
// object, not a list of everything.
const pipeSize = 64 << 10

// New makes a transport without a handler: clients can be made before their
// server; what they send waits for Serve.
func New() *Transport {
	t := &Transport{served: make(chan struct{})}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// Serve sets the handler, once.
func (t *Transport) Serve(handler http.Handler) {
	t.handler = handler
	close(t.served)
}

// RoundTrip calls the handler and returns when it has sent the header of its answer.
func (t *Transport) RoundTrip(request *http.Request) (*http.Response, error) {
	select {
	case <-t.served:
	case <-t.ctx.Done():
		closeBody(request)
		return nil, ErrClosed
	case <-request.Context().Done():
		closeBody(request)
		return nil, request.Context().Err()
	}
	ctx, cancel := context.WithCancel(request.Context())
	stop := context.AfterFunc(t.ctx, cancel)
	r := request.Clone(ctx) // filters write to it
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0
	r.RemoteAddr, r.RequestURI = "127.0.0.1:0", request.URL.RequestURI()
	if r.Host == "" {
		r.Host = request.URL.Host
	}
	if r.Body == nil {
		r.Body = http.NoBody
	}
	w := &answer{request: request, header: http.Header{}, sent: make(chan struct{}), body: newPipe(cancel), gone: ctx.Done(), closing: t.ctx}
	if !t.start(func() {
		defer stop()
		defer cancel()
		defer closeBody(request)
		defer w.end()
		t.handler.ServeHTTP(w, r)
	}) {
		cancel()
		closeBody(request)
		return nil, ErrClosed
	}
	select {
	case <-w.sent:
		return w.response, w.failed
	case <-request.Context().Done():
		return nil, request.Context().Err()
	}
}

func (t *Transport) start(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.requests.Go(f)
	return true
}

// Close makes further requests fail, ends those under way and waits for their handlers.
func (t *Transport) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.requests.Wait()
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

// answer is the ResponseWriter of a request. The handler's goroutine writes it; response and failed belong to the
// client once sent is closed.
type answer struct {
	request *http.Request
	header  http.Header
	body    *pipe
	gone    <-chan struct{} // the client has given up
	closing context.Context // of the transport

	once     sync.Once
	sent     chan struct{}
	response *http.Response
	failed   error
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(code int) {
	if code < 200 {
		return // the one after it counts
	}
	a.once.Do(func() {
		a.response = &http.Response{
			Status: fmt.Sprintf("%d %s", code, http.StatusText(code)), StatusCode: code,
			Proto: "HTTP/2.0", ProtoMajor: 2, Header: a.header.Clone(), Body: a.body, ContentLength: -1, Request: a.request,
		}
		close(a.sent)
	})
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(p)
}

// Flush sends the header; what was written is with the client already.
func (a *answer) Flush() { a.WriteHeader(http.StatusOK) }

// CloseNotify is what upstream's filters look for, with Flush, in a ResponseWriter that can stream.
func (a *answer) CloseNotify() <-chan bool {
	c := make(chan bool, 1)
	go func() {
		<-a.gone
		c <- true
	}()
	return c
}

// end finishes the answer when the handler returned or panicked; a panic is for this client only, as in net/http, and
// upstream's own filter has logged it.
func (a *answer) end() {
	err := error(io.EOF)
	// The client must not take what it got for the whole.
	if gone := a.request.Context().Err(); gone != nil {
		err = gone
	} else if a.closing.Err() != nil {
		err = ErrClosed
	}
	if recovered := recover(); recovered != nil {
		err = fmt.Errorf("the API server broke off: %v", recovered)
		a.once.Do(func() {
			a.failed = err
			close(a.sent)
		})
	}
	a.WriteHeader(http.StatusOK)
	a.body.closeWrite(err)
}

// pipe carries the body of an answer, with room for pipeSize so that the two sides need not meet for each write.
type pipe struct {
	cancel context.CancelFunc // tells the handler that nobody reads any more

	mu     sync.Mutex // guards what follows
	moved  sync.Cond  // something was written, read or closed
	buffer bytes.Buffer
	err    error // no more will be written; io.EOF at a proper end
	unread bool  // the reader has closed
}

func newPipe(cancel context.CancelFunc) *pipe {
	p := &pipe{cancel: cancel}
	p.moved.L = &p.mu
	return p
}

func (p *pipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.buffer.Len() > 0 && p.buffer.Len()+len(b) > pipeSize && !p.unread {
		p.moved.Wait()
	}
	if p.unread {
		return 0, io.ErrClosedPipe
	}
	p.moved.Broadcast()
	return p.buffer.Write(b)
}

func (p *pipe) closeWrite(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
	p.moved.Broadcast()
}

func (p *pipe) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.buffer.Len() == 0 && p.err == nil && !p.unread {
		p.moved.Wait()
	}
	if p.unread {
		return 0, http.ErrBodyReadAfterClose
	}
	if p.buffer.Len() == 0 {
		return 0, p.err
	}
	n, _ := p.buffer.Read(b)
	p.moved.Broadcast()
	return n, nil
}

// Close is the reader's: the handler is told, and what it still writes is dropped.
func (p *pipe) Close() error {
	p.mu.Lock()
	p.unread = true
	p.buffer = bytes.Buffer{}
	p.mu.Unlock()
	p.moved.Broadcast()
	p.cancel()
	return nil
}
