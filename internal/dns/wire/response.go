package wire

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// Section of a message.
type Section uint8

// The sections that a response may have.
const (
	Answer Section = iota
	Authority
	Additional
)

// QuestionAt is where the question's name is: the owner of most records.
const QuestionAt = HeaderLen

// optLen is the length of an OPT record without options, the others are those of options: a cookie with 16 octets, and how long a connection is kept.
const (
	optLen       = 11
	cookieLen    = 4 + 16
	keepAliveLen = 4 + 2
)

// A Response is a message that is being written. Owners of records are names that are in it already, given by their offset, which fits compression
// as it ends at 0x3fff: a record whose owner is farther is left out as if it did not fit. The zero value is ready for [Response.Begin].
type Response struct {
	buf       []byte
	limit     int // the longest that buf may get before Finish
	counts    [3]uint16
	bits      uint16
	rcode     int
	edns      EDNS
	udpSize   uint16
	cookie    []byte
	keepAlive uint16 // in units of 100 ms
	kept      bool   // it is said
	truncated bool
}

// Begin begins a response to a request in dst, whose content is overwritten and whose array is used as far as it reaches. limit is how long it may
// get, see [Query.Limit]; udpSize is what to say of ourselves by EDNS.
func (r *Response) Begin(dst []byte, q *Query, limit int, udpSize uint16) {
	*r = Response{buf: dst[:0], limit: limit, edns: q.EDNS, udpSize: udpSize}
	if q.EDNS.Present {
		r.limit -= optLen + cookieLen
	}
	if q.EDNS.KeepAlive {
		r.limit -= keepAliveLen
	}
	r.bits = bitQR | uint16(q.Opcode)<<11
	if q.RecursionDesired {
		r.bits |= bitRD
	}
	if q.CheckingDisabled {
		r.bits |= bitCD
	}
	var header [HeaderLen]byte
	binary.BigEndian.PutUint16(header[:], q.ID)
	if len(q.Question) > 0 {
		header[5] = 1
	}
	r.buf = append(append(r.buf, header[:]...), q.Question...)
}

// Limit is how long a response to it may be. Over TCP that is the most that there is; over UDP what the client says, at least 512 and at most
// ours octets.
func (q *Query) Limit(tcp bool, ours int) int {
	switch {
	case tcp:
		return dns.MaxMsgSize
	case !q.EDNS.Present:
		return dns.MinMsgSize
	default:
		return min(max(int(q.EDNS.UDPSize), dns.MinMsgSize), max(ours, dns.MinMsgSize))
	}
}

// SetRCode sets the RCODE, which may be an extended one if the client has EDNS.
func (r *Response) SetRCode(rcode int) { r.rcode = rcode }

// RCode is what was set, 0 at first.
func (r *Response) RCode() int { return r.rcode }

// SetAuthoritative sets the bit AA.
func (r *Response) SetAuthoritative() { r.bits |= bitAA }

// SetAuthenticData sets the bit AD, or clears it.
func (r *Response) SetAuthenticData(yes bool) {
	r.bits &^= bitAD
	if yes {
		r.bits |= bitAD
	}
}

// SetRecursionAvailable sets the bit RA.
func (r *Response) SetRecursionAvailable() { r.bits |= bitRA }

// SetTruncated sets the bit TC.
func (r *Response) SetTruncated() { r.truncated = true }

// Truncated says whether TC will be set.
func (r *Response) Truncated() bool { return r.truncated }

// SetCookie has [Response.Finish] say a cookie of 16 octets, the client's and ours, if the client has EDNS. It is copied then.
func (r *Response) SetCookie(cookie []byte) { r.cookie = cookie }

// SetKeepAlive has [Response.Finish] say how long the connection may be idle (RFC 7828), if the client asked for that.
// It is for TCP alone: over UDP it must not be said.
func (r *Response) SetKeepAlive(idle time.Duration) {
	r.kept = r.edns.KeepAlive
	r.keepAlive = uint16(min(max(idle/(100*time.Millisecond), 0), math.MaxUint16))
}

// Len is the length so far: where the next record begins.
func (r *Response) Len() int { return len(r.buf) }

// Count is the number of records in a section.
func (r *Response) Count(s Section) int { return int(r.counts[s]) }

// Mark is a place to go back to.
type Mark struct {
	length    int
	counts    [3]uint16
	truncated bool
}

// Mark is where the response is now.
func (r *Response) Mark() Mark { return Mark{len(r.buf), r.counts, r.truncated} }

// Back removes all records that were added since, and forgets that some did not fit.
func (r *Response) Back(m Mark) {
	r.buf, r.counts, r.truncated = r.buf[:m.length], m.counts, m.truncated
}

// Add appends a record of class IN. It reports false if it does not fit: then nothing is added, and TC is set unless it is additional. Sections must come in their order.
func (r *Response) Add(s Section, owner int, rtype uint16, ttl uint32, rdata []byte) bool {
	if !r.room(s, owner, len(rdata)) {
		return false
	}
	r.buf = append(r.head(owner, rtype, ttl, len(rdata)), rdata...)
	r.counts[s]++
	return true
}

// AddNamed appends a record of class IN whose owner is not in the message: a name at or below the question's, which is then written but for
// what both end in. at is where the owner is, for further records of it; 0 if the record did not fit.
func (r *Response) AddNamed(s Section, owner []byte, rtype uint16, ttl uint32, rdata []byte) (at int) {
	shared := nameLength(r.buf[QuestionAt:])
	own := len(owner) - shared
	if own <= 0 {
		if r.Add(s, QuestionAt, rtype, ttl, rdata) {
			return QuestionAt
		}
		return 0
	}
	if !r.room(s, QuestionAt, own+len(rdata)) {
		return 0
	}
	at = len(r.buf)
	r.buf = append(r.buf, owner[:own]...)
	r.buf = append(r.head(QuestionAt, rtype, ttl, len(rdata)), rdata...)
	r.counts[s]++
	return at
}

// AddAddr appends an A or AAAA record.
func (r *Response) AddAddr(s Section, owner int, ttl uint32, addr netip.Addr) bool {
	if addr.Is4() {
		a := addr.As4()
		return r.Add(s, owner, dns.TypeA, ttl, a[:])
	}
	a := addr.As16()
	return r.Add(s, owner, dns.TypeAAAA, ttl, a[:])
}

// AddName appends a record that is a name: CNAME, NS or PTR. at is where the name is in the message, to be an owner of others; 0 if it did not fit.
func (r *Response) AddName(s Section, owner int, rtype uint16, ttl uint32, name []byte) (at int) {
	if !r.Add(s, owner, rtype, ttl, name) {
		return 0
	}
	return len(r.buf) - len(name)
}

// AddSRV appends an SRV record (RFC 2782, whose target is not compressed). at is where the target is, 0 if it did not fit.
func (r *Response) AddSRV(s Section, owner int, ttl uint32, priority, weight, port uint16, target []byte) (at int) {
	if !r.room(s, owner, 6+len(target)) {
		return 0
	}
	r.buf = r.head(owner, dns.TypeSRV, ttl, 6+len(target))
	for _, n := range [...]uint16{priority, weight, port} {
		r.buf = binary.BigEndian.AppendUint16(r.buf, n)
	}
	r.buf = append(r.buf, target...)
	r.counts[s]++
	return len(r.buf) - len(target)
}

// A SOA is the content of that record (RFC 1035, section 3.3.13), its times in seconds. Minimum is how long clients keep that something does not exist (RFC 2308).
type SOA struct {
	MName, RName                            []byte
	Serial, Refresh, Retry, Expire, Minimum uint32
}

// AddSOA appends one.
func (r *Response) AddSOA(s Section, owner int, ttl uint32, soa *SOA) bool {
	n := len(soa.MName) + len(soa.RName) + 20
	if !r.room(s, owner, n) {
		return false
	}
	r.buf = soa.Append(r.head(owner, dns.TypeSOA, ttl, n))
	r.counts[s]++
	return true
}

// Append appends it as it is on the wire.
func (soa *SOA) Append(dst []byte) []byte {
	dst = append(append(dst, soa.MName...), soa.RName...)
	for _, n := range [...]uint32{soa.Serial, soa.Refresh, soa.Retry, soa.Expire, soa.Minimum} {
		dst = binary.BigEndian.AppendUint32(dst, n)
	}
	return dst
}

// Raw lends what was written so far, and takes it back with whole records appended to it by the caller, counted by section.
// What is longer than [Response.Room] said is not taken, and reported as false.
func (r *Response) Raw(f func(message []byte) (longer []byte, counts [3]int)) bool {
	was := len(r.buf)
	longer, counts := f(r.buf)
	if len(longer) > r.limit {
		r.buf = longer[:was]
		return false
	}
	r.buf = longer
	for i, n := range counts {
		r.counts[i] += uint16(n)
	}
	return true
}

// Room is how many octets there still are.
func (r *Response) Room() int { return max(r.limit-len(r.buf), 0) }

// maxOffset is the farthest that compression can point (RFC 1035, section 4.1.4).
const maxOffset = 1<<14 - 1

// room says whether a record fits. Something smaller may fit after what did not: with TC set, the client asks again anyway.
func (r *Response) room(s Section, owner, rdata int) bool {
	const fixed = 2 + 2 + 2 + 4 + 2
	if owner <= maxOffset && len(r.buf)+fixed+rdata <= r.limit {
		return true
	}
	r.truncated = r.truncated || s != Additional
	return false
}

func (r *Response) head(owner int, rtype uint16, ttl uint32, rdlength int) []byte {
	return append(r.buf, byte(owner>>8)|0xc0, byte(owner), byte(rtype>>8), byte(rtype), 0, dns.ClassINET,
		byte(ttl>>24), byte(ttl>>16), byte(ttl>>8), byte(ttl), byte(rdlength>>8), byte(rdlength))
}

// Finish writes what EDNS wants and the header, and returns the message, which is in the array that Begin got if it was long enough.
func (r *Response) Finish() []byte {
	if r.edns.Present {
		var flags byte
		if r.edns.DNSSECOK {
			flags = 0x80 // as it came (RFC 3225, section 3)
		}
		options := 0
		if len(r.cookie) == cookieLen-4 {
			options += cookieLen
		}
		if r.kept {
			options += keepAliveLen
		}
		r.buf = append(r.buf, 0, 0, byte(dns.TypeOPT), byte(r.udpSize>>8), byte(r.udpSize), byte(r.rcode>>4), 0, flags, 0, 0, byte(options))
		if len(r.cookie) == cookieLen-4 {
			r.buf = append(append(r.buf, 0, dns.EDNS0COOKIE, 0, cookieLen-4), r.cookie...)
		}
		if r.kept {
			r.buf = append(r.buf, 0, dns.EDNS0TCPKEEPALIVE, 0, keepAliveLen-4, byte(r.keepAlive>>8), byte(r.keepAlive))
		}
		r.counts[Additional]++
	}
	bits := r.bits
	if r.truncated {
		bits |= bitTC
	}
	binary.BigEndian.PutUint16(r.buf[2:], bits|uint16(r.rcode&0xf))
	for i, n := range r.counts {
		binary.BigEndian.PutUint16(r.buf[6+2*i:], n)
	}
	return r.buf
}
