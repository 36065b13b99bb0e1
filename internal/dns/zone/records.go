package zone

import (
	"net/netip"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// Times of the SOA, in seconds. They are for servers that transfer the zone, whose answers are as old: nobody tells them of changes.
const (
	refresh = 30
	retry   = 10
	expire  = 86400
)

// soa adds the SOA; negative is how long clients may keep that there is no record.
func (a *answer) soa(s wire.Section, owner int, negative uint32) {
	ttl := a.ttl
	if s == wire.Authority {
		ttl = negative // RFC 2308, section 3
	}
	content := a.start(negative)
	a.r.AddSOA(s, owner, ttl, &content)
}

// start is the content of the SOA, the start of authority.
func (z *Zone) start(negative uint32) wire.SOA {
	return wire.SOA{
		MName: z.server, RName: z.mailbox,
		Serial: z.serial, Refresh: refresh, Retry: retry, Expire: expire, Minimum: negative,
	}
}

// negative says that there is no such record.
func (a *answer) negative(p *place, zone int) {
	ttl := a.ttl
	if p.service != nil {
		ttl = p.service.negative
	}
	a.soa(wire.Authority, zone, ttl)
}

// nameServer answers with the NS record of a zone, and its glue.
func (a *answer) nameServer(owner int) {
	at := a.r.AddName(wire.Answer, owner, dns.TypeNS, a.ttl, a.server)
	if at == 0 {
		return
	}
	for _, addr := range a.servers {
		a.r.AddAddr(wire.Additional, at, a.ttl, addr)
	}
}

// addresses answers A and AAAA.
func (a *answer) addresses(p *place, owner int) {
	f := 0
	if a.rtype == dns.TypeAAAA {
		f = 1
	}
	var list []netip.Addr
	ttl := a.ttl
	switch {
	case p.kind == server:
		for _, addr := range a.servers {
			if family(addr) == f {
				a.r.AddAddr(wire.Answer, owner, ttl, addr)
			}
		}
		return
	case p.kind == pod:
		if family(p.addr) == f {
			a.r.AddAddr(wire.Answer, owner, ttl, p.addr)
		}
		return
	case p.addrs != nil:
		list, ttl = p.addrs[f], p.service.ttl
	}
	for o := newOrder(a.random, len(list)); o.left > 0; {
		if !a.r.AddAddr(wire.Answer, owner, ttl, list[o.next()]) {
			return
		}
	}
}

// srvFixed is the length of an SRV record without its target: owner, type, class, TTL, RDLENGTH, priority, weight, port.
const srvFixed = 2 + 2 + 2 + 4 + 2 + 6

// records answers SRV, with the addresses of the targets.
func (a *answer) records(p *place, owner int) {
	s, list := p.service, p.srv.records
	first := a.r.Len()
	for o := newOrder(a.random, len(list)); o.left > 0; {
		record := list[o.next()]
		name, _ := s.target(record.target)
		if a.r.AddSRV(wire.Answer, owner, s.ttl, 0, p.srv.weight, record.port, name) == 0 {
			return
		}
	}
	at := first
	for o := newOrder(a.random, len(list)); o.left > 0; { // the same order again
		i := o.next()
		name, addrs := s.target(list[i].target)
		if i == 0 || list[i-1].target != list[i].target {
			for _, family := range addrs {
				for _, addr := range family {
					if !a.r.AddAddr(wire.Additional, at+srvFixed, s.ttl, addr) {
						return
					}
				}
			}
		}
		at += srvFixed + len(name)
	}
}

// target is the name and the addresses of an endpoint; -1 is the Service itself.
func (s *service) target(i int) (name []byte, addrs *addrs) {
	if i < 0 {
		return s.name, &s.addrs
	}
	return s.targets[i].name, &s.targets[i].addrs
}

// An order visits 0 to n-1 in one of many orders, each as likely to begin with any.
type order struct {
	at, step, n uint64
	left        int
}

// steps are primes that are greater than any n, so that going round by one of them comes to every place. Each n makes other orders of them.
var steps = [...]uint32{
	3538334777, 2767054501, 3983978623, 2315877527, 3210981251, 2735576959, 3931168589, 2795684029,
	3486879167, 4203149219, 3028875383, 3105440323, 2985629447, 3175645861, 3626158967, 4068311881,
}

func newOrder(random uint64, n int) order {
	if n < 2 {
		return order{n: 1, left: n}
	}
	step := uint64(steps[random%uint64(len(steps))]) % uint64(n)
	return order{at: random / uint64(len(steps)) % uint64(n), step: step, n: uint64(n), left: n}
}

func (o *order) next() int {
	at := o.at
	if o.at += o.step; o.at >= o.n {
		o.at -= o.n
	}
	o.left--
	return int(at)
}
