package zone

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// A Record is one of the zone, of class IN. Its slices are not to be modified, and good until the next one.
type Record struct {
	Name []byte // wire name
	Type uint16
	TTL  uint32
	Data []byte // as on the wire, names without compression
}

// Transfer is what a transfer of the zone with this name has to say (RFC 5936, section 2.2): the SOA and all other records, each once, without
// the SOA at the end, and those of a name and a type together. They are all of one Snapshot. RCODE is NOTAUTH for what is not the cluster's domain: reverse zones
// are not transferred.
//
// Records of pods are not there, as no Snapshot knows all pods.
func (z *Zone) Transfer(zone []byte) (records iter.Seq[Record], rcode int) {
	var n name
	n.set(zone)
	switch {
	case n.within(z.domain, z.labels) != 0:
		return nil, dns.RcodeNotAuth
	case z.snapshot == nil:
		return nil, dns.RcodeServerFailure
	}
	return z.records, dns.RcodeSuccess
}

// Serial of the SOA.
func (z *Zone) Serial() uint32 { return z.serial }

// A listing hands out the records of a name.
type listing struct {
	yield func(Record) bool
	data  []byte // of the record, reused
	name  []byte
	ttl   uint32
}

func (z *Zone) records(yield func(Record) bool) {
	l := &listing{yield: yield, name: z.domain, ttl: z.ttl}
	soa := z.start(z.ttl)
	l.data = soa.Append(nil)
	if !l.add(dns.TypeSOA) || !l.addName(dns.TypeNS, z.server) {
		return
	}
	l.name = z.server
	if !l.addAddrs(z.servers) {
		return
	}
	l.name, l.ttl, l.data = slices.Concat([]byte("\x0bdns-version"), z.domain), versionTTL, append(l.data[:0], versionTXT...)
	if !l.add(dns.TypeTXT) {
		return
	}
	for services := z.services.Iterator(); ; {
		_, s, ok := services.Next()
		if !ok || s.exists && !l.addService(s) {
			return
		}
	}
}

// add hands out a record with the data as it is; all of these say whether to go on.
func (l *listing) add(rtype uint16) bool {
	return l.yield(Record{l.name, rtype, l.ttl, l.data})
}

func (l *listing) addName(rtype uint16, name []byte) bool {
	l.data = append(l.data[:0], name...)
	return l.add(rtype)
}

// addAddrs takes a list in which IPv4 is before IPv6.
func (l *listing) addAddrs(list []netip.Addr) bool {
	for _, addr := range list {
		rtype := dns.TypeAAAA
		if family(addr) == 0 {
			rtype = dns.TypeA
		}
		l.data = append(l.data[:0], addr.AsSlice()...)
		if !l.add(rtype) {
			return false
		}
	}
	return true
}

func (l *listing) addSRVs(s *service, of *srvs) bool {
	for _, record := range of.records {
		target, _ := s.target(record.target)
		l.data = binary.BigEndian.AppendUint16(l.data[:0], 0)
		l.data = binary.BigEndian.AppendUint16(l.data, of.weight)
		l.data = binary.BigEndian.AppendUint16(l.data, record.port)
		l.data = append(l.data, target...)
		if !l.add(dns.TypeSRV) {
			return false
		}
	}
	return true
}

func (l *listing) addService(s *service) bool {
	l.name, l.ttl = s.name, s.ttl
	if s.cname != nil {
		return l.addName(dns.TypeCNAME, s.cname)
	}
	if !l.addAddrs(s.addrs[0]) || !l.addAddrs(s.addrs[1]) || !l.addSRVs(s, &s.srv) {
		return false
	}
	for i := range s.targets {
		t := &s.targets[i]
		if l.name = t.name; !l.addAddrs(t.addrs[0]) || !l.addAddrs(t.addrs[1]) {
			return false
		}
	}
	var buf [wire.MaxName]byte
	for i := range s.ports {
		p := &s.ports[i]
		if len(p.labels)+len(s.name) > wire.MaxName {
			continue // nobody can ask for it
		}
		if l.name = append(append(buf[:0], p.labels...), s.name...); !l.addSRVs(s, &p.srv) {
			return false
		}
	}
	return true
}
