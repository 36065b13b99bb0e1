package ebpf

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// peer asks the kernel, and not what Go remembers.
func peer(t testing.TB, c net.Conn) netip.AddrPort {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sa unix.Sockaddr
	if e := raw.Control(func(fd uintptr) { sa, err = unix.Getpeername(int(fd)) }); e != nil || err != nil {
		t.Fatalf("getpeername: %v, %v", e, err)
	}
	return fromSockaddr(t, sa)
}

func fromSockaddr(t testing.TB, sa unix.Sockaddr) netip.AddrPort {
	t.Helper()
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	default:
		t.Fatalf("%T", sa)
		return netip.AddrPort{}
	}
}

// toSockaddr is an address for an IPv4 socket, or mapped for an IPv6 one.
func toSockaddr(a netip.AddrPort, v6 bool) unix.Sockaddr {
	if v6 {
		return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// again repeats what a signal of Go's runtime has interrupted.
func again(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func recvfrom(fd int, buffer []byte) (n int, from unix.Sockaddr, err error) {
	err = again(func() (err error) {
		n, from, err = unix.Recvfrom(fd, buffer, 0)
		return err
	})
	return n, from, err
}
