package zone

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/model"
)

// A cut is a range of addresses, and how many bits the reverse zones have that it is made of: whole octets or nibbles.
type cut struct {
	netip.Prefix
	bits int
}

// cutsOf are the reverse zones of a network, widest first.
func cutsOf(n *model.Network) []cut {
	var list []cut
	for _, prefix := range slices.Concat(n.ServiceCIDRs, n.ClusterCIDRs) {
		if !prefix.IsValid() {
			continue
		}
		unit := 4
		if prefix.Addr().Is4() {
			unit = 8
		}
		list = append(list, cut{prefix.Masked(), (prefix.Bits() + unit - 1) / unit * unit})
	}
	slices.SortStableFunc(list, func(a, b cut) int { return a.bits - b.bits })
	return list
}

func sameRanges(a, b *model.Network) bool {
	return slices.Equal(a.ServiceCIDRs, b.ServiceCIDRs) && slices.Equal(a.ClusterCIDRs, b.ClusterCIDRs)
}

// The domains of reverse names (RFC 1035, section 3.5; RFC 3596, section 2.5).
const (
	arpa4 = "\x07in-addr\x04arpa\x00"
	arpa6 = "\x03ip6\x04arpa\x00"
)

// A reversed is what a reverse name says.
type reversed struct {
	netip.Prefix      // the address, or the part of it that the name gives
	unit         int  // bits of a label
	foreign      bool // and below it there is something that belongs to no address
}

// reverseOf reads a reverse name. It is false if it is none.
func reverseOf(n *name) (reversed, bool) {
	var octets [16]byte
	var at int
	switch {
	case bytes.HasSuffix(n.bytes(), []byte(arpa4)) && n.n >= 2 && len(n.labels(n.n-2, n.n)) == len(arpa4)-1:
		for i := n.n - 3; i >= 0 && at < 4; i-- {
			octet, ok := decimal(n.labels(i, i+1)[1:])
			if !ok {
				break
			}
			octets[at] = octet
			at++
		}
		addr := netip.AddrFrom4([4]byte(octets[:]))
		return reversed{netip.PrefixFrom(addr, 8*at), 8, at < n.n-2}, true
	case bytes.HasSuffix(n.bytes(), []byte(arpa6)) && n.n >= 2 && len(n.labels(n.n-2, n.n)) == len(arpa6)-1:
		for i := n.n - 3; i >= 0 && at < 32; i-- {
			label := n.labels(i, i+1)
			digit, ok := nibble(label[1])
			if !ok || len(label) != 2 {
				break
			}
			octets[at/2] |= digit << (4 * (1 - at%2))
			at++
		}
		return reversed{netip.PrefixFrom(netip.AddrFrom16(octets), 4*at), 4, at < n.n-2}, true
	}
	return reversed{}, false
}

// reverse answers for reverse names.
func (a *answer) reverse(n *name) Outcome {
	is, ok := reverseOf(n)
	if !ok {
		return Outcome{Kind: NotOurs}
	}
	if a.snapshot == nil { // it could be ours
		a.r.SetRCode(dns.RcodeServerFailure)
		return Outcome{}
	}
	var list []pointer
	if is.IsSingleIP() && !is.foreign {
		key := is.Addr().As16()
		list, _, _ = a.pointers.Get(key[:])
	}
	zone := a.zoneOf(is)
	if zone < 0 {
		if len(list) == 0 {
			return Outcome{Kind: NotOurs}
		}
		zone = is.Bits()
	}
	if a.rtype == dns.TypeAXFR || a.rtype == dns.TypeIXFR {
		a.r.SetRCode(dns.RcodeRefused)
		return Outcome{}
	}
	a.r.SetAuthoritative()
	// Labels of the zone, from the right: those of its bits, and the two of in-addr.arpa or ip6.arpa.
	at := wire.QuestionAt + int(n.at[n.n-2-zone/is.unit])
	a.reversePlace(is, list, at)
	return Outcome{}
}

// zoneOf is how many bits the zone has that a name is in, negative if it is in none of ours.
func (a *answer) zoneOf(is reversed) int {
	for _, c := range a.cuts {
		if is.Bits() >= c.bits && c.Contains(is.Addr()) {
			return c.bits
		}
	}
	return -1
}

// reversePlace writes what there is at a reverse name; zone is where the name of its zone is.
func (a *answer) reversePlace(is reversed, list []pointer, zone int) {
	isApex := zone == wire.QuestionAt
	if len(list) == 0 && !isApex && (is.foreign || !a.anyPointer(is.Prefix)) {
		a.r.SetRCode(dns.RcodeNameError)
	}
	before := a.r.Len()
	switch {
	case a.rtype == dns.TypePTR:
		a.pointTo(list)
	case a.rtype == dns.TypeANY && (len(list) > 0 || isApex):
		a.r.Add(wire.Answer, wire.QuestionAt, dns.TypeHINFO, a.ttl, []byte(anyHINFO))
	case a.rtype == dns.TypeSOA && isApex:
		a.soa(wire.Answer, wire.QuestionAt, a.ttl)
	case a.rtype == dns.TypeNS && isApex:
		a.nameServer(wire.QuestionAt)
	}
	if a.r.Len() == before && !a.r.Truncated() {
		a.soa(wire.Authority, zone, a.ttl)
	}
}

// pointTo answers PTR. Records of one name have one TTL (RFC 2181, section 5.2), the lowest of the Services'.
func (a *answer) pointTo(list []pointer) {
	if len(list) == 0 {
		return
	}
	ttl := list[0].ttl
	for i := range list {
		ttl = min(ttl, list[i].ttl)
	}
	for o := newOrder(a.random, len(list)); o.left > 0; {
		if a.r.AddName(wire.Answer, wire.QuestionAt, dns.TypePTR, ttl, list[o.next()].name) == 0 {
			return
		}
	}
}

// anyPointer says whether an address in a range has a PTR record. It allocates, which is rare: nobody asks for a part of an address but tools, and
// resolvers that minimise names (RFC 9156).
func (z *Zone) anyPointer(in netip.Prefix) bool {
	if in.IsSingleIP() {
		return false // it would have been found
	}
	from := in.Masked().Addr().As16()
	iterator := z.pointers.LowerBound(from[:])
	_, list, ok := iterator.Next()
	return ok && in.Contains(list[0].addr)
}
