package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// What goes to the kernel is written by hand, because a batch of 100,000 elements should cost about as much as copying it.

const (
	messageHeader = unix.NLMSG_HDRLEN + 4 // struct nlmsghdr and struct nfgenmsg
	attrHeader    = unix.NLA_HDRLEN
	nested        = unix.NLA_F_NESTED
	// maxList is how long the list of elements of one message becomes; the length of an attribute is 16 bits.
	maxList = 60_000
	// readTimeout ends waiting for a kernel that says nothing; it answers before send returns.
	readTimeout = 10 * time.Second
)

func align4(n int) int { return (n + 3) &^ 3 }

// attr appends an attribute.
func attr(b []byte, kind uint16, value ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// attr32 appends a number as nf_tables wants them, in network order.
func attr32(b []byte, kind uint16, value uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, attrHeader+4)
	b = binary.NativeEndian.AppendUint16(b, kind)
	return binary.BigEndian.AppendUint32(b, value)
}

func attr64(b []byte, kind uint16, value uint64) []byte {
	b = binary.NativeEndian.AppendUint16(b, attrHeader+8)
	b = binary.NativeEndian.AppendUint16(b, kind)
	return binary.BigEndian.AppendUint64(b, value)
}

func attrString(b []byte, kind uint16, value string) []byte {
	return attr(b, kind, append([]byte(value), 0)...)
}

// open begins an attribute that has others in it; [shut] ends it.
func open(b []byte, kind uint16) (out []byte, at int) {
	return append(b, 0, 0, byte(kind), byte(kind>>8)), len(b)
}

func shut(b []byte, at int) []byte {
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
	return b
}

// message appends a message of nf_tables. Its sequence number is n.
func message(b []byte, kind uint16, flags uint16, n uint32, body []byte) []byte {
	return raw(b, unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, n, unix.NFPROTO_INET, 0, body)
}

func raw(b []byte, kind, flags uint16, n uint32, family byte, resource uint16, body []byte) []byte {
	size := messageHeader + len(body)
	b = binary.NativeEndian.AppendUint32(b, uint32(size))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, n)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	b = append(b, body...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// A socket talks to nf_tables of the network namespace that it was opened in.
type socket struct {
	fd     int
	max    int // bytes of a batch
	buffer []byte
}

// maxBatch is what a batch is limited to where the kernel leaves it to us: some 25,000 elements. Larger changes are several batches, so that memory
// stays bounded and others get at the tables in between.
const maxBatch = 4 << 20

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	s := &socket{fd: fd, buffer: make([]byte, 64<<10)}
	if err := s.prepare(); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return s, nil
}

func (s *socket) prepare() error {
	if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	timeout := unix.NsecToTimeval(int64(readTimeout))
	err := errors.Join(
		unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
	)
	if err != nil {
		return err
	}
	// Without the privilege, which a user namespace doesn't give, net.core.wmem_max holds.
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, maxBatch) != nil {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, maxBatch)
	}
	size, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	s.max = min(size-4096, maxBatch)
	return err
}

func (s *socket) close() error { return unix.Close(s.fd) }

// A complaint is what the kernel has to say of one message of a batch.
type complaint struct {
	message uint32 // sequence number
	offset  uint32 // of the attribute that it means, in the message; 0 if it does not say
	err     unix.Errno
	text    string // its words, often none
}

// maxComplaints of one batch are kept.
const maxComplaints = 100

// errNoAnswer is returned when the kernel didn't say what has become of a batch.
var errNoAnswer = errors.New("the kernel did not acknowledge the batch")

// commit sends a batch whose last message asks for an acknowledgement. The kernel works it off before send returns, so its
// answers are there already.
func (s *socket) commit(batch []byte, last uint32) ([]complaint, error) {
	if err := unix.Sendto(s.fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send %d bytes: %w", len(batch), err)
	}
	var complaints []complaint
	done := false
	for {
		n, _, err := unix.Recvfrom(s.fd, s.buffer, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if !done && len(complaints) == 0 {
				return nil, errNoAnswer
			}
			return complaints, nil
		case errors.Is(err, unix.ENOBUFS):
			continue // more complaints than fit; the first ones do
		case err != nil:
			return nil, fmt.Errorf("read the kernel's answer: %w", err)
		}
		for m := range messages(s.buffer[:n]) {
			if c, ok := complaintOf(m); ok && c.err == 0 {
				done = done || c.message == last
			} else if ok && len(complaints) < maxComplaints {
				complaints = append(complaints, c)
			}
		}
	}
}

// ask sends one request and yields the bodies of the answers, without their struct nfgenmsg. A dump that was interrupted by a change is
// asked for again by the caller: it gets errInterrupted.
func (s *socket) ask(kind, flags uint16, body []byte, each func(kind uint16, body []byte) error) error {
	return s.askAbout(unix.NFPROTO_INET, kind, flags, body, each)
}

// askAbout asks about tables of one family, or of all.
func (s *socket) askAbout(family byte, kind, flags uint16, body []byte, each func(kind uint16, body []byte) error) error {
	const number = 1
	request := raw(nil, unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, number, family, 0, body)
	if err := unix.Sendto(s.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	var failed error
	interrupted := false
	for {
		n, _, err := unix.Recvfrom(s.fd, s.buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return fmt.Errorf("read the kernel's answer: %w", err)
		}
		for m := range messages(s.buffer[:n]) {
			if m.number != number {
				continue // of a request that was given up
			}
			interrupted = interrupted || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch c, isComplaint := complaintOf(m); {
			case isComplaint && c.err != 0:
				return errors.Join(c.err, failed)
			case isComplaint || m.kind == unix.NLMSG_DONE:
				if interrupted && failed == nil {
					return errInterrupted
				}
				return failed
			case failed == nil && len(m.body) >= 4:
				failed = each(m.kind&0xff, m.body[4:])
			}
			if flags&unix.NLM_F_DUMP == 0 {
				return failed
			}
		}
	}
}

// errInterrupted says that the tables changed while they were read.
var errInterrupted = errors.New("the tables kept changing while they were read")
