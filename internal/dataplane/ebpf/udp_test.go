package ebpf

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// A talker is a UDP socket that is not connected. With v6 it is an IPv6 socket, also for IPv4.
type talker struct {
	t  testing.TB
	fd int
	v6 bool
}

func newTalker(t testing.TB, p *place, v6 bool) *talker {
	t.Helper()
	s := &talker{t: t, v6: v6}
	p.do(t, func() (err error) {
		family := unix.AF_INET
		if v6 {
			family = unix.AF_INET6
		}
		if s.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20})
	})
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

// ask sends to a frontend and returns who answers; the answer must come from where the question went.
func (s *talker) ask(to netip.AddrPort) string {
	s.t.Helper()
	if err := again(func() error { return unix.Sendto(s.fd, []byte("?"), 0, toSockaddr(to, s.v6)) }); err != nil {
		s.t.Fatalf("send to %s: %v", to, err)
	}
	buffer := make([]byte, 9)
	n, from, err := recvfrom(s.fd, buffer)
	if err != nil {
		s.t.Fatalf("no answer from %s: %v", to, err)
	}
	if got := unmap(fromSockaddr(s.t, from)); got != to {
		s.t.Errorf("asked %s, and %s answered", to, got)
	}
	return string(buffer[:n])
}

// eachTalker is IPv4, IPv6, and IPv4 through an IPv6 socket.
func eachTalker(t *testing.T, p *place, f func(t *testing.T, s *talker, v6 bool)) {
	for name, c := range map[string]struct{ socket, frontend bool }{"IPv4": {}, "IPv6": {true, true}, "mapped": {true, false}} {
		t.Run(name, func(t *testing.T) { f(t, newTalker(t, p, c.socket), c.frontend) })
	}
}

func TestUnconnectedSocketStaysWithItsEndpoint(t *testing.T) {
	p := newPlace(t)
	n := newNode(t)
	eachTalker(t, p, func(t *testing.T, s *talker, v6 bool) {
		n.t = t
		n.set(spec{n: 1, endpoints: []int{1, 2, 3, 4}})
		n.set(spec{n: 2, endpoints: []int{5, 6, 7, 8}})
		n.sync()
		first, other := s.ask(at(clusterIP(v6, 1))), s.ask(at(clusterIP(v6, 2)))
		for i := range 20 {
			if got := s.ask(at(clusterIP(v6, 1))); got != first {
				t.Fatalf("datagram %d went to %s, the first to %s", i, got, first)
			}
			if got := s.ask(at(clusterIP(v6, 2))); got != other {
				t.Fatalf("datagram %d went to %s, the first to %s", i, got, other)
			}
		}
		// It stays while others go, whose slots the last ones take, and moves when its own endpoint goes.
		var stay int
		_, _ = fmt.Sscan(first, &stay)
		n.set(spec{n: 1, endpoints: []int{stay, 9}})
		n.sync()
		if got := s.ask(at(clusterIP(v6, 1))); got != first {
			t.Errorf("a datagram went to %s, and the socket's endpoint %s was still there", got, first)
		}
		n.set(spec{n: 1, endpoints: []int{9}})
		n.sync()
		if got := s.ask(at(clusterIP(v6, 1))); got != "9" {
			t.Errorf("a datagram went to %s, and only 9 was there", got)
		}
	})
}

func TestTwoFrontendsOfOneEndpoint(t *testing.T) {
	p := newPlace(t)
	n := newNode(t)
	n.set(spec{n: 1, endpoints: []int{1}})
	n.sync()
	eachTalker(t, p, func(t *testing.T, s *talker, v6 bool) {
		s.t = t
		for range 3 { // ask checks where the answer comes from
			s.ask(at(clusterIP(v6, 1)))
			s.ask(netip.AddrPortFrom(nodeAddr(v6), nodePort(1)))
		}
	})
}

func TestDirectDatagramsAreLeftAlone(t *testing.T) {
	p := newPlace(t)
	n := newNode(t)
	n.set(spec{n: 1, endpoints: []int{1}})
	n.sync()
	eachTalker(t, p, func(t *testing.T, s *talker, v6 bool) {
		s.t = t
		for range 3 { // ask checks where the answer comes from: who was asked last, under which address
			s.ask(netip.AddrPortFrom(endpointIP(v6, 2), targetPort))
			s.ask(at(clusterIP(v6, 1)))
			s.ask(netip.AddrPortFrom(endpointIP(v6, 1), targetPort))
		}
	})
}

func TestConnectedSocketMayNameItsFrontend(t *testing.T) {
	p := newPlace(t)
	n := newNode(t)
	n.set(spec{n: 1, endpoints: []int{1, 2, 3, 4, 5, 6, 7, 8, 9}})
	n.sync()
	eachTalker(t, p, func(t *testing.T, s *talker, v6 bool) {
		s.t = t
		if err := unix.Connect(s.fd, toSockaddr(at(clusterIP(v6, 1)), s.v6)); err != nil {
			t.Fatal(err)
		}
		first := s.ask(at(clusterIP(v6, 1)))
		for range 10 {
			if got := s.ask(at(clusterIP(v6, 1))); got != first {
				t.Fatalf("%s answered, before it was %s", got, first)
			}
		}
	})
}

func TestMappedAddresses(t *testing.T) {
	p := newPlace(t)
	n := newNode(t)
	n.set(spec{n: 1, endpoints: []int{3}})
	n.sync()
	for name, kind := range map[string]int{"tcp": unix.SOCK_STREAM, "udp": unix.SOCK_DGRAM} {
		t.Run(name, func(t *testing.T) {
			to := at(clusterIP(false, 1))
			p.do(t, func() error {
				fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer func() { _ = unix.Close(fd) }()
				if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
					return err
				}
				if err := unix.Connect(fd, toSockaddr(to, true)); err != nil {
					return fmt.Errorf("connect: %w", err)
				}
				sa, err := unix.Getpeername(fd)
				if err != nil {
					return err
				}
				if got := fromSockaddr(t, sa); got.Addr() != netip.AddrFrom16(to.Addr().As16()) || got.Port() != to.Port() {
					t.Errorf("getpeername: %s, want %s mapped", got, to)
				}
				if _, err := unix.Write(fd, []byte("?")); err != nil {
					return err
				}
				buffer := make([]byte, 9)
				size, from, err := recvfrom(fd, buffer)
				if err != nil {
					return err
				}
				if string(buffer[:size]) != "3" {
					t.Errorf("%q answers, want 3", buffer[:size])
				}
				if name == "udp" && unmap(fromSockaddr(t, from)) != to {
					t.Errorf("recvfrom: %v, want %s", from, to)
				}
				return nil
			})
		})
	}
}
