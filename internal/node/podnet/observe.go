package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// dumpTries is how often a dump is tried that somebody else's changes interrupt.
const dumpTries = 10

// dump repeats a listing until nothing changed meanwhile.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	var found []T
	var err error
	for range dumpTries {
		if found, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return found, err
		}
	}
	return found, err
}

// observeSurroundings reads what others have in a network namespace.
func observeSurroundings(ns netns.NsHandle) (surroundings, error) {
	var around surroundings
	h, err := open(ns)
	if err != nil {
		return around, err
	}
	defer h.close()
	names := map[int]string{}
	links, err := dump(h.LinkList)
	if err != nil {
		return around, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return around, fmt.Errorf("list addresses: %w", err)
	}
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
		if isOurs(link) {
			continue
		}
		foreign := foreignLink{name: link.Attrs().Name, mtu: link.Attrs().MTU}
		for _, addr := range addrs {
			if prefix, ok := fromIPNet(addr.IPNet); ok && addr.LinkIndex == link.Attrs().Index {
				foreign.prefixes = append(foreign.prefixes, prefix)
			}
		}
		around.links = append(around.links, foreign)
	}
	around.routes, err = foreignRoutes(h, names)
	return around, err
}

// foreignRoutes lists the unicast routes of all tables that are not ours.
func foreignRoutes(h *handle, names map[int]string) ([]foreignRoute, error) {
	routes, err := dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var found []foreignRoute
	for _, r := range routes {
		// The local table repeats the addresses of interfaces; multicast and link-local ranges are nobody's.
		if r.Protocol == RouteProtocol || r.Table == unix.RT_TABLE_LOCAL || r.Type == unix.RTN_MULTICAST {
			continue
		}
		foreign := foreignRoute{dst: prefixOf(r), link: names[r.LinkIndex], advert: r.Protocol == unix.RTPROT_RA}
		foreign.isDefault = foreign.dst.Bits() == 0
		foreign.via, _ = netip.AddrFromSlice(r.Gw)
		if !foreign.dst.Addr().IsMulticast() {
			found = append(found, foreign)
		}
	}
	return found, nil
}

// isOurs knows the node's end of a cable. An Add that was interrupted leaves one without an alias.
func isOurs(link netlink.Link) bool {
	name, alias := link.Attrs().Name, link.Attrs().Alias
	return link.Type() == "veth" && (name == linkName(alias) || alias == "" && strings.HasPrefix(name, linkPrefix) && len(name) == len(linkName("")))
}

// ourLinks lists the node's ends of all cables.
func ourLinks(h *handle) ([]netlink.Link, error) {
	links, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return slices.DeleteFunc(links, func(l netlink.Link) bool { return !isOurs(l) }), nil
}

// removeUnfinished removes the cables of interrupted Adds. Nobody may be adding pods.
func (k *kernel) removeUnfinished() error {
	h, err := k.open()
	if err != nil {
		return err
	}
	defer h.close()
	links, err := ourLinks(h)
	if err != nil {
		return err
	}
	var errs []error
	for _, link := range links {
		if link.Attrs().Alias == "" {
			errs = append(errs, k.removeLink(link.Attrs().Name))
		}
	}
	return errors.Join(errs...)
}

// observePods returns UID → addresses of the pods whose cables are there.
func (k *kernel) observePods() (map[string][]netip.Addr, error) {
	h, err := k.open()
	if err != nil {
		return nil, err
	}
	defer h.close()
	links, err := ourLinks(h)
	if err != nil {
		return nil, err
	}
	uids := map[int]string{}
	pods := map[string][]netip.Addr{}
	for _, link := range links {
		if link.Attrs().Alias != "" {
			uids[link.Attrs().Index] = link.Attrs().Alias
			pods[link.Attrs().Alias] = nil
		}
	}
	if len(pods) == 0 {
		return pods, nil
	}
	routes, err := ownRoutes(h)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if uid, ok := uids[r.LinkIndex]; ok {
			pods[uid] = append(pods[uid], prefixOf(r).Addr())
		}
	}
	return pods, nil
}

// observePeerRoutes returns range → address for our routes to other nodes' pods.
func (k *kernel) observePeerRoutes() (map[netip.Prefix]netip.Addr, error) {
	h, err := k.open()
	if err != nil {
		return nil, err
	}
	defer h.close()
	routes, err := ownRoutes(h)
	if err != nil {
		return nil, err
	}
	found := map[netip.Prefix]netip.Addr{}
	for _, r := range routes {
		if via, ok := netip.AddrFromSlice(r.Gw); ok {
			found[prefixOf(r)] = via.Unmap()
		}
	}
	return found, nil
}

// ownRoutes lists the routes with our protocol.
func ownRoutes(h *handle) ([]netlink.Route, error) {
	var all []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(family, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil && !(family == netlink.FAMILY_V6 && errors.Is(err, unix.EAFNOSUPPORT)) {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		all = append(all, routes...)
	}
	return all, nil
}

// prefixOf returns where a route leads; a default route has no destination of its own in some kernels' answers.
func prefixOf(r netlink.Route) netip.Prefix {
	if prefix, ok := fromIPNet(r.Dst); ok {
		return prefix.Masked()
	}
	if r.Family == netlink.FAMILY_V6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

func fromIPNet(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if !ok || size == 0 {
		return netip.Prefix{}, false
	}
	if size == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, bits), true
}

// forgetFlows has conntrack forget UDP flows to host ports, which are decided once at their first packet: those to a pod that is gone
// (fresh = false), and those from before the pod was there (fresh = true), which would go on to pass it by.
func (k *kernel) forgetFlows(forwards []forward, fresh bool) error {
	forwards = slices.DeleteFunc(slices.Clone(forwards), func(f forward) bool { return f.protocol != unix.IPPROTO_UDP })
	if len(forwards) == 0 {
		return nil
	}
	h, err := netlink.NewHandleAt(k.ns, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	stale := staleFlows{forwards: forwards, fresh: fresh}
	if fresh {
		around, err := observeSurroundings(k.ns)
		if err != nil {
			return err
		}
		stale.local = around.has
	}
	for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, stale); err != nil && !ignorable(err) {
			return fmt.Errorf("forget UDP flows to host ports: %w", err)
		}
		k.writes.Add(1)
	}
	return nil
}

// ignorable: a flow that ended by itself, an interrupted dump (others' flows came and went), or a kernel without conntrack.
func ignorable(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.EINVAL) || strings.Contains(err.Error(), "no such file")
}

// staleFlows matches flows for netlink's conntrack filter.
type staleFlows struct {
	forwards []forward
	fresh    bool
	local    func(netip.Addr) bool // is it an address of the node? used if fresh
}

// MatchConntrackFlow is called for each flow of the node.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	from, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	to, from = to.Unmap(), from.Unmap()
	for _, f := range s.forwards {
		if flow.Forward.Protocol != f.protocol || flow.Forward.DstPort != f.host.Port() || to.Is4() != f.host.Addr().Is4() {
			continue
		}
		if !s.fresh && from == f.target.Addr() {
			return true
		}
		if s.fresh && from == to && s.local(to) && (f.host.Addr().IsUnspecified() || f.host.Addr() == to) {
			return true
		}
	}
	return false
}
