package echo

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// maxLine is how much of a TCP line is answered at once, in bytes.
const maxLine = 4 << 10

// limited lets only so many connections of a listener be open; the others wait in the kernel's queue.
type limited struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
}

func limit(l net.Listener, n int) *limited {
	return &limited{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &counted{Conn: c, leave: func() { <-l.slots }}, nil
}

// Close implements net.Listener.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type counted struct {
	net.Conn
	once  sync.Once
	leave func()
}

func (c *counted) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.leave)
	return err
}

// serveTCP answers lines until ctx ends: then no more is read, and what was read is answered. on notes connections that are to bring their first line.
func serveTCP(ctx context.Context, l net.Listener, pod string, on *state) error {
	var open sync.WaitGroup
	defer open.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if retry(ctx, err) {
				continue
			}
			return err
		}
		on.connected(conn)
		open.Go(func() {
			defer func() { _ = conn.Close() }()
			defer on.heard(conn)
			stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
			defer stop()
			lines(conn, pod, func() { on.heard(conn) })
		})
	}
}

// retry says whether accept may work again soon, and waits: descriptors may have run out.
func retry(ctx context.Context, err error) bool {
	var temporary net.Error
	if errors.As(err, &temporary) && (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)) {
		return sleep(ctx, 20*time.Millisecond)
	}
	return false
}

// lines answers each line until the client ends. answered is called after each.
func lines(conn io.ReadWriter, pod string, answered func()) {
	r := bufio.NewReaderSize(conn, maxLine)
	for {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 {
			answer := append([]byte(pod+" "), line...)
			if line[len(line)-1] != '\n' {
				answer = append(answer, '\n')
			}
			if _, err := conn.Write(answer); err != nil {
				return
			}
			answered()
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// serveUDP answers datagrams until ctx ends, each from the address it was sent to: a machine with several addresses, or behind
// a Service, would else answer from one that the client does not know.
func serveUDP(ctx context.Context, conn *net.UDPConn, pod string) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	prefix := pod + " "
	in, out, control := make([]byte, 64<<10), make([]byte, 0, 64<<10), make([]byte, 128)
	for {
		n, c, _, from, err := conn.ReadMsgUDPAddrPort(in, control)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			continue // such as ECONNREFUSED, the echo of an answer that nobody wanted
		}
		const largest = 65507 // payload of a datagram over IPv4
		out = append(append(out[:0], prefix...), in[:n]...)
		_, _, _ = conn.WriteMsgUDPAddrPort(out[:min(len(out), largest)], source(control[:c]), from) // UDP promises nothing
	}
}

// listenUDP opens a socket that [serveUDP] can serve.
func listenUDP(ctx context.Context, network, at string) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: askDestination}
	c, err := config.ListenPacket(ctx, network, at)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// askDestination makes the kernel say, with each datagram, to which address it came: ip(7) IP_PKTINFO, ipv6(7) IPV6_RECVPKTINFO, which
// covers IPv4 on a socket for both. Done before the socket is bound, it covers the first datagram too.
func askDestination(_, _ string, raw syscall.RawConn) error {
	var err error
	ctrl := raw.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_RECVPKTINFO, 1)
		if err != nil {
			err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_PKTINFO, 1)
		}
	})
	return errors.Join(ctrl, err)
}

// source turns what the kernel said about a datagram into what it is to use for the answer. The interface is left to the routes.
func source(control []byte) []byte {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == syscall.IPPROTO_IPV6 && m.Header.Type == syscall.IPV6_PKTINFO && len(m.Data) >= 20:
			if m.Data[0] != 0xfe || m.Data[1]&0xc0 != 0x80 { // a link-local address means nothing without its interface
				clear(m.Data[16:20])
			}
		case m.Header.Level == syscall.IPPROTO_IP && m.Header.Type == syscall.IP_PKTINFO && len(m.Data) >= 12:
			clear(m.Data[:4]) // ipi_ifindex; ipi_spec_dst, the source to use, comes next
		}
	}
	return control
}
