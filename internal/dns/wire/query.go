package wire

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// HeaderLen is the length of a message's header, and so where the question's name is in every message that has one.
const HeaderLen = 12

// A Query is a request. Its slices are parts of the packet that it was parsed from.
type Query struct {
	ID     uint16
	Opcode uint8
	// RecursionDesired, AuthenticData and CheckingDisabled are the header's bits RD, AD and CD.
	RecursionDesired, AuthenticData, CheckingDisabled bool
	// Question is the whole question as it came; empty if there is none that can be repeated.
	Question []byte
	// Name is the question's, letter case as it came.
	Name        []byte
	Type, Class uint16
	EDNS        EDNS
}

// EDNS is what a request says in its OPT record (RFC 6891).
type EDNS struct {
	Present  bool
	Version  uint8
	UDPSize  uint16 // the largest UDP response that the client takes
	DNSSECOK bool
	// Cookie is the option of RFC 7873: 8 octets of the client, then 8 to 32 of a server or none; nil = no such option.
	Cookie []byte
	// KeepAlive is whether the client has the option of RFC 7828, and so wants to know how long its connection may be idle.
	KeepAlive bool
}

// The bits of a header's third and fourth octet.
const (
	bitQR = 1 << 15
	bitAA = 1 << 10
	bitTC = 1 << 9
	bitRD = 1 << 8
	bitRA = 1 << 7
	bitAD = 1 << 5
	bitCD = 1 << 4
)

// Parse reads a request. It reports false if nothing is to be answered: to a response, or to what has no header. Otherwise rcode is 0, or
// the one to answer at once with: FORMERR, NOTIMP, BADVERS.
func (q *Query) Parse(packet []byte) (rcode int, answerable bool) {
	*q = Query{}
	if len(packet) < HeaderLen {
		return 0, false
	}
	bits := binary.BigEndian.Uint16(packet[2:])
	if bits&bitQR != 0 {
		return 0, false
	}
	q.ID = binary.BigEndian.Uint16(packet)
	q.Opcode = uint8(bits >> 11 & 0xf)
	q.RecursionDesired, q.AuthenticData, q.CheckingDisabled = bits&bitRD != 0, bits&bitAD != 0, bits&bitCD != 0
	if q.Opcode != dns.OpcodeQuery {
		return dns.RcodeNotImplemented, true
	}
	if binary.BigEndian.Uint16(packet[4:]) != 1 { // RFC 9619
		return dns.RcodeFormatError, true
	}
	n := nameLength(packet[HeaderLen:])
	if n == 0 || HeaderLen+n+4 > len(packet) {
		return dns.RcodeFormatError, true
	}
	q.Question = packet[HeaderLen : HeaderLen+n+4 : HeaderLen+n+4] // who appends to it does not write to the packet
	q.Name = q.Question[:n:n]
	q.Type, q.Class = binary.BigEndian.Uint16(q.Question[n:]), binary.BigEndian.Uint16(q.Question[n+2:])
	if !q.parseRecords(packet) {
		return dns.RcodeFormatError, true
	}
	if q.EDNS.Version > 0 {
		return dns.RcodeBadVers, true
	}
	return dns.RcodeSuccess, true
}

// parseRecords passes over what is behind the question, for the OPT record. It reports false if a record is cut off, or there are two OPTs.
func (q *Query) parseRecords(packet []byte) bool {
	rest := packet[HeaderLen+len(q.Question):]
	other := int(binary.BigEndian.Uint16(packet[6:])) + int(binary.BigEndian.Uint16(packet[8:]))
	for i := range other + int(binary.BigEndian.Uint16(packet[10:])) {
		isRoot := len(rest) > 0 && rest[0] == 0
		if rest = skipName(rest); len(rest) < 10 {
			return false
		}
		header := rest[:10]
		length := int(binary.BigEndian.Uint16(header[8:]))
		if rest = rest[10:]; len(rest) < length {
			return false
		}
		if binary.BigEndian.Uint16(header) == dns.TypeOPT {
			if i < other || !isRoot || q.EDNS.Present || !q.EDNS.parse(header, rest[:length]) {
				return false
			}
		}
		rest = rest[length:]
	}
	return true
}

func (e *EDNS) parse(header, options []byte) bool {
	e.Present = true
	e.UDPSize, e.Version, e.DNSSECOK = binary.BigEndian.Uint16(header[2:]), header[5], header[6]&0x80 != 0
	for len(options) > 0 {
		if len(options) < 4 {
			return false
		}
		code, n := binary.BigEndian.Uint16(options), int(binary.BigEndian.Uint16(options[2:]))
		if options = options[4:]; len(options) < n {
			return false
		}
		switch {
		case code == dns.EDNS0TCPKEEPALIVE: // its content is ignored: clients have none (RFC 7828, section 3.2.1)
			e.KeepAlive = true
		case code == dns.EDNS0COOKIE && e.Cookie == nil:
			if n != 8 && (n < 16 || n > 40) { // RFC 7873, section 5.2.2
				return false
			}
			e.Cookie = options[:n:n]
		}
		options = options[n:]
	}
	return true
}
