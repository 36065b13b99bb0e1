package dptest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/testkit"
)

// A World is what the packets of the suite cross:
//
//	a b c                     x y z          pods; a to c are this node's
//	 \|/                       \|/
//	node ─────── switch ────── peer          10.200.0.0/24, fd00:200::/64
//	               |
//	            outside                      no pod, no node; sends what is for a Service to node
//
// The proxier under test works in Node's namespace. Everybody but this node's pods sends what is for an address of a Service through node.
type World struct {
	Node, Peer, Outside *Place
	// Pods are a, b and c on Node, and x, y and z on Peer.
	Pods []*Place
	// Cgroup is the path of the cgroup in which the clients on Node and in its pods are, and nobody else, and Pins that of a mounted bpffs; "" without
	// [BPF].
	Cgroup, Pins string

	sw *Place
}

// Names that the model is told.
const (
	NodeName = "node-1"
	NodeZone = "zone-1"
	PeerName = "node-2"
	PeerZone = "zone-2"
)

// Extra is an address of Node on which no NodePort answers.
func Extra(v6 bool) netip.Addr { return pick(v6, "10.200.0.20", "fd00:200::20") }

// Network is what the model is told of Node's addresses.
func Network() model.Network {
	prefixes := func(texts ...string) []netip.Prefix {
		var all []netip.Prefix
		for _, t := range texts {
			all = append(all, netip.MustParsePrefix(t))
		}
		return all
	}
	return model.Network{
		Node: NodeName, Zone: NodeZone,
		NodePortAddrs: []netip.Addr{pick(false, nodeV4, nodeV6), pick(true, nodeV4, nodeV6)},
		PodCIDRs:      prefixes("10.244.1.0/24", "fd00:244:0:1::/64"),
		ClusterCIDRs:  prefixes("10.244.0.0/16", "fd00:244::/48"),
		NodePodCIDRs:  prefixes("10.244.1.0/24", "10.244.2.0/24", "fd00:244:0:1::/64", "fd00:244:0:2::/64"),
		ServiceCIDRs:  prefixes("10.96.0.0/16", "fd00:96::/108"),
	}
}

const nodeV4, nodeV6 = "10.200.0.10", "fd00:200::10"

// pick is the address of a family.
func pick(v6 bool, v4Text, v6Text string) netip.Addr {
	if v6 {
		return netip.MustParseAddr(v6Text)
	}
	return netip.MustParseAddr(v4Text)
}

// outsidePrefixes are the addresses of Services that are reached from outside: external IPs and those of load balancers.
func servicePrefixes() []netip.Prefix {
	return append(Network().ServiceCIDRs,
		netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:e::/64"),
		netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:b::/64"))
}

// NewWorld makes one; it ends with the test. The test binary must be in namespaces of its own, see [Main].
func NewWorld(t testing.TB) *World {
	t.Helper()
	needInside(t)
	w := &World{}
	pins := t.TempDir() // removed after what is mounted there
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Errorf("end the world: %v", err)
		}
	})
	if err := w.build(); err != nil {
		t.Fatalf("build the world: %v", err)
	}
	testkit.Await(t, 20*time.Second, w.settled)
	if err := w.privileged(pins); err != nil {
		t.Fatalf("build the world: %v", err)
	}
	return w
}

func (w *World) build() error {
	var err error
	if w.sw, err = newPlace("switch"); err != nil {
		return err
	}
	err = w.sw.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		return errors.Join(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}), up("br0"))
	})
	if err != nil {
		return err
	}
	if w.Node, err = w.host("node", nodeV4, nodeV6); err != nil {
		return err
	}
	if w.Peer, err = w.host("peer", "10.200.0.11", "fd00:200::11"); err != nil {
		return err
	}
	if w.Outside, err = w.host("outside", "10.200.0.100", "fd00:200::100"); err != nil {
		return err
	}
	for i, name := range []string{"a", "b", "c", "x", "y", "z"} {
		node, number := w.Node, 1
		if i >= 3 {
			node, number = w.Peer, 2
		}
		v4 := netip.AddrFrom4([4]byte{10, 244, byte(number), byte(2 + i%3)})
		v6 := netip.MustParseAddr(fmt.Sprintf("fd00:244:0:%d::%d", number, 2+i%3))
		pod, err := newPod(name, node, v4, v6)
		if err != nil {
			return err
		}
		w.Pods = append(w.Pods, pod)
	}
	return w.routes()
}

// host is a place on the switch.
func (w *World) host(name, v4, v6 string) (*Place, error) {
	p, err := newPlace(name)
	if err != nil {
		return nil, err
	}
	p.V4, p.V6 = netip.MustParseAddr(v4), netip.MustParseAddr(v6)
	err = w.sw.Do(func() error {
		bridge, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = name, bridge.Attrs().Index
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplink, PeerNamespace: netlink.NsFd(p.ns)}
		return errors.Join(netlink.LinkAdd(veth), up(name))
	})
	if err != nil {
		return p, err
	}
	return p, p.Do(func() error {
		link, err := netlink.LinkByName(uplink)
		if err != nil {
			return err
		}
		return errors.Join(addAddrs(link, netip.PrefixFrom(p.V4, 24), netip.PrefixFrom(p.V6, 64)), netlink.LinkSetUp(link))
	})
}

// uplink is the name of a host's interface on the switch, and of a pod's.
const uplink = "eth0"

// newPod lays a cable between a node and a pod of its, as package podnet does: the default route leads to a gateway that nobody owns, and
// the node's end has no address, so the node masquerades with one of its own.
func newPod(name string, node *Place, v4, v6 netip.Addr) (*Place, error) {
	p, err := newPlace(name)
	if err != nil {
		return nil, err
	}
	p.V4, p.V6 = v4, v6
	nodeMAC, podMAC := net.HardwareAddr{2, 0, 0, 0, 0, 1}, append(net.HardwareAddr{2, 0}, v4.AsSlice()...)
	err = node.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = "pod-"+name, nodeMAC
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplink, PeerHardwareAddr: podMAC, PeerNamespace: netlink.NsFd(p.ns)}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return errors.Join(
			netlink.LinkSetIP6AddrGenMode(veth, addrGenModeNone), netlink.LinkSetUp(veth),
			neighbour(veth, v4, podMAC), route(veth, netip.PrefixFrom(v4, 32), netip.Addr{}, node.V4),
			neighbour(veth, v6, podMAC), route(veth, netip.PrefixFrom(v6, 128), netip.Addr{}, node.V6))
	})
	if err != nil {
		return p, err
	}
	return p, p.Do(func() error {
		link, err := netlink.LinkByName(uplink)
		if err != nil {
			return err
		}
		gateway4, gateway6 := netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")
		return errors.Join(
			addAddrs(link, netip.PrefixFrom(v4, 32), netip.PrefixFrom(v6, 128)), netlink.LinkSetUp(link),
			neighbour(link, gateway4, nodeMAC), route(link, netip.MustParsePrefix("0.0.0.0/0"), gateway4, netip.Addr{}),
			neighbour(link, gateway6, nodeMAC), route(link, netip.MustParsePrefix("::/0"), gateway6, netip.Addr{}))
	})
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE: the kernel gives the interface no address.
const addrGenModeNone = 1

func neighbour(link netlink.Link, addr netip.Addr, mac net.HardwareAddr) error {
	err := netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac})
	if err != nil {
		return fmt.Errorf("neighbour %s: %w", addr, err)
	}
	return nil
}

// routes lead between the hosts, and to the Services.
func (w *World) routes() error {
	on := func(p *Place, f func(link netlink.Link) error) error {
		return p.Do(func() error {
			link, err := netlink.LinkByName(uplink)
			if err != nil {
				return err
			}
			return f(link)
		})
	}
	via := func(link netlink.Link, to string, p *Place) error {
		prefix := netip.MustParsePrefix(to)
		return route(link, prefix, p.Addr(prefix.Addr().Is6()), netip.Addr{})
	}
	services := func(link netlink.Link) error {
		var errs []error
		for _, to := range servicePrefixes() {
			errs = append(errs, route(link, to, w.Node.Addr(to.Addr().Is6()), netip.Addr{}))
		}
		return errors.Join(errs...)
	}
	return errors.Join(
		w.Node.Do(forwarding), w.Peer.Do(forwarding),
		on(w.Node, func(link netlink.Link) error {
			return errors.Join(
				addAddrs(link, netip.PrefixFrom(Extra(false), 24)),
				// Deprecated: no client's own.
				netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(Extra(true), 64)), Flags: unix.IFA_F_NODAD, ValidLft: 1 << 30}),
				via(link, "10.244.2.0/24", w.Peer), via(link, "fd00:244:0:2::/64", w.Peer),
				// What no proxier takes ends outside, which forwards nothing.
				route(link, netip.MustParsePrefix("0.0.0.0/0"), w.Outside.V4, w.Node.V4), route(link, netip.MustParsePrefix("::/0"), w.Outside.V6, w.Node.V6))
		}),
		on(w.Peer, func(link netlink.Link) error {
			return errors.Join(via(link, "10.244.1.0/24", w.Node), via(link, "fd00:244:0:1::/64", w.Node), services(link))
		}),
		on(w.Outside, func(link netlink.Link) error {
			return errors.Join(
				via(link, "10.244.1.0/24", w.Node), via(link, "fd00:244:0:1::/64", w.Node),
				via(link, "10.244.2.0/24", w.Peer), via(link, "fd00:244:0:2::/64", w.Peer), services(link))
		}),
	)
}

// settled says what the kernel still has to do in the background. Until then packets would be lost.
func (w *World) settled() error {
	for _, p := range append(w.everybody(), w.sw) {
		err := p.Do(func() error {
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			for _, link := range links {
				if a := link.Attrs(); a.OperState != netlink.OperUp && a.Name != "lo" {
					return fmt.Errorf("%s is %s", a.Name, a.OperState)
				}
			}
			addrs, err := netlink.AddrList(nil, netlink.FAMILY_V6)
			for _, a := range addrs {
				if a.Flags&unix.IFA_F_TENTATIVE != 0 {
					return fmt.Errorf("%s is tentative", a.IP)
				}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	// The first packet of a pair has to learn addresses; nobody else's should wait for that.
	for _, v6 := range []bool{false, true} {
		for _, from := range w.everybody() {
			for _, to := range w.everybody() {
				if _, err := from.ask(askOptions{protocol: model.UDP, to: netip.AddrPortFrom(to.Addr(v6), 9), timeout: time.Second}); !errors.Is(err, unix.ECONNREFUSED) {
					return fmt.Errorf("%s does not reach %s: %v", from.Name, to.Name, err) //nolint:errorlint // may be nil
				}
			}
		}
	}
	return nil
}

// everybody who can be a client.
func (w *World) everybody() []*Place {
	return append([]*Place{w.Node, w.Peer, w.Outside}, w.Pods...)
}

// Place finds by name: node, peer, outside or a pod; nil if there is none.
func (w *World) Place(name string) *Place {
	for _, p := range w.everybody() {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// Namespaces are the paths of the network namespaces of Node's pods.
func (w *World) Namespaces() []string {
	var paths []string
	for _, pod := range w.Pods[:3] {
		paths = append(paths, fmt.Sprintf("/proc/self/fd/%d", int(pod.ns)))
	}
	return paths
}

// Here says whether a place is a pod of this node.
func (w *World) Here(p *Place) bool {
	return slices.Index(w.Pods, p) >= 0 && slices.Index(w.Pods, p) < 3
}

func (w *World) close() error {
	var errs []error
	if w.Pins != "" {
		errs = append(errs, unix.Unmount(w.Pins, 0))
	}
	for _, p := range append(w.everybody(), w.sw) {
		if p != nil {
			errs = append(errs, p.close())
		}
	}
	if w.Cgroup != "" {
		errs = append(errs, removeCgroup(w.Cgroup))
	}
	return errors.Join(errs...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
