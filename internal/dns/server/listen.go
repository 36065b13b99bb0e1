package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	socketBuffer = 1 << 20 // octets of a UDP socket each way: room for a thousand questions and more while nobody reads
	anyPortTries = 20
)

// An endpoint is one address with its sockets.
type endpoint struct {
	addr      netip.AddrPort
	udp       []*net.UDPConn
	tcp       *net.TCPListener
	inherited bool // some of them, from an earlier run
}

func (e *endpoint) close() {
	for _, c := range e.udp {
		_ = c.Close()
	}
	if e.tcp != nil {
		_ = e.tcp.Close()
	}
}

// listen binds one address for TCP and, as often as sockets says, UDP, but for what an earlier run has bound.
func listen(ctx context.Context, addr netip.AddrPort, sockets int, from inherited) (*endpoint, error) {
	for try := 1; ; try++ {
		e, err := bind(ctx, addr, sockets, from)
		if err == nil {
			return e, nil
		}
		// A port that is free for UDP may be taken for TCP.
		if addr.Port() != 0 || try == anyPortTries || !errors.Is(err, unix.EADDRINUSE) {
			return nil, explain(addr, err)
		}
	}
}

func bind(ctx context.Context, addr netip.AddrPort, sockets int, from inherited) (_ *endpoint, err error) {
	family := "4"
	if addr.Addr().Is6() {
		family = "6" // alone: 0.0.0.0 is an address of its own
	}
	e := &endpoint{addr: addr}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	e.udp, e.tcp = from.take(addr)
	e.inherited = len(e.udp) > 0 || e.tcp != nil
	// TCP first: it shares its port with nobody, while two servers that both set SO_REUSEPORT would share the one for UDP and each get half.
	if e.tcp == nil {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp"+family, addr.String())
		if err != nil {
			return nil, err
		}
		e.tcp, _ = l.(*net.TCPListener)
	}
	e.addr = netip.AddrPortFrom(addr.Addr(), addrOf(e.tcp.Addr()).Port())
	if len(e.udp) == 0 {
		alone, err := new(net.ListenConfig).ListenPacket(ctx, "udp"+family, e.addr.String())
		if err != nil {
			return nil, err
		}
		_ = alone.Close()
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { return control(raw, e.addr.Addr()) }}
	for _, conn := range e.udp { // as this version wants them
		raw, err := conn.SyscallConn()
		if err == nil {
			err = control(raw, e.addr.Addr())
		}
		if err != nil {
			return nil, err
		}
	}
	// Those of an earlier run are all read, be they more: the kernel gives each its share of the clients.
	for len(e.udp) < sockets {
		c, err := config.ListenPacket(ctx, "udp"+family, e.addr.String())
		if err != nil {
			return nil, err
		}
		conn, _ := c.(*net.UDPConn)
		e.udp = append(e.udp, conn)
	}
	return e, nil
}

func addrOf(a net.Addr) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(a.String())
	return ap
}

func control(raw syscall.RawConn, addr netip.Addr) error {
	var err error
	set := func(fd uintptr) {
		level, discover, pktinfo := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PKTINFO
		if addr.Is6() {
			level, discover, pktinfo = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_RECVPKTINFO
		}
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		if err == nil { // nobody talks us into fragments, one of which he would forge, by a path MTU of his own
			err = unix.SetsockoptInt(int(fd), level, discover, unix.IP_PMTUDISC_OMIT)
		}
		if err == nil && addr.IsUnspecified() {
			err = unix.SetsockoptInt(int(fd), level, pktinfo, 1)
		}
		for force, plain := range map[int]int{unix.SO_RCVBUFFORCE: unix.SO_RCVBUF, unix.SO_SNDBUFFORCE: unix.SO_SNDBUF} {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, force, socketBuffer) != nil { // who is not root gets what the kernel allows
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, plain, socketBuffer)
			}
		}
	}
	return errors.Join(raw.Control(set), err)
}

// explain says what to do about an address that cannot be had.
func explain(addr netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("another DNS server has %s: stop it (`ss -lntup 'sport = :%d'` names it), or listen on another address with --listen: %w",
			addr, addr.Port(), err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("DNS: listen on %s: a port below 1024 wants root or CAP_NET_BIND_SERVICE; grant it, or choose another port with --listen: %w",
			addr, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("DNS: listen on %s: no interface has this address; add it to one first, or choose another with --listen: %w", addr, err)
	default:
		return fmt.Errorf("DNS: listen on %s: %w", addr, err)
	}
}
