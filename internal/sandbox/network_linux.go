package sandbox

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	bridgeName = "endpointd0"
	// nodeLink is a node's only link; its other end, in the outer namespace, has the node's name.
	nodeLink = "eth0"
)

// outerNetwork makes the bridge with its addresses in the namespace that we are in.
func outerNetwork(gateways []netip.Prefix) error {
	if err := loopbackUp(); err != nil {
		return err
	}
	forward()
	noBridgeFilter()
	snooping := false // there are no routers to learn from, and IPv6 neighbours are found without waiting for one
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &snooping}
	bridge.Name = bridgeName
	bridge.HardwareAddr = net.HardwareAddr{0x02, 0xed, 0, 0, 0, 1} // or it would change with the nodes
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge %s: %w: the kernel needs bridges and veth pairs (modprobe bridge veth)", bridgeName, err)
	}
	for _, gateway := range gateways {
		if err := addAddress(bridge, gateway); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("bridge %s up: %w", bridgeName, err)
	}
	return nil
}

// connect makes the node's namespaces, with a link to the bridge, and routes its pods' addresses there.
func connect(n Node, gateways []netip.Prefix) (*namespaces, error) {
	spaces, err := newNamespaces(n.Name, func() error { forward(); return loopbackUp() })
	if err != nil {
		return nil, err
	}
	err = addLink(n, spaces)
	if err == nil {
		err = spaces.within(func() error { return nodeNetwork(n, gateways) })
	}
	if err == nil {
		err = routePods(n)
	}
	if err != nil {
		spaces.close()
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	return spaces, nil
}

func addLink(n Node, spaces *namespaces) error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridgeName, err)
	}
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: nodeLink, PeerNamespace: netlink.NsFd(spaces.net.Fd())}
	veth.Name, veth.MasterIndex = n.Name, bridge.Attrs().Index
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link %s: %w", n.Name, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fmt.Errorf("link %s up: %w", n.Name, err)
	}
	return nil
}

// nodeNetwork runs in the node's namespace.
func nodeNetwork(n Node, gateways []netip.Prefix) error {
	link, err := netlink.LinkByName(nodeLink)
	if err != nil {
		return fmt.Errorf("link %s: %w", nodeLink, err)
	}
	for i, addr := range n.Addrs {
		if err := addAddress(link, netip.PrefixFrom(addr, gateways[i].Bits())); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s up: %w", nodeLink, err)
	}
	for _, gateway := range gateways {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.Addr().AsSlice()}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("default route via %s: %w", gateway.Addr(), err)
		}
	}
	return nil
}

func routePods(n Node) error {
	for i, cidr := range n.PodCIDRs {
		route := &netlink.Route{Dst: ipNet(cidr), Gw: n.Addrs[i].AsSlice()}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("route %s via %s: %w", cidr, n.Addrs[i], err)
		}
	}
	return nil
}

// routeServices routes ClusterIPs to the nodes, which know where they lead: one address to one node, and all of them in use.
func routeServices(s Spec) error {
	for _, cidr := range s.Services {
		route := &netlink.Route{Dst: ipNet(cidr)}
		for _, n := range s.Nodes {
			if i := slices.IndexFunc(n.Addrs, func(a netip.Addr) bool { return a.Is4() == cidr.Addr().Is4() }); i >= 0 {
				route.MultiPath = append(route.MultiPath, &netlink.NexthopInfo{Gw: n.Addrs[i].AsSlice()})
			}
		}
		if len(route.MultiPath) == 0 {
			continue // no node has an address of this family
		}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("route %s via the nodes: %w", cidr, err)
		}
	}
	return nil
}

func addAddress(link netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // addresses are ours: usable at once
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("address %s for %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}

// ipNet keeps the host part.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// noBridgeFilter has packets on the bridge be routed like any others. With br_netfilter, which others may have loaded, an address that was translated would
// be bridged instead, and never back to the node that it came from. The files are the namespace's own since Linux 5.3; without that module there are none.
func noBridgeFilter() {
	for _, file := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"} {
		if f, err := os.OpenFile(filepath.Join("/proc/sys/net/bridge", file), os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteString("0") // then it is as it was
			_ = f.Close()
		}
	}
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	return nil
}

// forward makes the thread's network namespace a router, and one that does not tell senders of shorter ways: what comes from the outer
// namespace to a ClusterIP leaves by the link that it came from, and must not take a short cut. Without IPv6 in the kernel there is one file less.
func forward() {
	for file, value := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/all/send_redirects": "0", "ipv4/conf/default/send_redirects": "0",
	} {
		_ = os.WriteFile(filepath.Join("/proc/sys/net", file), []byte(value), 0) // pods on other nodes would notice
	}
}
