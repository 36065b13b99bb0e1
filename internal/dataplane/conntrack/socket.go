package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// receiveSize holds what the kernel sends at once, which is 32 KiB at most (netlink_recvmsg). What does not fit would be cut off, and refused.
	receiveSize = 64 << 10
	// answerTime is far more than the kernel ever needs: it answers within the system call.
	answerTime = 10 * time.Second
)

// A socket is a netlink socket in the network namespace of the thread that opened it, with one buffer for all that it receives.
type socket struct {
	fd       int
	seq      uint32
	received []byte
	sent     []byte
}

func open() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netfilter socket: %w; the kernel needs CONFIG_NETFILTER_NETLINK", err)
	}
	s := &socket{fd: fd, received: make([]byte, receiveSize)}
	wait := unix.NsecToTimeval(answerTime.Nanoseconds())
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set a netfilter socket up: %w", err), s.close())
	}
	return s, nil
}

func (s *socket) close() error { return unix.Close(s.fd) }

func (s *socket) send(b []byte) error {
	for {
		err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receive returns what the kernel sends next. It is good until the next call.
func (s *socket) receive() ([]byte, error) {
	for {
		// Not recvmsg, which allocates the sender's address: only the kernel, and who could delete entries himself, can send here.
		n, err := unix.Read(s.fd, s.received)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, err
		}
		return s.received[:n], nil
	}
}

// A reply is one message from the kernel.
type reply struct {
	kind, flags uint16
	seq         uint32
	body        []byte
}

// errno of a message that ends a request, nil for success.
func (r reply) errno() error {
	if len(r.body) < 4 {
		return errShort
	}
	if n := int32(binary.NativeEndian.Uint32(r.body)); n != 0 {
		return unix.Errno(-n)
	}
	return nil
}

// replies are the messages in what was received. The last one's error is errShort if they are cut off.
func replies(b []byte) iter.Seq2[reply, error] {
	return func(yield func(reply, error) bool) {
		for len(b) > 0 {
			if len(b) < messageHeader {
				yield(reply{}, errShort)
				return
			}
			size := int(binary.NativeEndian.Uint32(b))
			if size < messageHeader || size > len(b) {
				yield(reply{}, errShort)
				return
			}
			r := reply{
				kind: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
				seq: binary.NativeEndian.Uint32(b[8:]), body: b[messageHeader:size],
			}
			if !yield(r, nil) {
				return
			}
			b = b[min(align(size), len(b)):]
		}
	}
}
