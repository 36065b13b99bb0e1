package publish

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const maxDatagram = 64 << 10

// udpPort passes datagrams on. All of one client go to one endpoint, until a pause of UDPIdle or the endpoint's end.
type udpPort struct {
	opened *opened
	conn   *net.UDPConn

	mu       sync.Mutex // guards what follows
	sessions map[netip.AddrPort]*session
	work     sync.WaitGroup
}

// session is one client with its endpoint.
type session struct {
	endpoint netip.AddrPort
	conn     *net.UDPConn // from the sandbox to the endpoint
	last     atomic.Int64 // when the last datagram went either way, in Unix nanoseconds
}

func newUDPPort(o *opened, conn *net.UDPConn) *udpPort {
	return &udpPort{opened: o, conn: conn, sessions: map[netip.AddrPort]*session{}}
}

// serve owns the socket.
func (u *udpPort) serve(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { _ = u.conn.Close() })()
	buffer := make([]byte, maxDatagram)
	for {
		n, client, err := u.conn.ReadFromUDPAddrPort(buffer)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			continue // an ICMP error about an answer; the socket lives until ctx ends
		}
		if s := u.session(client); s != nil {
			s.last.Store(time.Now().UnixNano())
			_, _ = s.conn.Write(buffer[:n]) // datagrams may be lost
		}
	}
	u.keep(nil)
	u.work.Wait()
}

// session returns nil when there is no endpoint, or no room.
func (u *udpPort) session(client netip.AddrPort) *session {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s := u.sessions[client]; s != nil {
		return s
	}
	p := u.opened.publisher
	endpoints := u.opened.next()
	if len(endpoints) == 0 || p.udp.Load() >= int64(p.o.MaxConns) {
		return nil
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(endpoints[0]))
	if err != nil {
		return nil
	}
	p.udp.Add(1)
	s := &session{endpoint: endpoints[0], conn: conn}
	s.last.Store(time.Now().UnixNano())
	u.sessions[client] = s
	u.work.Go(func() {
		u.answer(client, s)
		p.udp.Add(-1)
	})
	return s
}

// answer passes datagrams back until the session has been idle, or was ended.
func (u *udpPort) answer(client netip.AddrPort, s *session) {
	defer u.end(client, s)
	idle := u.opened.publisher.o.UDPIdle
	buffer := make([]byte, maxDatagram)
	for {
		rest := time.Until(time.Unix(0, s.last.Load()).Add(idle))
		if rest <= 0 {
			return
		}
		if err := s.conn.SetReadDeadline(time.Now().Add(rest)); err != nil {
			return
		}
		n, err := s.conn.Read(buffer)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue // there may have been a datagram the other way
			}
			return // refused, or ended: the next datagram begins anew
		}
		s.last.Store(time.Now().UnixNano())
		_, _ = u.conn.WriteToUDPAddrPort(buffer[:n], client) // as above
	}
}

func (u *udpPort) end(client netip.AddrPort, s *session) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sessions[client] == s {
		delete(u.sessions, client)
	}
	_ = s.conn.Close() // it may be closed
}

// keep ends the sessions of endpoints that are gone.
func (u *udpPort) keep(endpoints []netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for client, s := range u.sessions {
		if !slices.Contains(endpoints, s.endpoint) {
			delete(u.sessions, client)
			_ = s.conn.Close() // ends answer
		}
	}
}
