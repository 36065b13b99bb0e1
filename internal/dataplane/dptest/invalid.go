package dptest

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/model"
)

// invalid sends, beside the segments of an open connection, some that are out of its window. Conntrack takes them for invalid, and does not translate
// them back: were they let pass, the client would get them from an address it never heard of, and answer RST, with which the endpoint
// would end the connection (kubernetes #74839).
func invalid(c *Case) {
	c.set(externalLocal, "a x")
	for _, from := range []string{"b -> cluster", "outside -> lb", "outside -> cluster"} {
		e, err := parseExpectation(from + " = a x")
		c.must(err)
		for _, v6 := range []bool{false, true} {
			to, err := c.Frontend(e.frontend, v6)
			c.must(err)
			for range 4 { // either endpoint
				if err := c.disturbed(c.Place(e.clients[0]), to); err != nil {
					c.errorf("from %s to %s: %v", e.clients[0], to, err)
				}
			}
		}
	}
}

func (c *Case) disturbed(client *Place, to netip.AddrPort) error {
	conn, err := client.Dial(model.TCP, to, c.patience)
	if err != nil {
		return err
	}
	for range 3 {
		var answer Answer
		if answer, err = conn.Ask(c.patience); err != nil {
			break
		}
		var sent, received uint32
		if sent, received, err = conn.sequence(); err != nil {
			break
		}
		const beyond = 1 << 29 // of any window
		segment := segment{from: c.Target(), to: answer.Seen.Port(), sequence: received + beyond, acknowledged: sent}
		if err = c.Place(answer.Server).send(segment, answer.Seen.Addr()); err != nil {
			break
		}
	}
	if err == nil {
		_, err = conn.Ask(c.patience)
	}
	return errors.Join(err, conn.Close())
}

// sequence is the number of the next byte to send, and of the next to be received.
func (c *Conn) sequence() (sent, received uint32, err error) {
	const repairSend, repairReceive, offWithoutProbe = 2, 1, -1 // TCP_SEND_QUEUE and so on
	raw, err := c.file.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		queue := func(number int) uint32 {
			setErr := unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, number)
			value, getErr := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
			err = errors.Join(err, setErr, getErr)
			return uint32(value)
		}
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
		sent, received = queue(repairSend), queue(repairReceive)
		err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, offWithoutProbe))
	})
	return sent, received, errors.Join(controlErr, err)
}

// A segment of TCP with the flag ACK and without data.
type segment struct {
	from, to               uint16 // ports
	sequence, acknowledged uint32
}

// send sends a segment past the kernel's TCP.
func (p *Place) send(s segment, to netip.Addr) error {
	header := make([]byte, 20)
	binary.BigEndian.PutUint16(header[0:], s.from)
	binary.BigEndian.PutUint16(header[2:], s.to)
	binary.BigEndian.PutUint32(header[4:], s.sequence)
	binary.BigEndian.PutUint32(header[8:], s.acknowledged)
	header[12], header[13] = 5<<4, 1<<4 // words, ACK
	binary.BigEndian.PutUint16(header[14:], 1000)
	pseudo := append(p.Addr(to.Is6()).AsSlice(), to.AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, byte(len(header))) // as long as there is no more of it, the sum is that of IPv6 too
	binary.BigEndian.PutUint16(header[16:], checksum(append(pseudo, header...)))
	return p.Do(func() error {
		family := unix.AF_INET
		if to.Is6() {
			family = unix.AF_INET6
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		return errors.Join(unix.Sendto(fd, header, 0, sockaddr(netip.AddrPortFrom(to, 0))), unix.Close(fd))
	})
}

// checksum is RFC 1071's, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
