package server

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	nameSpace    = unix.SizeofSockaddrInet6
	controlSpace = 64 // more than a header with either PKTINFO
)

// A sender calls sendmmsg(2). Tests have one that sends less.
type sender func(fd uintptr, messages []unix.Mmsghdr) (sent int, errno syscall.Errno)

// A batch reads and writes many packets by one system call, and a single one by a call for one, which costs less. All that the kernel is pointed at lies
// in it, so nothing is allocated. It belongs to one goroutine.
type batch struct {
	raw      syscall.RawConn
	pktinfo  bool // the socket listens on all addresses, and tells which one a packet came to
	messages []incoming
	in       []unix.Mmsghdr
	out      []unix.Mmsghdr
	outIovs  []unix.Iovec
	replies  [][maxUDPReply]byte
	sendAll  sender

	// single is how the next packet is read: alone, which costs less where questions come one at a time. It begins when there was but one, and ends when
	// two in a row were there before they were waited for; early is how many were.
	single, waited         bool
	early                  int
	received, queued, next int
	errno                  syscall.Errno
	// The arguments of RawConn, made once.
	receiveOnce func(fd uintptr) bool
	sendOnce    func(fd uintptr) bool
}

// incoming is the memory of one packet.
type incoming struct {
	envelope
	iov    unix.Iovec
	packet [maxRequest]byte
}

// An envelope says where a packet is from and, if the socket listens on all addresses, where it came to.
type envelope struct {
	controlLen uint64
	control    [controlSpace]byte // aligned as the struct is
	name       [nameSpace]byte
	nameLen    uint32
}

func newBatch(conn *net.UDPConn, size int, pktinfo bool) (*batch, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	b := &batch{
		raw: raw, pktinfo: pktinfo, sendAll: sendmmsg,
		messages: make([]incoming, size), in: make([]unix.Mmsghdr, size),
		out: make([]unix.Mmsghdr, size), outIovs: make([]unix.Iovec, size), replies: make([][maxUDPReply]byte, size),
	}
	for i := range b.in {
		m, h := &b.messages[i], &b.in[i].Hdr
		m.iov.Base = &m.packet[0]
		m.iov.SetLen(maxRequest)
		h.Name, h.Iov = &m.name[0], &m.iov
		h.SetIovlen(1)
		b.out[i].Hdr.Iov = &b.outIovs[i]
		b.out[i].Hdr.SetIovlen(1)
		b.outIovs[i].Base = &b.replies[i][0]
	}
	b.received = size // all headers are to be prepared
	b.receiveOnce, b.sendOnce = b.tryReceive, b.trySend
	return b, nil
}

// receive waits for packets and returns how many there are.
func (b *batch) receive() (int, error) {
	for i := range b.received {
		h := &b.in[i].Hdr
		h.Namelen, h.Flags = nameSpace, 0
		if b.pktinfo {
			h.Control = &b.messages[i].control[0]
			h.SetControllen(controlSpace)
		}
	}
	b.received, b.queued, b.waited = 0, 0, false
	if err := b.raw.Read(b.receiveOnce); err != nil {
		return 0, err
	}
	if b.errno != 0 {
		return 0, os.NewSyscallError("recvmmsg", b.errno)
	}
	return b.received, nil
}

func (b *batch) tryReceive(fd uintptr) bool {
	for {
		n, errno := b.read(fd)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			b.waited = true
			return false
		case 0:
			b.received = n
			b.adapt()
		}
		b.errno = errno
		return true
	}
}

// adapt chooses how to read from how many there were.
func (b *batch) adapt() {
	if b.early++; b.waited || !b.single {
		b.early = 0
	}
	b.single = b.received == 1 && b.early < 2
}

// read reads what is there: one packet, or as many as there is room for.
func (b *batch) read(fd uintptr) (int, syscall.Errno) {
	if !b.single {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in[0])), uintptr(len(b.in)), unix.MSG_DONTWAIT, 0, 0)
		return int(n), errno
	}
	m, h := &b.messages[0], &b.in[0]
	var n uintptr
	var errno syscall.Errno
	if b.pktinfo {
		n, _, errno = unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&h.Hdr)), unix.MSG_DONTWAIT)
	} else {
		n, _, errno = unix.Syscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&m.packet[0])), maxRequest, unix.MSG_DONTWAIT|unix.MSG_TRUNC,
			uintptr(unsafe.Pointer(&m.name[0])), uintptr(unsafe.Pointer(&h.Hdr.Namelen)))
		if errno == 0 && n > maxRequest { // the length of the packet, not of what was read
			n, h.Hdr.Flags = maxRequest, unix.MSG_TRUNC
		}
	}
	h.Len = uint32(n)
	return 1, errno
}

// packet is what came i-th, and from whom. It is false if it is longer than any request, or from nowhere.
func (b *batch) packet(i int) (packet []byte, client netip.AddrPort, ok bool) {
	h := &b.in[i]
	m := &b.messages[i]
	m.nameLen = h.Hdr.Namelen
	m.controlLen = 0
	if b.pktinfo {
		if m.controlLen = uint64(h.Hdr.Controllen); !m.turn() {
			return nil, client, false
		}
	}
	client = m.addr()
	return m.packet[:h.Len], client, h.Hdr.Flags&unix.MSG_TRUNC == 0 && client.IsValid() && client.Port() != 0
}

// addr is the client's.
func (e *envelope) addr() netip.AddrPort {
	port := binary.BigEndian.Uint16(e.name[2:])
	switch binary.NativeEndian.Uint16(e.name[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(e.name[4:8])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(e.name[8:24])).Unmap(), port)
	default:
		return netip.AddrPort{}
	}
}

// turn makes what the kernel said of the address that the packet came to into the wish to answer from there. By which interface is the
// routing's business, but for link-local addresses, which mean nothing without one.
func (e *envelope) turn() bool {
	if e.controlLen < unix.SizeofCmsghdr || e.controlLen > controlSpace {
		return false
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&e.control[0]))
	data := unsafe.Pointer(&e.control[unix.CmsgLen(0)])
	switch {
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && e.controlLen >= uint64(unix.CmsgLen(unix.SizeofInet4Pktinfo)):
		(*unix.Inet4Pktinfo)(data).Ifindex = 0
		e.controlLen = uint64(unix.CmsgSpace(unix.SizeofInet4Pktinfo))
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && e.controlLen >= uint64(unix.CmsgLen(unix.SizeofInet6Pktinfo)):
		info := (*unix.Inet6Pktinfo)(data)
		if !netip.AddrFrom16(info.Addr).IsLinkLocalUnicast() {
			info.Ifindex = 0
		}
		e.controlLen = uint64(unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	default:
		return false
	}
	return true
}

// room is where the next reply is to be written.
func (b *batch) room() []byte { return b.replies[b.queued][:] }

// queue takes a reply to the i-th packet. If it is in the array of room, it is not copied.
func (b *batch) queue(i int, reply []byte) {
	b.outIovs[b.queued].Base = &reply[0]
	b.outIovs[b.queued].SetLen(len(reply))
	b.messages[i].address(&b.out[b.queued].Hdr)
	b.queued++
}

// address addresses a message to whom the envelope came from.
func (e *envelope) address(h *unix.Msghdr) {
	h.Name, h.Namelen = &e.name[0], e.nameLen
	h.Control = nil
	h.SetControllen(0)
	if e.controlLen > 0 {
		h.Control = &e.control[0]
		h.SetControllen(int(e.controlLen))
	}
}

// flush sends what is queued. Nobody is waited for: what the kernel has no room for is lost, as UDP may be. It returns how many were not sent.
func (b *batch) flush() (lost int, err error) {
	for b.next = 0; b.next < b.queued; {
		if err := b.raw.Write(b.sendOnce); err != nil {
			return lost + b.queued - b.next, err
		}
		switch {
		case b.errno == unix.EAGAIN || b.errno == unix.ENOBUFS:
			return lost + b.queued - b.next, nil
		case b.errno != 0: // a client that cannot be reached, or may not
			lost++
			b.next++
		}
	}
	return lost, nil
}

// trySend sends from the message number next on, and adds how many went. It does not wait.
func (b *batch) trySend(fd uintptr) bool {
	n, errno := b.sendAll(fd, b.out[b.next:b.queued])
	if b.errno = errno; errno == 0 {
		b.next += n
	}
	return true
}

func sendmmsg(fd uintptr, messages []unix.Mmsghdr) (int, syscall.Errno) {
	if len(messages) == 1 {
		return sendmsg(fd, &messages[0].Hdr)
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// sendmsg is for one message, which costs less so.
func sendmsg(fd uintptr, h *unix.Msghdr) (int, syscall.Errno) {
	const flags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	for {
		var errno syscall.Errno
		if h.Control == nil {
			_, _, errno = unix.Syscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(h.Iov.Base)), uintptr(h.Iov.Len), flags,
				uintptr(unsafe.Pointer(h.Name)), uintptr(h.Namelen))
		} else {
			_, _, errno = unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(h)), flags)
		}
		switch errno {
		case unix.EINTR:
		case 0:
			return 1, 0
		default:
			return 0, errno
		}
	}
}

// sendOne sends one reply that was waited for.
func sendOne(raw syscall.RawConn, e *envelope, reply []byte) error {
	iov := unix.Iovec{Base: &reply[0]}
	iov.SetLen(len(reply))
	message := []unix.Mmsghdr{{}}
	message[0].Hdr.Iov = &iov
	message[0].Hdr.SetIovlen(1)
	e.address(&message[0].Hdr)
	var errno syscall.Errno
	if err := raw.Write(func(fd uintptr) bool {
		_, errno = sendmmsg(fd, message)
		return true
	}); err != nil {
		return err
	}
	if errno != 0 {
		return os.NewSyscallError("sendmmsg", errno)
	}
	return nil
}
