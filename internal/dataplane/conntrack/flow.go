package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/model"
)

// A flow is an entry of the kernel's table, as far as it is needed here.
type flow struct {
	protocol model.Protocol
	// src and dst are the original ones, as its first packet had them.
	src, dst netip.AddrPort
	// endpoint is where the answers come from: another address than dst if the destination was translated.
	endpoint netip.AddrPort
	status   uint32 // IPS_… bits
	// id tells the entry from another of the same tuple.
	id uint32
	// zone is of both directions, tupleZone of the original one alone; at most one of them is set.
	zone, tupleZone uint16
}

func (f *flow) answered() bool { return f.status&statusSeenReply != 0 }

// From the kernel's nfnetlink_conntrack.h and nf_conntrack_common.h.
const (
	ctNew    = 0
	ctGet    = 1
	ctDelete = 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaTimeout    = 7
	ctaID         = 12
	ctaZone       = 18
	ctaFilter     = 25
	ctaStatusMask = 26

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaTupleZone  = 3

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaFilterOrig  = 1
	ctaFilterReply = 2

	filterIPDst    = 1 << 1
	filterProtoNum = 1 << 3

	statusSeenReply = 1 << 1
)

// Sizes in messages.
const (
	messageHeader   = unix.SizeofNlMsghdr
	familyHeader    = 4 // struct nfgenmsg
	attributeHeader = unix.SizeofNlAttr
	attributeType   = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
)

var (
	errShort = errors.New("attribute is cut off")
	errTuple = errors.New("no address, protocol, port or ID")
)

// attributes calls f with each attribute of a message or of a nested attribute, in the order in which they are.
func attributes(b []byte, f func(kind uint16, value []byte) error) error {
	for len(b) > 0 {
		if len(b) < attributeHeader {
			return errShort
		}
		size := int(binary.NativeEndian.Uint16(b))
		if size < attributeHeader || size > len(b) {
			return errShort
		}
		if err := f(binary.NativeEndian.Uint16(b[2:])&attributeType, b[attributeHeader:size]); err != nil {
			return err
		}
		b = b[min(align(size), len(b)):]
	}
	return nil
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// decode reads what follows the message header of a dumped entry: a struct nfgenmsg and attributes. What has no ports is an error of the caller's
// filter, and no flow.
func decode(b []byte, f *flow) error {
	*f = flow{}
	if len(b) < familyHeader {
		return errShort
	}
	var reply tuple
	var seen int
	err := attributes(b[familyHeader:], func(kind uint16, v []byte) error {
		switch kind {
		case ctaTupleOrig:
			var t tuple
			if err := t.decode(v); err != nil {
				return fmt.Errorf("original tuple: %w", err)
			}
			f.protocol, f.src, f.dst, f.tupleZone = t.protocol, t.src, t.dst, t.zone
			seen |= 1
		case ctaTupleReply:
			if err := reply.decode(v); err != nil {
				return fmt.Errorf("reply tuple: %w", err)
			}
			f.endpoint = reply.src
			seen |= 2
		case ctaStatus:
			return number32(v, &f.status)
		case ctaID:
			seen |= 4
			return number32(v, &f.id)
		case ctaZone:
			return number16(v, &f.zone)
		}
		return nil
	})
	if err == nil && seen != 7 {
		err = errTuple
	}
	return err
}

// A tuple is one direction of an entry.
type tuple struct {
	protocol model.Protocol
	src, dst netip.AddrPort
	zone     uint16
}

func (t *tuple) decode(b []byte) error {
	var src, dst netip.Addr
	var ports [2]uint16
	var seen int
	err := attributes(b, func(kind uint16, v []byte) error {
		switch kind {
		case ctaTupleIP:
			return attributes(v, func(kind uint16, v []byte) error {
				switch {
				case kind == ctaIPv4Src && len(v) == 4, kind == ctaIPv6Src && len(v) == 16:
					src, _ = netip.AddrFromSlice(v)
				case kind == ctaIPv4Dst && len(v) == 4, kind == ctaIPv6Dst && len(v) == 16:
					dst, _ = netip.AddrFromSlice(v)
				}
				return nil
			})
		case ctaTupleProto:
			return attributes(v, func(kind uint16, v []byte) error {
				switch kind {
				case ctaProtoNum:
					if len(v) != 1 {
						return errShort
					}
					t.protocol = model.Protocol(v[0])
				case ctaProtoSrcPort:
					seen |= 1
					return number16(v, &ports[0])
				case ctaProtoDstPort:
					seen |= 2
					return number16(v, &ports[1])
				}
				return nil
			})
		case ctaTupleZone:
			return number16(v, &t.zone)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if seen != 3 || t.protocol == 0 || !src.IsValid() || !dst.IsValid() || src.Is4() != dst.Is4() {
		return errTuple
	}
	t.src, t.dst = netip.AddrPortFrom(src, ports[0]), netip.AddrPortFrom(dst, ports[1])
	return nil
}

func number16(v []byte, to *uint16) error {
	if len(v) != 2 {
		return errShort
	}
	*to = binary.BigEndian.Uint16(v)
	return nil
}

func number32(v []byte, to *uint32) error {
	if len(v) != 4 {
		return errShort
	}
	*to = binary.BigEndian.Uint32(v)
	return nil
}

// A message is written at the end of a buffer.
type message struct {
	buffer []byte
	start  int
}

// begin appends the headers of a message to a buffer.
func begin(buffer []byte, operation, flags uint16, seq uint32, v6 bool) message {
	m := message{buffer: buffer, start: len(buffer)}
	m.buffer = append(m.buffer, 0, 0, 0, 0)
	m.buffer = binary.NativeEndian.AppendUint16(m.buffer, unix.NFNL_SUBSYS_CTNETLINK<<8|operation)
	m.buffer = binary.NativeEndian.AppendUint16(m.buffer, unix.NLM_F_REQUEST|flags)
	m.buffer = binary.NativeEndian.AppendUint32(m.buffer, seq)
	m.buffer = append(m.buffer, 0, 0, 0, 0)
	family := byte(unix.AF_INET)
	if v6 {
		family = unix.AF_INET6
	}
	m.buffer = append(m.buffer, family, unix.NFNETLINK_V0, 0, 0)
	return m
}

// end fixes the length of the message and returns the buffer.
func (m *message) end() []byte {
	binary.NativeEndian.PutUint32(m.buffer[m.start:], uint32(len(m.buffer)-m.start))
	return m.buffer
}

// nest opens a nested attribute, for close.
func (m *message) nest(kind uint16) (at int) {
	at = len(m.buffer)
	m.buffer = append(m.buffer, 0, 0)
	m.buffer = binary.NativeEndian.AppendUint16(m.buffer, kind|unix.NLA_F_NESTED)
	return at
}

func (m *message) close(at int) {
	binary.NativeEndian.PutUint16(m.buffer[at:], uint16(len(m.buffer)-at))
}

func (m *message) put(kind uint16, value ...byte) {
	m.buffer = binary.NativeEndian.AppendUint16(m.buffer, uint16(attributeHeader+len(value)))
	m.buffer = binary.NativeEndian.AppendUint16(m.buffer, kind)
	m.buffer = append(m.buffer, value...)
	for len(m.buffer)%unix.NLMSG_ALIGNTO != 0 {
		m.buffer = append(m.buffer, 0)
	}
}

func (m *message) put16(kind, v uint16) { m.put(kind, byte(v>>8), byte(v)) }

func (m *message) put32(kind uint16, v uint32) {
	m.put(kind, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

// address puts the source or destination.
func (m *message) address(addr netip.Addr, v4, v6 uint16) {
	if addr.Is4() {
		b := addr.As4()
		m.put(v4, b[:]...)
		return
	}
	b := addr.As16()
	m.put(v6, b[:]...)
}

// tuple puts one direction.
func (m *message) tuple(kind uint16, t tuple) {
	at := m.nest(kind)
	in := m.nest(ctaTupleIP)
	m.address(t.src.Addr(), ctaIPv4Src, ctaIPv6Src)
	m.address(t.dst.Addr(), ctaIPv4Dst, ctaIPv6Dst)
	m.close(in)
	in = m.nest(ctaTupleProto)
	m.put(ctaProtoNum, byte(t.protocol))
	m.put16(ctaProtoSrcPort, t.src.Port())
	m.put16(ctaProtoDstPort, t.dst.Port())
	m.close(in)
	if t.zone != 0 {
		m.put16(ctaTupleZone, t.zone)
	}
	m.close(at)
}

// deletion appends the message that deletes the flow, and no other: without a tuple the kernel would flush the table, so there always is one.
func deletion(buffer []byte, f *flow, seq uint32) []byte {
	m := begin(buffer, ctDelete, unix.NLM_F_ACK, seq, f.dst.Addr().Is6())
	m.tuple(ctaTupleOrig, tuple{protocol: f.protocol, src: f.src, dst: f.dst, zone: f.tupleZone})
	m.put32(ctaID, f.id)
	if f.zone != 0 {
		m.put16(ctaZone, f.zone)
	}
	return m.end()
}

// A question is which entries to dump; the kernel filters.
type question struct {
	kind
	// to is the only original destination, if it is valid.
	to netip.Addr
	// unanswered: only entries without an answer. Kernels before 5.15 ignore that.
	unanswered bool
}

// dump appends the message that asks it.
func (q question) dump(buffer []byte, seq uint32) []byte {
	m := begin(buffer, ctGet, unix.NLM_F_DUMP, seq, q.v6)
	flags := uint32(filterProtoNum)
	at := m.nest(ctaTupleOrig)
	if q.to.IsValid() {
		flags |= filterIPDst
		in := m.nest(ctaTupleIP)
		m.address(q.to, ctaIPv4Dst, ctaIPv6Dst)
		m.close(in)
	}
	in := m.nest(ctaTupleProto)
	m.put(ctaProtoNum, byte(q.protocol))
	m.close(in)
	m.close(at)
	at = m.nest(ctaFilter)
	m.put(ctaFilterOrig, binary.NativeEndian.AppendUint32(nil, flags)...)
	m.close(at)
	if q.unanswered {
		m.put32(ctaStatus, 0)
		m.put32(ctaStatusMask, statusSeenReply)
	}
	return m.end()
}
