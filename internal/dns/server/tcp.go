package server

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

const (
	maxStreamRequest = 4096 // longer ones end the connection: no question is
	streamReply      = 4096 // longer ones are allocated
	streamWaiting    = 8    // requests of one connection that wait at one time; then it is not read
	acceptPause      = 10 * time.Millisecond
)

// streams are the connections of all TCP listeners.
type streams struct {
	s       *Server
	readers sync.WaitGroup // what may still begin to wait
	conns   sync.WaitGroup

	mu     sync.Mutex
	open   map[*stream]struct{}
	client map[netip.Addr]int // address → connections
	ending bool
}

// A stream is one connection. Requests are answered as soon as their answer is there, so not always in their order (RFC 7766, section 6.2.1.1).
type stream struct {
	s       *Server
	conn    *net.TCPConn
	client  netip.AddrPort
	waiting chan struct{} // one for each request that waits
	jobs    sync.WaitGroup
	mu      sync.Mutex // held while a response is written
}

// A streamJob is the memory for one request.
type streamJob struct {
	w      *worker
	packet [maxStreamRequest]byte
	out    [2 + streamReply]byte
}

// accept serves what a listener gets until it is closed.
func (t *streams) accept(ctx context.Context, l *net.TCPListener) error {
	for {
		conn, err := l.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil: // such as EMFILE: it passes
			pause := time.NewTimer(acceptPause)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
			pause.Stop()
			continue
		}
		if !t.add(conn) {
			t.s.slow.closed.Add(1)
			_ = conn.Close()
		}
	}
}

// add serves a connection, unless there are too many, or it is nobody who may ask.
func (t *streams) add(conn *net.TCPConn) bool {
	client, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return false
	}
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	if t.s.o.DropOthers && !t.s.o.Allow(client.Addr()) {
		return false
	}
	c := &stream{s: t.s, conn: conn, client: client, waiting: make(chan struct{}, streamWaiting)}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ending || len(t.open) >= t.s.o.TCP.Connections || t.client[client.Addr()] >= t.s.o.TCP.PerClient {
		return false
	}
	t.open[c] = struct{}{}
	t.client[client.Addr()]++
	t.readers.Add(1)
	t.conns.Go(func() {
		c.read()
		t.readers.Done()
		c.jobs.Wait()
		_ = conn.Close()
		t.remove(c)
	})
	return true
}

func (t *streams) remove(c *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
	a := c.client.Addr()
	if t.client[a]--; t.client[a] == 0 {
		delete(t.client, a)
	}
}

func (t *streams) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.open)
}

// end stops reading from all connections, and closes those that are still there after a time.
func (t *streams) end(grace time.Duration) (stop func() bool) {
	t.each(func(c *net.TCPConn) { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	return time.AfterFunc(grace, func() { t.each(func(c *net.TCPConn) { _ = c.Close() }) }).Stop
}

func (t *streams) each(f func(*net.TCPConn)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ending = true
	for c := range t.open {
		f(c.conn)
	}
}

// deadline gives the peer a time for what comes next, unless the server is ending.
func (c *stream) deadline(d time.Duration) bool {
	t := c.s.streams
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.ending && c.conn.SetReadDeadline(time.Now().Add(d)) == nil
}

// read answers what can be answered at once, until the peer has nothing to say.
func (c *stream) read() {
	r := bufio.NewReaderSize(c.conn, 512)
	for {
		var head [2]byte
		if !c.deadline(c.s.o.TCP.Idle) {
			return
		}
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(head[:]))
		if n < wire.HeaderLen || n > maxStreamRequest || !c.deadline(c.s.o.TCP.Transfer) {
			return
		}
		j, _ := c.s.streamJobs.Get().(*streamJob)
		if _, err := io.ReadFull(r, j.packet[:n]); err != nil {
			c.s.streamJobs.Put(j)
			return
		}
		if !c.one(j, n) {
			return
		}
	}
}

// one answers one request or has it wait, and says whether to go on.
func (c *stream) one(j *streamJob, n int) bool {
	rq := &request{packet: j.packet[:n], client: c.client, tcp: true, at: c.s.o.Now()}
	switch j.w.answer(rq, j.out[2:]) {
	case drop:
		c.s.streamJobs.Put(j)
		return false
	case wait:
		c.waiting <- struct{}{}
		if c.s.pool.take(c.client.Addr()) {
			c.later(j, rq)
			return true
		}
		<-c.waiting
		j.w.count.overloaded.Add(1)
	case many:
		defer c.s.streamJobs.Put(j)
		return c.transfer(j, rq)
	}
	defer c.s.streamJobs.Put(j)
	ok := c.write(j, j.w.finish(rq))
	c.s.slow.atOnce.observe(c.s.o.Now().Sub(rq.at), 1)
	return ok && c.s.o.Allow(c.client.Addr())
}

// later has a request wait, for which there are places in the connection and in the pool.
func (c *stream) later(j *streamJob, rq *request) {
	c.jobs.Add(1)
	c.s.pool.start(c.client.Addr(), func(call call) {
		defer c.jobs.Done()
		defer func() { <-c.waiting }()
		defer c.s.streamJobs.Put(j)
		j.w.answerPatiently(call.ctx, rq, j.out[2:])
		reply := j.w.finish(rq)
		c.s.slow.waited.observe(c.s.o.Now().Sub(rq.at), 1)
		call.release() // a client that does not read holds only itself up
		c.write(j, reply)
	})
}

// write sends a response that was written to the job's memory, or has outgrown it.
func (c *stream) write(j *streamJob, reply []byte) bool {
	if &reply[0] == &j.out[2] {
		return c.send(j.out[:2+len(reply)])
	}
	return c.send(append(make([]byte, 2, 2+len(reply)), reply...))
}

// send sends a message behind room for its length. A connection that does not take it in time is closed, as half of one may have gone.
func (c *stream) send(frame []byte) bool {
	binary.BigEndian.PutUint16(frame, uint16(len(frame)-2))
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.conn.SetWriteDeadline(time.Now().Add(c.s.o.TCP.Transfer))
	if err == nil {
		_, err = c.conn.Write(frame)
	}
	if err != nil {
		c.s.slow.unsent.Add(1)
		_ = c.conn.Close()
	}
	return err == nil
}
