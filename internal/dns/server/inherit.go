package server

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// inherited are sockets of an earlier run, by what they listen on.
type inherited struct {
	udp map[netip.AddrPort][]*net.UDPConn
	tcp map[netip.AddrPort]*net.TCPListener
}

// inherit takes the files. Those that are no sockets that listen, or do so in another network, are closed.
func inherit(files []*os.File) inherited {
	i := inherited{map[netip.AddrPort][]*net.UDPConn{}, map[netip.AddrPort]*net.TCPListener{}}
	for _, f := range files {
		if isHere(f) {
			i.add(f)
		}
		_ = f.Close() // what is of use has a descriptor of its own
	}
	return i
}

func (i inherited) add(f *os.File) {
	if c, err := net.FilePacketConn(f); err == nil {
		if conn, ok := c.(*net.UDPConn); ok && conn.RemoteAddr() == nil {
			addr := addrOf(conn.LocalAddr())
			i.udp[addr] = append(i.udp[addr], conn)
			return
		}
		_ = c.Close()
	}
	if option(f, unix.GetsockoptInt, unix.SO_ACCEPTCONN) != 1 {
		return
	}
	if l, err := net.FileListener(f); err == nil {
		listener, ok := l.(*net.TCPListener)
		if addr := addrOf(l.Addr()); ok && i.tcp[addr] == nil {
			i.tcp[addr] = listener
			return
		}
		_ = l.Close()
	}
}

// isHere says whether a socket is in the network namespace that new ones are in.
func isHere(f *os.File) bool {
	own, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(own) //nolint:errcheck // it was only asked
	here, err := unix.GetsockoptUint64(own, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return true // before Linux 5.14 nobody knows
	}
	return option(f, unix.GetsockoptUint64, unix.SO_NETNS_COOKIE) == here
}

// option is one of a socket, and 0 of what is none.
func option[T any](f *os.File, get func(fd, level, name int) (T, error), name int) (value T) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { value, _ = get(int(fd), unix.SOL_SOCKET, name) })
	}
	return value
}

// take returns what listens on an address.
func (i inherited) take(addr netip.AddrPort) ([]*net.UDPConn, *net.TCPListener) {
	udp, tcp := i.udp[addr], i.tcp[addr]
	delete(i.udp, addr)
	delete(i.tcp, addr)
	return udp, tcp
}

// close closes what was not taken.
func (i inherited) close() {
	for addr := range i.udp {
		(&endpoint{udp: i.udp[addr]}).close()
	}
	for _, l := range i.tcp {
		_ = l.Close()
	}
}

// Inherited says whether sockets of an earlier run are in use, on which clients may wait since before this one began.
func (s *Server) Inherited() bool {
	return slices.ContainsFunc(s.endpoints, func(e *endpoint) bool { return e.inherited })
}

// Sockets are all that requests arrive at, to be given to the next run as [Options.Inherited].
func (s *Server) Sockets() []syscall.Conn {
	var all []syscall.Conn
	for _, e := range s.endpoints {
		all = append(all, e.tcp)
		for _, c := range e.udp {
			all = append(all, c)
		}
	}
	return all
}
