package forward

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxStreams is how many connections one upstream has at most, maxPipelined how many questions wait on one before another is made, and
	// maxWaiting how many do at most.
	maxStreams   = 4
	maxPipelined = 64
	maxWaiting   = 1024
	// streamIdle is how long a connection without a question is kept (RFC 7766, section 6.2.3). It is longer than any question.
	streamIdle = 15 * time.Second
	// streamDial is how long making one may take, with TLS; streamWrite a write.
	streamDial  = 5 * time.Second
	streamWrite = 2 * time.Second
)

var (
	errCrowded   = errors.New("too many questions wait on its connections")
	errGone      = errors.New("the connection ended")
	errMalformed = errors.New("its answer cannot be read")
)

// streams are the connections to an upstream over TCP or TLS. Each takes many questions at once, and answers in any order (RFC 7766, section 6.2.1.1).
type streams struct {
	upstream *upstream
	tls      *tls.Config // nil = TCP
	idle     time.Duration

	mu   sync.Mutex // guards open, and waiting of each
	open []*stream
}

func newStreams(u *upstream) *streams {
	s := &streams{upstream: u, idle: streamIdle}
	if u.TLS {
		s.tls = &tls.Config{
			ServerName: u.ServerName, RootCAs: u.forwarder.o.RootCAs, MinVersion: tls.VersionTLS12,
			NextProtos: []string{"dot"}, ClientSessionCache: tls.NewLRUClientSessionCache(maxStreams),
		}
		if u.ServerName == "" {
			s.tls.ServerName = u.Addr.Addr().WithZone("").String()
		}
	}
	return s
}

// A stream is one connection, from when it is being made.
type stream struct {
	ready chan struct{} // closed when it was made, or could not be
	over  chan struct{} // closed when it ended, after err is set
	conn  net.Conn      // once ready
	err   error         // once over

	waiting map[uint16]*waiter // guarded by streams.mu
	write   sync.Mutex         // one message after another
}

// A waiter waits for the answer to a question.
type waiter struct {
	asked  []byte
	answer chan *dns.Msg // room for one; nil = it cannot be read
}

func (u *upstream) overStream(ctx context.Context, q question) (*dns.Msg, error) {
	for {
		s, id, w, isNew, err := u.streams.reserve()
		if err != nil {
			return nil, err
		}
		m, err := u.streams.ask(ctx, s, id, w, q)
		if !errors.Is(err, errGone) || isNew || ctx.Err() != nil {
			return m, err
		}
		// The other end may close a connection at any time, and just did; nothing says that it does not answer.
	}
}

// reserve finds a connection with room for a question, or makes one.
func (c *streams) reserve() (s *stream, id uint16, w *waiter, isNew bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, candidate := range c.open {
		if s == nil || len(candidate.waiting) < len(s.waiting) {
			s = candidate
		}
	}
	if s == nil || len(s.waiting) >= maxPipelined && len(c.open) < maxStreams {
		s, isNew = &stream{ready: make(chan struct{}), over: make(chan struct{}), waiting: map[uint16]*waiter{}}, true
		if !c.upstream.forwarder.spawn(func() { c.run(s) }) {
			return nil, 0, nil, false, ErrClosed
		}
		c.open = append(c.open, s)
	}
	if len(s.waiting) >= maxWaiting {
		return nil, 0, nil, false, errCrowded
	}
	for id = uint16(rand.Uint32()); s.waiting[id] != nil; {
		id++
	}
	w = &waiter{answer: make(chan *dns.Msg, 1)}
	s.waiting[id] = w
	return s, id, w, isNew, nil
}

// ask sends a question on a connection once that is made, and waits.
func (c *streams) ask(ctx context.Context, s *stream, id uint16, w *waiter, q question) (*dns.Msg, error) {
	defer func() {
		c.mu.Lock()
		delete(s.waiting, id)
		c.mu.Unlock()
	}()
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil, fmt.Errorf("connecting: %w", ctx.Err())
	}
	packet, asked := q.pack(id, request{pad: c.tls != nil, plain: c.upstream.plain.Load()})
	c.mu.Lock()
	w.asked = asked
	c.mu.Unlock()
	if err := s.send(packet, c.idle); err != nil {
		return nil, err
	}
	select {
	case m := <-w.answer:
		if m == nil {
			return nil, errMalformed
		}
		return m, nil
	case <-s.over:
		return nil, s.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", errSilent, ctx.Err())
	}
}

// send writes a message behind its length. Should that fail the connection is of no more use.
func (s *stream) send(packet []byte, idle time.Duration) error {
	if s.conn == nil {
		<-s.over
		return s.err
	}
	framed := append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(packet)), uint16(len(packet))), packet...)
	s.write.Lock()
	defer s.write.Unlock()
	_ = s.conn.SetWriteDeadline(time.Now().Add(streamWrite))
	if _, err := s.conn.Write(framed); err != nil {
		_ = s.conn.Close()
		<-s.over // whoever reads sees that
		return s.err
	}
	_ = s.conn.SetReadDeadline(time.Now().Add(idle))
	return nil
}

// run makes the connection, and reads from it until it ends.
func (c *streams) run(s *stream) {
	err := c.dial(s)
	close(s.ready)
	if err == nil {
		stop := context.AfterFunc(c.upstream.forwarder.ctx, func() { _ = s.conn.Close() })
		err = fmt.Errorf("%w: %w", errGone, c.read(s))
		stop()
		_ = s.conn.Close()
	}
	c.mu.Lock()
	for i, other := range c.open {
		if other == s {
			c.open = append(c.open[:i], c.open[i+1:]...)
			break
		}
	}
	c.mu.Unlock()
	s.err = err
	close(s.over)
}

func (c *streams) dial(s *stream) error {
	ctx, cancel := context.WithTimeout(c.upstream.forwarder.ctx, streamDial)
	defer cancel()
	addr := c.upstream.Addr.String()
	var err error
	if c.tls == nil {
		s.conn, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
	} else {
		s.conn, err = (&tls.Dialer{Config: c.tls}).DialContext(ctx, "tcp", addr)
	}
	if err != nil {
		s.conn = nil
		return fmt.Errorf("connecting: %w", err)
	}
	return nil
}

// read hands answers to who waits for them. Those that nobody waits for are counted.
func (c *streams) read(s *stream) error {
	_ = s.conn.SetReadDeadline(time.Now().Add(c.idle))
	var length [2]byte
	var buf []byte
	for {
		if _, err := io.ReadFull(s.conn, length[:]); err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint16(length[:]))
		if n > cap(buf) {
			buf = make([]byte, n)
		}
		if _, err := io.ReadFull(s.conn, buf[:n]); err != nil {
			return err
		}
		c.deliver(s, buf[:n])
	}
}

func (c *streams) deliver(s *stream, packet []byte) {
	if len(packet) < 2 {
		c.upstream.metrics.Malformed.Add(1)
		return
	}
	id := binary.BigEndian.Uint16(packet)
	c.mu.Lock()
	w := s.waiting[id]
	var asked []byte
	if w != nil {
		asked = w.asked
	}
	c.mu.Unlock()
	if asked == nil || judge(packet, id, asked) == isOther {
		c.upstream.metrics.Wrong.Add(1)
		return
	}
	m, err := readMessage(packet)
	if err != nil { // nobody else can have sent it, so there is nothing to wait for
		c.upstream.metrics.Malformed.Add(1)
		m = nil
	}
	select {
	case w.answer <- m:
	default: // there is an answer already
	}
}
