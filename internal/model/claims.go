package model

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/statedb/part"
)

// claims says who has each frontend that any Service wants: the one whose ClusterIP it is, else the oldest. It's kept from one Snapshot to the next, so that
// a Service that goes leaves its frontends to the next one in line without a search.
type claims struct {
	lines part.Map[string, line] // claimKey → who wants it
}

// A line is who wants a frontend. It has the services by value of their pointers, so it's written anew when the object of one changes.
type line struct {
	owner *service
	rest  []*service // in order
}

func claimKey(key FrontendKey) string {
	addr := key.Addr.As16() // no frontend is an IPv4 address in IPv6 clothes
	return string(binary.BigEndian.AppendUint16(append(addr[:], byte(key.Protocol)), key.Port))
}

// before is the order in a line for an address: by age; of equally old ones, by name. Whoever has it as a ClusterIP, which the API server gives to one
// Service, comes first: anybody may write any external IP into his Service, and must not get another's traffic by that (CVE-2020-8554).
func before(addr netip.Addr) func(a, b *service) int {
	return func(a, b *service) int {
		return cmp.Or(
			cmp.Compare(a.foreign(addr), b.foreign(addr)),
			cmp.Compare(a.created, b.created), strings.Compare(a.id, b.id),
		)
	}
}

// foreign is 0 for the Service's own ClusterIPs, and 1 for all other addresses.
func (s *service) foreign(addr netip.Addr) int {
	if slices.Contains(s.said.ClusterIPs, addr) {
		return 0
	}
	return 1
}

func (c claims) owner(key FrontendKey) *service {
	l, _ := c.lines.Get(claimKey(key))
	return l.owner
}

// A claiming is a change of claims.
type claiming struct {
	lines part.MapTxn[string, line]
	// touched are the Services for which the owner of a frontend that they want has changed.
	touched map[string]struct{}
}

func (c claims) change(touched map[string]struct{}) *claiming {
	return &claiming{lines: c.lines.Txn(), touched: touched}
}

func (c *claiming) done() claims { return claims{c.lines.Commit()} }

// replace takes a Service out of all its lines and puts another version of it where that belongs. Either may be nil.
func (c *claiming) replace(old *service, oldNetwork *Network, now *service, network *Network) {
	if old != nil {
		for _, w := range old.wants {
			c.update(w.FrontendKey, old, nil)
		}
		for _, w := range old.nodePorts(oldNetwork) {
			c.update(w.FrontendKey, old, nil)
		}
	}
	if now != nil {
		for _, w := range now.wants {
			c.update(w.FrontendKey, nil, now)
		}
		for _, w := range now.nodePorts(network) {
			c.update(w.FrontendKey, nil, now)
		}
	}
}

func (c *claiming) update(key FrontendKey, out, in *service) {
	id := claimKey(key)
	old, _ := c.lines.Get(id)
	now := old
	if out != nil {
		now = now.without(out)
	}
	if in != nil {
		now = now.with(in, key.Addr)
	}
	if now.owner == nil {
		c.lines.Delete(id)
	} else {
		c.lines.Set(id, now)
	}
	if old.owner == now.owner || len(old.rest) == 0 && len(now.rest) == 0 {
		return // nobody else is concerned
	}
	for _, l := range []line{old, now} {
		c.touched[l.owner.id] = struct{}{}
		for _, s := range l.rest {
			c.touched[s.id] = struct{}{}
		}
	}
}

func (l line) without(s *service) line {
	if l.owner != nil && l.owner.id == s.id {
		if len(l.rest) == 0 {
			return line{}
		}
		return line{owner: l.rest[0], rest: l.rest[1:]}
	}
	rest := make([]*service, 0, len(l.rest))
	for _, other := range l.rest {
		if other.id != s.id {
			rest = append(rest, other)
		}
	}
	return line{owner: l.owner, rest: rest}
}

func (l line) with(s *service, addr netip.Addr) line {
	if l.owner == nil {
		return line{owner: s}
	}
	all := append([]*service{l.owner}, l.rest...)
	at, _ := slices.BinarySearchFunc(all, s, before(addr))
	all = slices.Insert(all, at, s)
	return line{owner: all[0], rest: all[1:]}
}
