package podnet

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

const (
	// RouteProtocol marks our routes (`ip route show proto 69`), so that they are found again and nobody else's are touched.
	RouteProtocol = 69
	// linkPrefix begins the names of the node's ends of the cables.
	linkPrefix = "edp"
	// podLink is the interface in a pod.
	podLink = "eth0"
	// Table is the name of our nftables table, of family inet.
	Table = "endpointd-pods"
	// unreachableMetric keeps the route that refuses unused addresses of the own range behind all others.
	unreachableMetric = 4096
)

// config is Options, checked.
type config struct {
	cidrs []netip.Prefix // masked, at most one of each family
	addrs []netip.Addr   // of the node
	node  addrPair       // of the node: the first of each family
	mtu   int
}

// addrPair holds an address of each family; one may be zero.
type addrPair struct{ v4, v6 netip.Addr }

// of returns the address of the same family as like.
func (p addrPair) of(like netip.Addr) netip.Addr {
	if like.Is4() {
		return p.v4
	}
	return p.v6
}

func pairOf(addrs []netip.Addr) addrPair {
	var pair addrPair
	for _, addr := range addrs {
		if addr.Is4() && !pair.v4.IsValid() {
			pair.v4 = addr
		} else if addr.Is6() && !pair.v6.IsValid() {
			pair.v6 = addr
		}
	}
	return pair
}

func newConfig(o Options) (config, error) {
	var c config
	for _, addr := range o.NodeAddrs {
		if !addr.IsValid() || addr.IsUnspecified() {
			return c, fmt.Errorf("node address %q is none; give the node's InternalIP", addr)
		}
		c.addrs = append(c.addrs, addr.Unmap().WithZone(""))
	}
	c.node = pairOf(c.addrs)
	if len(o.PodCIDRs) == 0 {
		return c, errors.New("the node has no pod range; give it one (--pod-cidr)")
	}
	for _, prefix := range o.PodCIDRs {
		prefix = prefix.Masked()
		if err := c.admit(prefix); err != nil {
			return c, err
		}
		c.cidrs = append(c.cidrs, prefix)
	}
	return c, nil
}

// admit refuses a pod range that is wrong whatever the machine looks like.
func (c config) admit(prefix netip.Prefix) error {
	switch {
	case !prefix.IsValid():
		return errors.New("a pod range is not valid; give it as 10.244.1.0/24 (--pod-cidr)")
	case prefix.Addr().Is4In6():
		return fmt.Errorf("pod range %s is IPv4 written as IPv6; write it as IPv4 (--pod-cidr)", prefix)
	case capacity(prefix) == 0:
		return fmt.Errorf("pod range %s has no address for a pod; give a larger one (--pod-cidr)", prefix)
	case !c.node.of(prefix.Addr()).IsValid():
		return fmt.Errorf("pod range %s needs a node address of its family, and the node has %s; give an %s address of the node too, or drop the range (--pod-cidr)",
			prefix, join(c.addrs), familyName(prefix.Addr()))
	}
	for _, other := range c.cidrs {
		if other.Addr().Is4() == prefix.Addr().Is4() {
			return fmt.Errorf("pod ranges %s and %s are of one family; give at most one of each (--pod-cidr)", other, prefix)
		}
	}
	for _, addr := range c.addrs {
		if prefix.Contains(addr) {
			return fmt.Errorf("%w: %s holds the node's own address %s; choose another range (--pod-cidr)", ErrOverlap, prefix, addr)
		}
	}
	return nil
}

// surroundings is what others made in the node's network namespace.
type surroundings struct {
	routes []foreignRoute
	links  []foreignLink
}

type foreignRoute struct {
	dst       netip.Prefix
	via       netip.Addr // zero = on-link
	link      string     // interface; may be empty
	advert    bool       // learned from a router advertisement
	isDefault bool
}

func (r foreignRoute) String() string {
	s := r.dst.String()
	if r.via.IsValid() {
		s += " via " + r.via.String()
	}
	if r.link != "" {
		s += " dev " + r.link
	}
	return s
}

type foreignLink struct {
	name     string
	mtu      int
	prefixes []netip.Prefix // its addresses, with their lengths
}

// conflicts returns why the pod ranges cannot be used here, or nil.
func conflicts(c config, around surroundings) error {
	for _, prefix := range c.cidrs {
		for _, link := range around.links {
			for _, used := range link.prefixes {
				if prefix.Overlaps(used.Masked()) {
					return fmt.Errorf("%w: %s is in use by interface %s (%s); choose another range (--pod-cidr)", ErrOverlap, prefix, link.name, used)
				}
			}
		}
		for _, route := range around.routes {
			if !route.isDefault && prefix.Overlaps(route.dst) {
				return fmt.Errorf("%w: %s is in use by the route %s; choose another range (--pod-cidr)", ErrOverlap, prefix, route)
			}
		}
		if addr := c.node.of(prefix.Addr()); !around.has(addr) {
			return fmt.Errorf("node address %s is on no interface here; give an address of this machine", addr)
		}
	}
	return nil
}

func (s surroundings) has(addr netip.Addr) bool { return s.holder(addr) != nil }

// holder returns the interface that has an address.
func (s surroundings) holder(addr netip.Addr) *foreignLink {
	for i := range s.links {
		for _, p := range s.links[i].prefixes {
			if p.Addr() == addr {
				return &s.links[i]
			}
		}
	}
	return nil
}

// mtu returns that of the interfaces with the node's addresses, the smallest; an address on the loopback interface does not count.
func (s surroundings) mtu(node addrPair) int {
	const ethernet, loopback = 1500, 65536
	smallest := 0
	for _, addr := range []netip.Addr{node.v4, node.v6} {
		if link := s.holder(addr); link != nil && link.mtu < loopback && (smallest == 0 || link.mtu < smallest) {
			smallest = link.mtu
		}
	}
	return cmp.Or(smallest, ethernet)
}

// cable is one pod's connection, as it should be.
type cable struct {
	uid      string
	addrs    []netip.Addr // of the pod
	node     addrPair     // source of the node's own packets to the pod
	mtu      int
	localnet bool // the node may send to the pod from 127.0.0.1, for an IPv4 host port
}

// linkName is the node's end of a pod's cable. 55 bits of a hash: two pods of one node have different names.
func linkName(uid string) string {
	sum := sha256.Sum256([]byte(uid))
	return linkPrefix + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:7]))[:11]
}

// nodeMAC is the hardware address of the node's end of every cable: locally administered, and seen by nobody but the pod.
func nodeMAC() net.HardwareAddr { return net.HardwareAddr{0xee, 0xed, 0, 0, 0, 1} }

// podMAC is the hardware address of a pod.
func podMAC(uid string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(uid))
	return net.HardwareAddr{0x0a, sum[8], sum[9], sum[10], sum[11], sum[12]}
}

// linkLocal is the address that RFC 4291 (appendix A) derives from a hardware address.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

// gateway is where a pod's default route leads. Nobody has the address: a permanent neighbour entry gives it the node's MAC.
func gateway(family netip.Addr) netip.Addr {
	if family.Is4() {
		return netip.AddrFrom4([4]byte{169, 254, 1, 1})
	}
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 15: 1})
}

// peerRoutes returns pod range of another node → address it is reached by, pod range → name of the node, and what is wrong with
// the peers that are left out.
func peerRoutes(c config, peers []Peer) (wanted map[netip.Prefix]netip.Addr, owner map[netip.Prefix]string, errs []error) {
	wanted = map[netip.Prefix]netip.Addr{}
	owner = map[netip.Prefix]string{}
	for _, peer := range sortedPeers(peers) {
		via := pairOf(peer.Addrs)
		for _, prefix := range peer.PodCIDRs {
			prefix = prefix.Masked()
			if err := peerConflict(c, owner, peer, prefix); err != nil {
				errs = append(errs, err)
				continue
			}
			gw := via.of(prefix.Addr())
			if !gw.IsValid() {
				errs = append(errs, fmt.Errorf("node %s: pod range %s cannot be reached: the node has no %s address; add one to its status.addresses",
					peer.Name, prefix, familyName(prefix.Addr())))
				continue
			}
			wanted[prefix], owner[prefix] = gw, peer.Name
		}
	}
	return wanted, owner, errs
}

func sortedPeers(peers []Peer) []Peer {
	return slices.SortedFunc(slices.Values(peers), func(a, b Peer) int { return cmp.Compare(a.Name, b.Name) })
}

func peerConflict(c config, owner map[netip.Prefix]string, peer Peer, prefix netip.Prefix) error {
	if !prefix.IsValid() {
		return fmt.Errorf("node %s: a pod range is not valid; correct its spec.podCIDRs", peer.Name)
	}
	for _, own := range c.cidrs {
		if own.Overlaps(prefix) {
			return fmt.Errorf("node %s: pod range %s overlaps this node's %s; give the nodes different ranges (--pod-cidr)", peer.Name, prefix, own)
		}
	}
	for _, addr := range c.addrs {
		if prefix.Contains(addr) {
			return fmt.Errorf("node %s: pod range %s holds this node's address %s; give it another range (--pod-cidr)", peer.Name, prefix, addr)
		}
	}
	for other, name := range owner {
		if other.Overlaps(prefix) {
			return fmt.Errorf("node %s: pod range %s overlaps %s of node %s; give the nodes different ranges (--pod-cidr)", peer.Name, prefix, other, name)
		}
	}
	return nil
}

// routeChange is one step. From zero = it is new; to zero = it goes.
type routeChange struct {
	dst      netip.Prefix
	from, to netip.Addr
}

// diffRoutes returns what leads from have to wanted, what goes first.
func diffRoutes(have, wanted map[netip.Prefix]netip.Addr) []routeChange {
	var changes []routeChange
	for dst, via := range have {
		if _, keep := wanted[dst]; !keep {
			changes = append(changes, routeChange{dst: dst, from: via})
		}
	}
	for dst, via := range wanted {
		if have[dst] != via {
			changes = append(changes, routeChange{dst: dst, from: have[dst], to: via})
		}
	}
	slices.SortFunc(changes, func(a, b routeChange) int {
		if a.to.IsValid() != b.to.IsValid() {
			return cmp.Compare(bit(a.to.IsValid()), bit(b.to.IsValid()))
		}
		return cmp.Or(a.dst.Addr().Compare(b.dst.Addr()), cmp.Compare(a.dst.Bits(), b.dst.Bits()))
	})
	return changes
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// inside returns where pods are seen with their own address: all pods and all nodes. What leaves it is masqueraded.
func inside(c config, peers []Peer) []addrRange {
	prefixes := slices.Clone(c.cidrs)
	for _, addr := range c.addrs {
		prefixes = append(prefixes, netip.PrefixFrom(addr, addr.BitLen()))
	}
	for _, peer := range peers {
		for _, addr := range peer.Addrs {
			prefixes = append(prefixes, netip.PrefixFrom(addr, addr.BitLen()))
		}
		prefixes = append(prefixes, peer.PodCIDRs...)
	}
	return union(prefixes)
}

// addrRange holds its first and last address.
type addrRange struct{ from, to netip.Addr }

// union returns disjoint ranges in order that hold the same addresses; those that touch are one.
func union(prefixes []netip.Prefix) []addrRange {
	var ranges []addrRange
	for _, p := range prefixes {
		if p.IsValid() {
			ranges = append(ranges, addrRange{p.Masked().Addr(), lastOf(p)})
		}
	}
	slices.SortFunc(ranges, func(a, b addrRange) int { return cmp.Or(a.from.Compare(b.from), a.to.Compare(b.to)) })
	var merged []addrRange
	for _, r := range ranges {
		if end := len(merged) - 1; end >= 0 && merged[end].from.Is4() == r.from.Is4() &&
			(r.from.Compare(merged[end].to) <= 0 || merged[end].to.Next() == r.from) {
			if merged[end].to.Less(r.to) {
				merged[end].to = r.to
			}
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// covers says whether each of inner lies in one of outer.
func covers(outer, inner []addrRange) bool {
	for _, in := range inner {
		if !slices.ContainsFunc(outer, func(out addrRange) bool {
			return out.from.Is4() == in.from.Is4() && out.from.Compare(in.from) <= 0 && in.to.Compare(out.to) <= 0
		}) {
			return false
		}
	}
	return true
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(b) // as long as it was
	return addr
}
