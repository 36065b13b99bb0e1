package dptest

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/model"
)

// UDP clients take source ports one after the other: a port used again would meet what conntrack remembers of its last client. The range lies below the kernel's own.
const firstClientPort, lastClientPort = 12000, 29000

// An Answer is what a server says: who it is, and the address and port that the client is seen with.
type Answer struct {
	Server string
	Seen   netip.AddrPort
}

// A Conn is a client's connection, or its connected UDP socket. Its methods are for one goroutine at a time.
type Conn struct {
	protocol model.Protocol
	file     *os.File // a non-blocking socket: deadlines work
	buffer   [256]byte
}

// Dial connects from the place. No answer in time is os.ErrDeadlineExceeded, a refusal ECONNREFUSED.
func (p *Place) Dial(protocol model.Protocol, to netip.AddrPort, timeout time.Duration) (*Conn, error) {
	return p.dial(protocol, 0, to, timeout)
}

// DialFrom is Dial by TCP from a port of the client's choice.
func (p *Place) DialFrom(port uint16, to netip.AddrPort, timeout time.Duration) (*Conn, error) {
	return p.dial(model.TCP, port, to, timeout)
}

func (p *Place) dial(protocol model.Protocol, port uint16, to netip.AddrPort, timeout time.Duration) (*Conn, error) {
	c := &Conn{protocol: protocol}
	err := p.Do(func() error {
		fd, err := p.socket(protocol, to.Addr().Is6())
		if err != nil {
			return err
		}
		if port != 0 {
			err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, sockaddr(netip.AddrPortFrom(p.Addr(to.Addr().Is6()), port))))
			if err != nil {
				_ = unix.Close(fd)
				return err
			}
		}
		if err := unix.Connect(fd, sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			_ = unix.Close(fd)
			return err
		}
		c.file = os.NewFile(uintptr(fd), to.String())
		return nil
	})
	if err == nil && protocol == model.TCP {
		err = c.connected(timeout)
	}
	if err != nil {
		if c.file != nil {
			_ = c.file.Close()
		}
		return nil, fmt.Errorf("connect: %w", err)
	}
	return c, nil
}

// socket is a new one of the thread's namespace; a UDP socket has a port that no other had.
func (p *Place) socket(protocol model.Protocol, v6 bool) (int, error) {
	family, any := unix.AF_INET, netip.IPv4Unspecified()
	if v6 {
		family, any = unix.AF_INET6, netip.IPv6Unspecified()
	}
	kind := unix.SOCK_STREAM
	if protocol == model.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if protocol == model.TCP {
		// Closed with RST, so that no TIME_WAIT of one case meets another's connection.
		err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	} else {
		err = p.bind(fd, any)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (p *Place) bind(fd int, any netip.Addr) error {
	for {
		p.mu.Lock()
		port := p.nextPort
		if p.nextPort++; p.nextPort > lastClientPort {
			p.nextPort = firstClientPort
		}
		p.mu.Unlock()
		err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(any, port)))
		if !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// connected waits until a connection is made.
func (c *Conn) connected(timeout time.Duration) error {
	if err := c.file.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) bool {
		if _, result = unix.Getpeername(int(fd)); result == nil {
			return true
		}
		if code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
			result = err
			if err == nil {
				result = unix.Errno(code)
			}
			return true
		}
		return false
	})
	if err != nil {
		return err
	}
	return result
}

// resend is after how long a question is asked again over UDP, which may lose one.
const resend = time.Second

// Ask sends a question and returns the answer.
func (c *Conn) Ask(timeout time.Duration) (Answer, error) {
	deadline := time.Now().Add(timeout)
	for {
		try := deadline
		if c.protocol == model.UDP && time.Until(deadline) > resend {
			try = time.Now().Add(resend)
		}
		answer, err := c.askOnce(try)
		if !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(deadline) {
			return answer, err
		}
	}
}

func (c *Conn) askOnce(deadline time.Time) (Answer, error) {
	if err := c.file.SetDeadline(deadline); err != nil {
		return Answer{}, err
	}
	// EPERM is a packet that was dropped or rejected before it left; which of them, comes after.
	if _, err := c.file.WriteString("who?\n"); err != nil && !errors.Is(err, unix.EPERM) {
		return Answer{}, err
	}
	return c.Listen(deadline)
}

// Listen waits for an answer, or for what ends the connection.
func (c *Conn) Listen(deadline time.Time) (Answer, error) {
	if err := c.file.SetDeadline(deadline); err != nil {
		return Answer{}, err
	}
	size := 0
	for {
		n, err := c.file.Read(c.buffer[size:])
		size += n
		if err != nil {
			return Answer{}, err
		}
		if n == 0 || size == len(c.buffer) {
			return Answer{}, io.ErrUnexpectedEOF
		}
		if c.buffer[size-1] == '\n' {
			return parseAnswer(string(c.buffer[:size]))
		}
	}
}

func parseAnswer(line string) (Answer, error) {
	fields := strings.Fields(line)
	if len(fields) != 2 {
		return Answer{}, fmt.Errorf("a strange answer: %q", line)
	}
	seen, err := netip.ParseAddrPort(fields[1])
	return Answer{fields[0], seen}, err
}

// Retransmits is how many segments had to be sent again so far.
func (c *Conn) Retransmits() (n int, err error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = int(info.Total_retrans)
		}
	})
	return n, errors.Join(controlErr, err)
}

// Local is the client's own address.
func (c *Conn) Local() (netip.AddrPort, error) { return c.name(unix.Getsockname) }

// Remote is what the client thinks it is connected to.
func (c *Conn) Remote() (netip.AddrPort, error) { return c.name(unix.Getpeername) }

func (c *Conn) name(call func(int) (unix.Sockaddr, error)) (netip.AddrPort, error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var name unix.Sockaddr
	controlErr := raw.Control(func(fd uintptr) { name, err = call(int(fd)) })
	return addrPort(name), errors.Join(controlErr, err)
}

func addrPort(s unix.Sockaddr) netip.AddrPort {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr), uint16(s.Port))
	}
	return netip.AddrPort{}
}

// Close ends the connection at once.
func (c *Conn) Close() error { return c.file.Close() }

type askOptions struct {
	protocol model.Protocol
	to       netip.AddrPort
	timeout  time.Duration
}

// Ask is a new connection with one question.
func (p *Place) Ask(protocol model.Protocol, to netip.AddrPort, timeout time.Duration) (Answer, error) {
	return p.ask(askOptions{protocol, to, timeout})
}

func (p *Place) ask(o askOptions) (Answer, error) {
	c, err := p.Dial(o.protocol, o.to, o.timeout)
	if err != nil {
		return Answer{}, err
	}
	answer, err := c.Ask(o.timeout)
	return answer, errors.Join(err, c.Close())
}

// SendTo sends a question from a new UDP socket that is not connected, and returns the answer and whom it came from.
func (p *Place) SendTo(to netip.AddrPort, timeout time.Duration) (answer Answer, from netip.AddrPort, err error) {
	s, err := p.Unconnected(to.Addr().Is6())
	if err != nil {
		return Answer{}, netip.AddrPort{}, err
	}
	answer, from, err = s.Ask(to, timeout)
	return answer, from, errors.Join(err, s.Close())
}

// An Unconnected is a UDP socket that is not connected.
type Unconnected struct{ file *os.File }

// Unconnected makes a socket in the place.
func (p *Place) Unconnected(v6 bool) (*Unconnected, error) {
	s := &Unconnected{}
	return s, p.Do(func() error {
		fd, err := p.socket(model.UDP, v6)
		if err == nil {
			s.file = os.NewFile(uintptr(fd), "udp")
		}
		return err
	})
}

// Close closes the socket.
func (s *Unconnected) Close() error { return s.file.Close() }

// Ask sends a question and returns the answer, and whom it came from.
func (s *Unconnected) Ask(to netip.AddrPort, timeout time.Duration) (answer Answer, from netip.AddrPort, err error) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return Answer{}, netip.AddrPort{}, err
	}
	deadline := time.Now().Add(timeout)
	for {
		try := deadline
		if time.Until(deadline) > resend {
			try = time.Now().Add(resend)
		}
		if err := s.file.SetDeadline(try); err != nil {
			return Answer{}, netip.AddrPort{}, err
		}
		var buffer [256]byte
		var size int
		var sender unix.Sockaddr
		var failed error
		err := raw.Control(func(fd uintptr) { failed = unix.Sendto(int(fd), []byte("who?\n"), 0, sockaddr(to)) })
		if err == nil && (failed == nil || errors.Is(failed, unix.EPERM)) {
			err = raw.Read(func(fd uintptr) bool {
				size, sender, failed = unix.Recvfrom(int(fd), buffer[:], 0)
				return !errors.Is(failed, unix.EAGAIN)
			})
		}
		if err = errors.Join(err, failed); err == nil {
			answer, err = parseAnswer(string(buffer[:size]))
			return answer, addrPort(sender), err
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(deadline) {
			return Answer{}, netip.AddrPort{}, err
		}
	}
}
