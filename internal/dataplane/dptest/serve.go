package dptest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// listening is a set of servers that answer on one port of a place: both families, TCP and UDP.
type listening struct {
	name    string
	closers []io.Closer

	mu    sync.Mutex            // guards conns
	conns map[net.Conn]struct{} // nil once closed
	wg    sync.WaitGroup
}

// Serve has a place answer on a port of its addresses, each question with the place's name and whom it saw, until the returned function is called.
// For more than one place on a port the name in the answer says which.
func (p *Place) Serve(port uint16) (stop func() error, err error) {
	l, err := p.serve(port)
	if err != nil {
		return nil, err
	}
	return l.close, nil
}

func (p *Place) serve(port uint16) (*listening, error) {
	l := &listening{name: p.Name, conns: map[net.Conn]struct{}{}}
	err := p.Do(func() error {
		var config net.ListenConfig
		for _, addr := range []netip.Addr{p.V4, p.V6} {
			at := netip.AddrPortFrom(addr, port).String()
			stream, err := config.Listen(context.Background(), "tcp", at)
			if err != nil {
				return err
			}
			l.closers = append(l.closers, stream)
			packets, err := config.ListenPacket(context.Background(), "udp", at)
			if err != nil {
				return err
			}
			l.closers = append(l.closers, packets)
			l.wg.Go(func() { l.accept(stream) })
			l.wg.Go(func() { l.receive(packets) })
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *listening) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		l.mu.Lock()
		if l.conns == nil {
			_ = conn.Close()
		} else {
			l.conns[conn] = struct{}{}
			l.wg.Go(func() { l.talk(conn) })
		}
		l.mu.Unlock()
	}
}

func (l *listening) talk(conn net.Conn) {
	defer func() {
		_ = conn.Close()
		l.mu.Lock()
		delete(l.conns, conn)
		l.mu.Unlock()
	}()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if _, err := fmt.Fprintln(conn, l.name, conn.RemoteAddr()); err != nil {
			return
		}
	}
}

func (l *listening) receive(packets net.PacketConn) {
	buffer := make([]byte, 100)
	for {
		_, from, err := packets.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = fmt.Fprintln(replyTo{packets, from}, l.name, from) // a client that has gone
		}
	}
}

type replyTo struct {
	conn net.PacketConn
	to   net.Addr
}

// Write is one packet.
func (r replyTo) Write(p []byte) (int, error) { return r.conn.WriteTo(p, r.to) }

// close ends the servers and their connections.
func (l *listening) close() error {
	var errs []error
	for _, c := range l.closers {
		errs = append(errs, c.Close())
	}
	l.mu.Lock()
	for conn := range l.conns {
		_ = conn.SetDeadline(time.Unix(1, 0)) // talk closes it
	}
	l.conns = nil
	l.mu.Unlock()
	l.wg.Wait()
	return errors.Join(errs...)
}
