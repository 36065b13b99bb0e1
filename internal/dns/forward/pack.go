package forward

import (
	"errors"
	"fmt"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// maxData is how long an Answer's records may be: with what is before them they fit into a message over TCP.
const maxData = dns.MaxMsgSize - maxBase

var errTooLong = errors.New("the answer is longer than a message")

// A packer writes records as an [Answer] keeps them.
type packer struct {
	data  []byte
	fixes []fix
	asked map[string]int // a suffix of the asked name, in lower case → where it is in that
	own   map[string]int // a suffix of a name in data, in lower case → where it is in data
	plain []byte         // a record without compression
}

// newPacker takes the asked name in lower case.
func newPacker(asked string) *packer {
	p := &packer{asked: map[string]int{}, own: map[string]int{}}
	for i := 0; asked[i] != 0; i += 1 + int(asked[i]) {
		p.asked[asked[i:]] = i
	}
	return p
}

// add appends a record with another TTL.
func (p *packer) add(rr dns.RR, ttl uint32) error {
	if n := dns.Len(rr); n > len(p.plain) {
		p.plain = make([]byte, n)
	}
	n, err := dns.PackRR(rr, p.plain, 0, nil, false)
	if err != nil {
		return fmt.Errorf("record %s of %s: %w", dns.TypeToString[rr.Header().Rrtype], rr.Header().Name, err)
	}
	record := p.plain[:n]
	owner, rest := cutName(record)
	p.name(owner)
	const fixed, ttlAt, lengthAt = 10, 4, 8
	p.data = append(p.data, rest[:fixed]...)
	head := len(p.data) - fixed
	be32(p.data[head+ttlAt:], ttl)
	p.fixes = append(p.fixes, newFix(head+ttlAt, fixTTL, 0))
	p.rdata(rr.Header().Rrtype, rest[fixed:])
	length := len(p.data) - head - fixed
	p.data[head+lengthAt], p.data[head+lengthAt+1] = byte(length>>8), byte(length)
	if len(p.data) > maxData {
		return errTooLong
	}
	return nil
}

// rdata appends what a record says. Names are compressed only in types that every reader of messages knows (RFC 3597, section 4).
func (p *packer) rdata(rtype uint16, rdata []byte) {
	if len(rdata) == 0 {
		return
	}
	switch rtype {
	case dns.TypeCNAME, dns.TypeNS, dns.TypePTR:
		p.name(rdata)
	case dns.TypeMX:
		p.data = append(p.data, rdata[:2]...)
		p.name(rdata[2:])
	case dns.TypeSOA:
		mname, rest := cutName(rdata)
		rname, rest := cutName(rest)
		p.name(mname)
		p.name(rname)
		p.data = append(p.data, rest...)
	default:
		p.data = append(p.data, rdata...)
	}
}

// name appends a name, as far as it is not there yet: the asked name gives its letter case to what is the same.
func (p *packer) name(name []byte) {
	lower := string(wire.AppendLower(nil, name))
	for i := 0; name[i] != 0; i += 1 + int(name[i]) {
		at := len(p.data)
		if target, ok := p.asked[lower[i:]]; ok {
			p.pointer(newFix(at, fixAsked, target))
			return
		}
		if target, ok := p.own[lower[i:]]; ok {
			p.pointer(newFix(at, fixOwn, target))
			return
		}
		if at <= maxTarget {
			p.own[lower[i:]] = at
		}
		p.data = append(p.data, name[i:i+1+int(name[i])]...)
	}
	p.data = append(p.data, 0)
}

func (p *packer) pointer(f fix) {
	p.fixes = append(p.fixes, f)
	p.data = append(p.data, 0xc0, 0)
}

// cutName splits a name that is not compressed off the beginning of data, which begins with one.
func cutName(data []byte) (name, rest []byte) {
	n := 0
	for data[n] != 0 {
		n += 1 + int(data[n])
	}
	return data[:n+1], data[n+1:]
}

func be32(dst []byte, n uint32) {
	dst[0], dst[1], dst[2], dst[3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
}
