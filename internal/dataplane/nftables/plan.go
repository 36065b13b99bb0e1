package nftables

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane/slots"
	"github.com/endpointd/endpointd/internal/model"
)

// state is what the kernel has, as far as it changes.
type state struct {
	table     *slots.Table
	addresses tally[netip.Addr]     // ClusterIP → Services that have it
	timeouts  tally[uint32]         // seconds of affinity → Services that ask for it
	sticky    tally[stickyEndpoint] // endpoints of pools with affinity
	ranges    [rangeKinds][]span
	// mistakable is how many frontends have an address among those of pods; -1 if that is not known.
	mistakable int
}

func newState() *state {
	return &state{table: slots.New(), addresses: tally[netip.Addr]{}, timeouts: tally[uint32]{}, sticky: tally[stickyEndpoint]{}, mistakable: -1}
}

// rangeKinds are podRanges, clusterRanges, serviceRanges and untrackedRanges.
const rangeKinds = 4

// A tally counts who needs something that the kernel has once.
type tally[K comparable] map[K]int

// delta is how a tally changes, and what the kernel has to be told of it.
type delta[K comparable] struct {
	by          map[K]int
	added, gone []K
}

func (t tally[K]) plan(by map[K]int) delta[K] {
	d := delta[K]{by: by}
	for k, n := range by {
		switch was := t[k]; {
		case was == 0 && n > 0:
			d.added = append(d.added, k)
		case was > 0 && was+n <= 0:
			d.gone = append(d.gone, k)
		}
	}
	return d
}

func (t tally[K]) apply(d delta[K]) {
	for k, n := range d.by {
		if t[k] += n; t[k] <= 0 {
			delete(t, k)
		}
	}
}

// add counts what someone needs, or no longer needs.
func add[K comparable](to map[K]int, what map[K]struct{}, n int) {
	for k := range what {
		if to[k] += n; to[k] == 0 {
			delete(to, k)
		}
	}
}

// from is what leads from what the kernel has to what is wanted.
func (t tally[K]) from(wanted map[K]int) map[K]int {
	by := maps.Clone(wanted)
	if by == nil {
		by = map[K]int{}
	}
	for k, n := range t {
		if by[k] -= n; by[k] == 0 {
			delete(by, k)
		}
	}
	return by
}

// change is all that the kernel has to be told.
type change struct {
	*slots.Change
	addresses delta[netip.Addr]
	timeouts  delta[uint32]
	sticky    delta[stickyEndpoint]
	ranges    [rangeKinds]*[]span // nil: as they are

	mistakable int // after it
}

// none says that there is nothing to write.
func (c *change) none() bool {
	return c.None() && len(c.addresses.added)+len(c.addresses.gone)+len(c.timeouts.added)+len(c.timeouts.gone)+
		len(c.sticky.added)+len(c.sticky.gone) == 0 && c.ranges == [rangeKinds]*[]span{}
}

// plan is pure. was is what the state is after, nil if that is not known: then all of it is compared. Alone says that nobody else's rules are there,
// see [Proxier.lookAround].
func plan(have *state, was, now *model.Snapshot, alone bool) *change {
	c := &change{Change: have.table.Plan(was, now)}
	var sum needs
	sum.addresses, sum.timeouts, sum.sticky = map[netip.Addr]int{}, map[uint32]int{}, map[stickyEndpoint]int{}
	if was == nil {
		for s := range now.Services() {
			sum.count(s, 1)
		}
		sum.addresses, sum.timeouts, sum.sticky = have.addresses.from(sum.addresses), have.timeouts.from(sum.timeouts), have.sticky.from(sum.sticky)
	} else {
		for key := range now.Changed(was) {
			sum.count(was.Service(key), -1)
			sum.count(now.Service(key), 1)
		}
	}
	c.addresses, c.timeouts, c.sticky = have.addresses.plan(sum.addresses), have.timeouts.plan(sum.timeouts), have.sticky.plan(sum.sticky)
	n := &now.Network
	c.mistakable = have.mistakableAfter(c.Change, was, now)
	for i, prefixes := range [rangeKinds][]netip.Prefix{n.PodCIDRs, n.ClusterCIDRs, n.ServiceCIDRs, untracked(n, c.mistakable, alone)} {
		if spans := spansOf(prefixes); !slices.Equal(spans, have.ranges[i]) {
			c.ranges[i] = &spans
		}
	}
	return c
}

// apply records that the kernel has taken a change.
func (s *state) apply(c *change) {
	s.table.Apply(c.Change)
	s.addresses.apply(c.addresses)
	s.timeouts.apply(c.timeouts)
	s.sticky.apply(c.sticky)
	s.mistakable = c.mistakable
	for i, spans := range c.ranges {
		if spans != nil {
			s.ranges[i] = *spans
		}
	}
}

// needs are what Services need beside what is in a [slots.Table].
type needs struct {
	addresses map[netip.Addr]int
	timeouts  map[uint32]int
	sticky    map[stickyEndpoint]int
}

// count adds what a Service needs n times; it may be nil.
func (sum *needs) count(s *model.Service, n int) {
	if s == nil || s.Kind != model.ClusterIP || s.OtherProxy != "" {
		return
	}
	addrs, timeouts, sticky := map[netip.Addr]struct{}{}, map[uint32]struct{}{}, map[stickyEndpoint]struct{}{}
	for _, addr := range s.ClusterIPs {
		addrs[addr] = struct{}{}
	}
	seen := map[*model.Pool]struct{}{}
	for _, port := range s.Ports {
		for i := range port.Frontends {
			for _, pool := range []*model.Pool{port.Frontends[i].Internal, port.Frontends[i].External} {
				if _, again := seen[pool]; again || pool.Affinity < time.Second {
					continue
				}
				seen[pool] = struct{}{}
				timeouts[uint32(pool.Affinity/time.Second)] = struct{}{}
				id := slots.ID(pool.PoolKey)
				for _, e := range pool.Endpoints {
					sticky[stickyEndpoint{id, e.AddrPort}] = struct{}{}
				}
			}
		}
	}
	add(sum.addresses, addrs, n)
	add(sum.timeouts, timeouts, n)
	add(sum.sticky, sticky, n)
}

// spansOf joins prefixes that touch or lie in each other: the kernel refuses intervals that overlap.
func spansOf(prefixes []netip.Prefix) []span {
	var spans []span
	for _, p := range prefixes {
		if p.IsValid() {
			spans = append(spans, span{p.Masked().Addr(), lastOf(p)})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Or(a.from.Compare(b.from), a.to.Compare(b.to)) })
	var joined []span
	for _, s := range spans {
		if n := len(joined); n > 0 && joined[n-1].from.Is4() == s.from.Is4() {
			last := &joined[n-1]
			if next := last.to.Next(); !next.IsValid() || s.from.Compare(next) <= 0 {
				if s.to.Compare(last.to) > 0 {
					last.to = s.to
				}
				continue
			}
		}
		joined = append(joined, s)
	}
	return joined
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// A sink takes what a change writes, in an order in which a kernel that takes it in several batches never leads a client to a slot that is not there.
type sink interface {
	replace(e element, was, now bool)
	first(...order)
	last(...order)
}

// write gives a change to a sink.
func (c *change) write(t tableName, w sink) {
	writeTimeouts(t, w, c.timeouts.added, nil)
	for i, spans := range c.ranges {
		if spans != nil {
			writeRanges(t, w, podRanges+kind(i), *spans)
		}
	}
	each := func(was, now bool, elements ...element) {
		for _, e := range elements {
			w.replace(e, was, now)
		}
	}
	for _, a := range c.addresses.added {
		each(false, true, addressElement(a))
	}
	for _, a := range c.HairpinsAdded {
		each(false, true, hairpinElement(a))
	}
	for _, s := range c.SourcesAdded {
		each(false, true, element{set: sources.of(familyOf(s.Range.Addr())), key: sourceKey(nil, s)})
	}
	for _, s := range c.sticky.added {
		each(false, true, element{set: stickyEndpoints.of(familyOf(s.addr.Addr())), key: stickyKey(nil, s)})
	}
	for _, s := range c.Slots {
		if s.Now.IsValid() {
			each(s.Was.IsValid(), true, element{set: poolSlots.of(familyOf(s.Now.Addr())), key: slotKey(nil, s.Slot), data: appendTarget(nil, s.Now)})
		}
	}
	for _, f := range c.Frontends {
		e := element{set: frontends.of(familyOf(f.Key.Addr)), key: frontendKey(nil, f.Key)}
		if f.Now.Present {
			e.data = frontendValue(nil, f.Now)
		}
		each(f.Was.Present, f.Now.Present, e)
	}
	for _, s := range c.Slots {
		if !s.Now.IsValid() {
			each(true, false, element{set: poolSlots.of(familyOf(s.Was.Addr())), key: slotKey(nil, s.Slot)})
		}
	}
	for _, s := range c.sticky.gone {
		each(true, false, element{set: stickyEndpoints.of(familyOf(s.addr.Addr())), key: stickyKey(nil, s)})
	}
	for _, s := range c.SourcesRemoved {
		each(true, false, element{set: sources.of(familyOf(s.Range.Addr())), key: sourceKey(nil, s)})
	}
	for _, a := range c.HairpinsGone {
		each(true, false, hairpinElement(a))
	}
	for _, a := range c.addresses.gone {
		each(true, false, addressElement(a))
	}
	writeTimeouts(t, w, nil, c.timeouts.gone)
}

// writeTimeouts adds and deletes the chains that remember for a time.
func writeTimeouts(t tableName, w sink, added, gone []uint32) {
	for _, f := range families() {
		for _, side := range sides() {
			leads := func(seconds uint32) element {
				return element{set: side.remember.of(f), key: native32(seconds), leads: true, code: unix.NFT_GOTO, chain: timeoutName(f, side, seconds)}
			}
			for _, seconds := range added {
				chain := timeoutChain(f, side, seconds)
				w.first(t.newChain(chain))
				w.first(t.newRules(chain)...)
				w.replace(leads(seconds), false, true)
			}
			for _, seconds := range gone {
				w.replace(leads(seconds), true, false) // the chain can't be deleted in an earlier batch than this
				w.last(t.deleteChain(timeoutName(f, side, seconds)))
			}
		}
	}
}

// writeRanges replaces all of a set of intervals.
func writeRanges(t tableName, w sink, k kind, spans []span) {
	for _, f := range families() {
		w.first(t.flushSet(k.of(f)))
		for _, s := range spans {
			if familyOf(s.from) == f {
				for _, e := range s.elements(k.of(f)) {
					w.replace(e, false, true)
				}
			}
		}
	}
}

func addressElement(a netip.Addr) element {
	return element{set: addresses.of(familyOf(a)), key: a.AsSlice()}
}

func hairpinElement(a netip.Addr) element {
	return element{set: hairpins.of(familyOf(a)), key: append(a.AsSlice(), a.AsSlice()...)}
}

// script is a sink that prints what nft would be told.
type script struct {
	table tableName
	out   io.Writer
}

func (s script) first(orders ...order) {
	for _, o := range orders {
		fmt.Fprintln(s.out, o.what)
	}
}

func (s script) last(orders ...order) { s.first(orders...) }

func (s script) replace(e element, was, now bool) {
	l := e.set.kind().layout()
	key := e.set.render(l.key, e.key)
	if e.end {
		key = "before " + key
	}
	if was {
		fmt.Fprintf(s.out, "delete element inet %s %s { %s }\n", s.table, e.set.name(), key)
	}
	switch {
	case now && e.leads:
		fmt.Fprintf(s.out, "add element inet %s %s { %s : goto %s }\n", s.table, e.set.name(), key, e.chain)
	case now && e.data != nil:
		fmt.Fprintf(s.out, "add element inet %s %s { %s : %s }\n", s.table, e.set.name(), key, e.set.render(l.data, e.data))
	case now:
		fmt.Fprintf(s.out, "add element inet %s %s { %s }\n", s.table, e.set.name(), key)
	}
}
