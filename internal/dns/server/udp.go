package server

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// badReads is how many reads of a socket may fail one after the other.
const badReads = 1000

// A udp is one socket and the goroutine that reads it.
type udp struct {
	s     *Server
	conn  *net.UDPConn
	batch *batch
	w     *worker
}

// A udpJob is a request that waits, with its own memory.
type udpJob struct {
	envelope
	packet [maxRequest]byte
	out    [maxUDPReply]byte
	w      *worker
}

func newUDP(s *Server, conn *net.UDPConn) (*udp, error) {
	local, _ := netip.ParseAddrPort(conn.LocalAddr().String())
	b, err := newBatch(conn, s.o.batch, local.Addr().IsUnspecified())
	if err != nil {
		return nil, err
	}
	count := &counters{}
	s.shards = append(s.shards, count)
	return &udp{s: s, conn: conn, batch: b, w: newWorker(s, count)}, nil
}

// run answers until the socket gets a deadline.
func (u *udp) run() error {
	for bad := 0; ; {
		n, err := u.batch.receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			if bad++; bad >= badReads {
				return fmt.Errorf("DNS: read %s: %w", u.conn.LocalAddr(), err)
			}
			continue
		}
		bad = 0
		start := u.s.o.Now()
		request := request{at: start}
		for i := range n {
			u.one(i, &request)
		}
		replies := u.batch.queued
		if replies == 0 {
			continue
		}
		lost, err := u.batch.flush()
		if lost > 0 {
			u.w.count.unsent.Add(uint64(lost))
		}
		if err != nil {
			u.s.o.Logger.Debug("replies not sent", "addr", u.conn.LocalAddr(), "err", err)
		}
		u.w.count.atOnce.observe(u.s.o.Now().Sub(start), replies)
	}
}

// one answers the i-th packet of the batch, or has it wait.
func (u *udp) one(i int, rq *request) {
	var ok bool
	if rq.packet, rq.client, ok = u.batch.packet(i); !ok {
		u.w.count.malformed.Add(1)
		return
	}
	switch u.w.answer(rq, u.batch.room()) {
	case drop:
		return
	case wait:
		if u.later(i, rq) {
			return
		}
		u.w.count.overloaded.Add(1)
	}
	u.batch.queue(i, u.w.finish(rq))
}

// later has the i-th packet of the batch wait, and says whether there is room for that.
func (u *udp) later(i int, rq *request) bool {
	client := rq.client.Addr()
	if !u.s.pool.take(client) {
		return false
	}
	j, _ := u.s.udpJobs.Get().(*udpJob)
	j.envelope = u.batch.messages[i].envelope
	mine := request{packet: j.packet[:copy(j.packet[:], rq.packet)], client: rq.client, at: rq.at}
	u.s.pool.start(client, func(c call) {
		defer u.s.udpJobs.Put(j)
		j.w.answerPatiently(c.ctx, &mine, j.out[:])
		reply := j.w.finish(&mine)
		u.s.slow.waited.observe(u.s.o.Now().Sub(mine.at), 1)
		if err := sendOne(u.batch.raw, &j.envelope, reply); err != nil && !isGone(err) {
			u.s.slow.unsent.Add(1)
		}
	})
	return true
}

// isGone says whether a socket was closed meanwhile.
func isGone(err error) bool { return errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EBADF) }
