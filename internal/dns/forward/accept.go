package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// maxChain is how many CNAMEs are followed in one answer.
const maxChain = 16

var errChain = fmt.Errorf("a chain of more than %d CNAMEs", maxChain)

// limits are the bounds of how long records are kept.
type limits struct {
	min, max, maxNegative time.Duration
}

// newAnswer makes an Answer of what an upstream said: NOERROR or NXDOMAIN. Only what belongs to the question is taken.
func newAnswer(q question, m *dns.Msg, l limits) (*Answer, error) {
	a := &Answer{question: q, rcode: m.Rcode, authenticData: m.AuthenticatedData}
	s := selection{rtype: q.rtype(), dnssec: q.dnssec(), name: lowerText(wire.NameString([]byte(q.name())))}
	if err := s.follow(m.Answer); err != nil {
		return nil, err
	}
	s.authority(m.Ns)
	p := newPacker(q.name())
	shortest := uint32(1<<31 - 1)
	for _, rr := range s.answer {
		ttl := cappedTTL(rr.Header().Ttl, l.min, l.max)
		shortest = min(shortest, ttl)
		if err := p.add(rr, ttl); err != nil {
			return nil, err
		}
	}
	negative := uint32(0)
	if s.soa != nil { // RFC 2308, section 5
		negative = cappedTTL(min(lawfulTTL(s.soa.Hdr.Ttl), lawfulTTL(s.soa.Minttl)), 0, l.maxNegative)
	}
	if !s.found {
		shortest = min(shortest, negative) // 0 without a SOA: not kept
	}
	for _, rr := range s.proof {
		ttl := cappedTTL(rr.Header().Ttl, 0, l.max)
		if !s.found {
			ttl = min(ttl, negative)
		}
		if s.found {
			shortest = min(shortest, ttl)
		}
		if err := p.add(rr, ttl); err != nil {
			return nil, err
		}
	}
	a.data, a.fixes = append([]byte(nil), p.data...), append([]fix(nil), p.fixes...)
	a.counts = [3]int{len(s.answer), len(s.proof), 0}
	a.ttl = time.Duration(shortest) * time.Second
	return a, nil
}

// failure is an Answer without records.
func failure(q question, rcode int, ttl time.Duration) *Answer {
	return &Answer{question: q, rcode: rcode, failed: rcode == dns.RcodeServerFailure, ttl: ttl}
}

// lawfulTTL is a TTL without those that are negative (RFC 2181, section 8).
func lawfulTTL(ttl uint32) uint32 {
	if ttl > 1<<31-1 {
		return 0
	}
	return ttl
}

func cappedTTL(ttl uint32, low, high time.Duration) uint32 {
	return min(max(lawfulTTL(ttl), uint32(low/time.Second)), uint32(high/time.Second))
}

// A selection is what is taken of a message.
type selection struct {
	rtype  uint16
	dnssec bool
	name   string // in lower case: the asked name, later what the last CNAME leads to

	records []dns.RR // of the message's answer section
	owners  []string // their names in lower case

	answer []dns.RR // chain and data, in the order in which a client reads them
	found  bool     // there is data at the end of the chain
	zone   string   // where the last signature is from
	soa    *dns.SOA
	proof  []dns.RR // of the authority section: the SOA, and what proves by DNSSEC
}

// follow takes the records of the asked name, and of what its CNAMEs lead to.
func (s *selection) follow(records []dns.RR) error {
	s.records, s.owners = records, make([]string, len(records))
	for i, rr := range records {
		s.owners[i] = lowerText(rr.Header().Name)
	}
	for range maxChain + 1 {
		target := s.at()
		if target == "" {
			return nil
		}
		s.name = target
	}
	return errChain
}

// at takes the records of the name, and returns where its CNAME leads, "" if it has none or is asked for that.
func (s *selection) at() (target string) {
	var alias *dns.CNAME
	from := len(s.answer)
	for i, rr := range s.records {
		h := rr.Header()
		if s.owners[i] != s.name || h.Class != dns.ClassINET || h.Rrtype == dns.TypeOPT {
			continue
		}
		cname, isAlias := rr.(*dns.CNAME)
		switch {
		case h.Rrtype == s.rtype || s.rtype == dns.TypeANY:
			s.found = true
			s.answer = append(s.answer, rr)
		case isAlias && alias == nil:
			alias = cname
		}
	}
	above := ""
	if alias != nil {
		target = lowerText(alias.Target)
		above = s.takeDNAME(target)
		s.answer = append(s.answer, alias)
	}
	if s.dnssec && len(s.answer) > from {
		s.signatures(above)
	}
	if s.found {
		return ""
	}
	return target
}

// takeDNAME takes the record above the name that its CNAME was made of (RFC 6672, section 3.1), and returns where that is, "" if there is none.
func (s *selection) takeDNAME(target string) (owner string) {
	for i, rr := range s.records {
		d, ok := rr.(*dns.DNAME)
		if !ok || d.Hdr.Class != dns.ClassINET || s.owners[i] == s.name || !dns.IsSubDomain(s.owners[i], s.name) {
			continue
		}
		if strings.TrimSuffix(s.name, s.owners[i])+lowerText(d.Target) == target {
			s.answer = append(s.answer, rr)
			return s.owners[i]
		}
	}
	return ""
}

// signatures takes those of the records of the name, and of the DNAME above it.
func (s *selection) signatures(above string) {
	if s.rtype == dns.TypeANY || s.rtype == dns.TypeRRSIG {
		return // they are there already
	}
	for i, rr := range s.records {
		sig, ok := rr.(*dns.RRSIG)
		if !ok || sig.Hdr.Class != dns.ClassINET {
			continue
		}
		isOwn := s.owners[i] == s.name && (sig.TypeCovered == s.rtype || sig.TypeCovered == dns.TypeCNAME)
		if isOwn || above != "" && s.owners[i] == above && sig.TypeCovered == dns.TypeDNAME {
			s.zone = lowerText(sig.SignerName)
			s.answer = append(s.answer, rr)
		}
	}
}

// authority takes what says that there is no more: the SOA of a zone that the last name is in, and for those who ask for it the proof.
func (s *selection) authority(records []dns.RR) {
	if !s.found {
		for _, rr := range records {
			soa, ok := rr.(*dns.SOA)
			if ok && s.soa == nil && soa.Hdr.Class == dns.ClassINET && dns.IsSubDomain(lowerText(soa.Hdr.Name), s.name) {
				s.soa, s.zone = soa, lowerText(soa.Hdr.Name)
				s.proof = append(s.proof, rr)
			}
		}
	}
	if !s.dnssec || s.zone == "" || !dns.IsSubDomain(s.zone, s.name) {
		return
	}
	for _, rr := range records {
		if rr.Header().Class == dns.ClassINET && isProof(rr, s.soa != nil) && dns.IsSubDomain(s.zone, lowerText(rr.Header().Name)) {
			s.proof = append(s.proof, rr)
		}
	}
}

// isProof says whether a record is what DNSSEC proves with: NSEC, NSEC3, and signatures of those, and of the SOA if that is there.
func isProof(rr dns.RR, hasSOA bool) bool {
	switch rr := rr.(type) {
	case *dns.NSEC, *dns.NSEC3:
		return true
	case *dns.RRSIG:
		return rr.TypeCovered == dns.TypeNSEC || rr.TypeCovered == dns.TypeNSEC3 || rr.TypeCovered == dns.TypeSOA && hasSOA
	}
	return false
}

// lowerText is a name as text in lower case: what differs in letter case only is the same then, as the library writes equal octets equally.
func lowerText(name string) string { return strings.ToLower(name) }

// readMessage unpacks a message. What the library cannot unpack is no message.
func readMessage(packet []byte) (*dns.Msg, error) {
	m := new(dns.Msg)
	if err := m.Unpack(packet); err != nil {
		return nil, err
	}
	if m.Opcode != dns.OpcodeQuery || !m.Response {
		return nil, errors.New("no response to a query")
	}
	for i, n := range [...]int{len(m.Question), len(m.Answer), len(m.Ns), len(m.Extra)} { // the library does not mind if there are fewer
		if int(binary.BigEndian.Uint16(packet[4+2*i:])) != n {
			return nil, errors.New("fewer records than its header says")
		}
	}
	return m, nil
}
