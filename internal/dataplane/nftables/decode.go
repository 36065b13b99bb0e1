package nftables

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// What comes from the kernel is taken for what anybody may have sent: what does not fit its length ends there.

type received struct {
	kind, flags uint16
	number      uint32
	body        []byte
}

// messages in what was read at once.
func messages(b []byte) iter.Seq[received] {
	return func(yield func(received) bool) {
		for len(b) >= unix.NLMSG_HDRLEN {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return
			}
			m := received{
				kind: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
				number: binary.NativeEndian.Uint32(b[8:]), body: b[unix.NLMSG_HDRLEN:size],
			}
			if !yield(m) {
				return
			}
			b = b[min(align4(size), len(b)):]
		}
	}
}

// complaintOf reads an error or acknowledgement.
func complaintOf(m received) (complaint, bool) {
	if m.kind != unix.NLMSG_ERROR || len(m.body) < 4+unix.NLMSG_HDRLEN {
		return complaint{}, false
	}
	c := complaint{
		err:     unix.Errno(-int32(binary.NativeEndian.Uint32(m.body))), //nolint:gosec // the kernel's errors are negative
		message: binary.NativeEndian.Uint32(m.body[4+8:]),
	}
	rest := m.body[4+unix.NLMSG_HDRLEN:]
	if m.flags&unix.NLM_F_CAPPED == 0 { // the whole request is in it
		rest = rest[min(align4(max(0, int(binary.NativeEndian.Uint32(m.body[4:]))-unix.NLMSG_HDRLEN)), len(rest)):]
	}
	if m.flags&unix.NLM_F_ACK_TLVS == 0 {
		return c, true
	}
	for kind, value := range attrs(rest) {
		switch {
		case kind == unix.NLMSGERR_ATTR_MSG:
			c.text = text(value)
		case kind == unix.NLMSGERR_ATTR_OFFS && len(value) == 4:
			c.offset = binary.NativeEndian.Uint32(value)
		}
	}
	return c, true
}

// attrType is NLA_TYPE_MASK.
const attrType = 0x3fff

// attrs in a body, without their flags.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= attrHeader {
			size := int(binary.NativeEndian.Uint16(b))
			if size < attrHeader || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&attrType, b[attrHeader:size]) {
				return
			}
			b = b[min(align4(size), len(b)):]
		}
	}
}

// text is a string without the zero byte at its end.
func text(b []byte) string {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return string(b)
}

// number of up to 8 bytes in network order; ok says that it has that many.
func number(b []byte, size int) (value uint64, ok bool) {
	if len(b) != size {
		return 0, false
	}
	for _, c := range b {
		value = value<<8 | uint64(c)
	}
	return value, true
}
