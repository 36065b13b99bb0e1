package forward

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// A question is what upstreams are asked, and what the cache is searched by: the name in lower case, type, class, and whether DO and CD are set.
// As one string it is a key of a map that can be looked up without allocating.
type question string

// The octets of a question behind its name.
const (
	questionTail = 2 + 2 + 1
	maxQuestion  = wire.MaxName + questionTail
	flagDO       = 1
	flagCD       = 2
)

// appendQuestion appends the question in q.
func appendQuestion(dst []byte, q *wire.Query) []byte {
	var flags byte
	if q.EDNS.DNSSECOK {
		flags |= flagDO
	}
	if q.CheckingDisabled {
		flags |= flagCD
	}
	dst = wire.AppendLower(dst, q.Name)
	return append(dst, byte(q.Type>>8), byte(q.Type), byte(q.Class>>8), byte(q.Class), flags)
}

func newQuestion(name []byte, rtype uint16) question {
	return question(appendQuestion(nil, &wire.Query{Name: name, Type: rtype, Class: dns.ClassINET}))
}

func (q question) name() string { return string(q[:len(q)-questionTail]) }

func (q question) tail() string { return string(q[len(q)-questionTail:]) }

func (q question) rtype() uint16 { return uint16(q.tail()[0])<<8 | uint16(q.tail()[1]) }

func (q question) dnssec() bool { return q.tail()[4]&flagDO != 0 }

func (q question) unchecked() bool { return q.tail()[4]&flagCD != 0 }

// forwardable says whether it can be put to an upstream: types that are no data of a zone (RFC 6895, section 3.1) but ANY, and other classes, are not.
func forwardable(rtype, class uint16) bool {
	isMeta := rtype >= 128 && rtype < dns.TypeANY || rtype == dns.TypeOPT || rtype == 0
	return class == dns.ClassINET && !isMeta
}

// udpSize is the longest UDP answer that is asked for: it does not get fragmented (DNS flag day 2020).
const udpSize = 1232

// padTo is what a query's length is a multiple of where it is encrypted (RFC 8467, section 4.1).
const padTo = 128

// A request says how a question is put.
type request struct {
	mixed bool // the name in random case
	plain bool // without EDNS
	pad   bool
}

// pack returns the message that asks q, and the part of it that is the question. AD asks for AD in the answer (RFC 6840, section 5.7).
func (q question) pack(id uint16, how request) (message, asked []byte) {
	const bitRD, bitAD, bitCD = 1 << 8, 1 << 5, 1 << 4
	bits := uint16(bitRD | bitAD)
	if q.unchecked() {
		bits |= bitCD
	}
	m := make([]byte, wire.HeaderLen, wire.HeaderLen+len(q)+32+padTo)
	binary.BigEndian.PutUint16(m, id)
	binary.BigEndian.PutUint16(m[2:], bits)
	m[5] = 1
	m = append(m, q[:len(q)-1]...)
	asked = m[wire.HeaderLen:len(m):len(m)]
	if how.mixed {
		mixCase(asked[:len(asked)-4])
	}
	if how.plain {
		return m, asked
	}
	m[11] = 1
	var do byte
	if q.dnssec() {
		do = 0x80
	}
	const size = udpSize
	m = append(m, 0, 0, byte(dns.TypeOPT), size>>8, size&0xff, 0, 0, do, 0, 0, 0)
	if how.pad {
		n := (padTo - (len(m)+4)%padTo) % padTo
		m[len(m)-1] = byte(n + 4)
		m = append(m, 0, dns.EDNS0PADDING, 0, byte(n))
		m = append(m, make([]byte, n)...)
	}
	return m, asked
}

// mixCase turns letters of a name into the other case by chance: an answer that does not repeat it is not the upstream's (draft-vixie-dnsext-dns0x20).
func mixCase(name []byte) {
	var bits uint64
	for i, c := range name {
		if i%64 == 0 {
			bits = rand.Uint64()
		}
		if ('a' <= c && c <= 'z') && bits>>(i%64)&1 == 1 {
			name[i] = c - 'a' + 'A'
		}
	}
}

// A verdict is what a packet is to somebody who waits for an answer.
type verdict uint8

const (
	isAnswer  verdict = iota
	isOther           // of another ID or to another question, or no answer at all
	isRecased         // the answer, but for the letter case of its question
)

// judge compares a packet with what was asked (RFC 5452, section 9.1). A server that does not understand a message may leave out the question.
func judge(packet []byte, id uint16, asked []byte) verdict {
	if len(packet) < wire.HeaderLen || binary.BigEndian.Uint16(packet) != id || packet[2]&0x80 == 0 || packet[2]>>3&0xf != dns.OpcodeQuery {
		return isOther
	}
	count, rcode := binary.BigEndian.Uint16(packet[4:]), int(packet[3]&0xf)
	if count == 0 && len(packet) == wire.HeaderLen && (rcode == dns.RcodeFormatError || rcode == dns.RcodeNotImplemented) {
		return isAnswer
	}
	end := wire.HeaderLen + len(asked)
	if count != 1 || len(packet) < end {
		return isOther
	}
	got := packet[wire.HeaderLen:end]
	if string(got) == string(asked) {
		return isAnswer
	}
	var a, b [wire.MaxName]byte
	n := len(asked) - 4
	isSame := string(got[n:]) == string(asked[n:]) && string(wire.AppendLower(a[:0], got[:n])) == string(wire.AppendLower(b[:0], asked[:n]))
	if isSame {
		return isRecased
	}
	return isOther
}
