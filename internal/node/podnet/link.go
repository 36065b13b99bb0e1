package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// kernel writes to the network namespace of the node and of pods. It decides nothing and remembers nothing but the number of writes.
type kernel struct {
	ns     netns.NsHandle
	writes atomic.Int64 // messages that changed something
}

// handle is one user's own connection to a network namespace, so that nobody waits for another's answer.
type handle struct {
	*netlink.Handle
	raw map[int]*nl.SocketHandle // for messages that Handle has no method for
}

// open connects to a network namespace; netns.None() is that of the thread.
func open(ns netns.NsHandle) (*handle, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w; the agent needs CAP_NET_ADMIN", err)
	}
	raw, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &handle{h, map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: raw}}}, nil
}

func (h *handle) close() {
	h.Close()
	h.raw[unix.NETLINK_ROUTE].Close()
}

func (h *handle) execute(message int, data ...nl.NetlinkRequestData) error {
	req := nl.NewNetlinkRequest(message, unix.NLM_F_ACK)
	req.Sockets = h.raw
	for _, d := range data {
		req.AddData(d)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (k *kernel) open() (*handle, error) { return open(k.ns) }

func (k *kernel) wrote(err error) error {
	k.writes.Add(1)
	return err
}

// addPod lays the cable c to the network namespace at path and makes both ends ready.
func (k *kernel) addPod(c cable, path string) error {
	node, err := k.open()
	if err != nil {
		return err
	}
	defer node.close()
	podNS, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w; the pod's sandbox has ended", path, err)
	}
	defer func() { _ = podNS.Close() }()
	if podNS.Equal(k.ns) {
		return fmt.Errorf("network namespace %s is the node's own; a pod with hostNetwork has no network to add", path)
	}
	return inNamespace(podNS, func() error {
		if err := allowIPv6(c.addrs); err != nil {
			return err
		}
		pod, err := open(netns.None())
		if err != nil {
			return fmt.Errorf("network namespace %s: %w", path, err)
		}
		defer pod.close()
		link, err := k.lay(node, c, podNS)
		if err != nil {
			return err
		}
		if err := k.podEnd(pod, c); err != nil {
			return err
		}
		if err := k.nodeEnd(node, link, c); err != nil {
			return err
		}
		return awaitReady(node, pod, c)
	})
}

const (
	readyPoll    = 100 * time.Microsecond
	readyTimeout = 2 * time.Second
)

// awaitReady waits until both ends can send and receive. The kernel does the last of it a moment later, in the background: it notices
// the carrier, and makes IPv6 addresses the pod's own. Until then packets would be lost, and
// the first connection would take a second.
func awaitReady(node, pod *handle, c cable) error {
	for start := time.Now(); ; time.Sleep(readyPoll) {
		missing, err := notReady(node, pod, c)
		if err != nil || missing == "" {
			return err
		}
		if time.Since(start) > readyTimeout {
			return fmt.Errorf("interface %s is not ready after %v: %s", linkName(c.uid), readyTimeout, missing)
		}
	}
}

// notReady says what is missing, "" if nothing is.
func notReady(node, pod *handle, c cable) (string, error) {
	for _, end := range []struct {
		handle *handle
		name   string
	}{{pod, podLink}, {node, linkName(c.uid)}} {
		link, err := end.handle.LinkByName(end.name)
		if err != nil {
			return "", fmt.Errorf("find interface %s: %w", end.name, err)
		}
		if state := link.Attrs().OperState; state != netlink.OperUp {
			return end.name + " is " + state.String(), nil
		}
	}
	for _, addr := range c.addrs {
		if addr.Is4() {
			continue
		}
		routes, err := pod.RouteGet(addr.AsSlice())
		if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
			return fmt.Sprintf("%s is not the pod's own yet", addr), nil
		}
	}
	return "", nil
}

// allowIPv6 turns IPv6 on in the thread's network namespace if the pod has such an address: some machines have it off for new ones.
func allowIPv6(addrs []netip.Addr) error {
	if !pairOf(addrs).v6.IsValid() {
		return nil
	}
	for _, name := range []string{disableAllV6, disableNextV6, disableLoopV6} {
		if err := setting(name, "0"); err != nil {
			return err
		}
	}
	return nil
}

// lay makes the pair of interfaces and returns the index of the node's end.
func (k *kernel) lay(node *handle, c cable, podNS netns.NsHandle) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = linkName(c.uid), c.mtu, nodeMAC()
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: podLink, PeerHardwareAddr: podMAC(c.uid), PeerNamespace: netlink.NsFd(podNS)}
	if err := k.wrote(node.LinkAdd(veth)); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return 0, fmt.Errorf("make interface %s and %s in the pod: %w; the network namespace has a network already", attrs.Name, podLink, err)
		}
		return 0, fmt.Errorf("make interface %s: %w", attrs.Name, err)
	}
	return veth.Index, nil
}

// podEnd sets up lo and eth0 in the pod.
func (k *kernel) podEnd(pod *handle, c cable) error {
	lo, err := pod.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo in the pod: %w", err)
	}
	if err := k.wrote(pod.LinkSetUp(lo)); err != nil {
		return fmt.Errorf("set lo up in the pod: %w", err)
	}
	eth, err := pod.LinkByName(podLink)
	if err != nil {
		return fmt.Errorf("find %s in the pod: %w", podLink, err)
	}
	index := eth.Attrs().Index
	if err := k.raise(pod, index, "", nil); err != nil {
		return fmt.Errorf("set %s up in the pod: %w", podLink, err)
	}
	for _, addr := range c.addrs {
		if err := k.podFamily(pod, index, addr, podMAC(c.uid)); err != nil {
			return err
		}
	}
	return nil
}

// podFamily gives eth0 one address and a default route. IPv6 addresses are usable at once: nobody else can have them, so
// there is no duplicate address detection.
func (k *kernel) podFamily(pod *handle, index int, addr netip.Addr, mac net.HardwareAddr) error {
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	own := &netlink.Addr{IPNet: single(addr)}
	if addr.Is6() {
		own.Flags = unix.IFA_F_NODAD
		local := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(linkLocal(mac), 64)), Flags: unix.IFA_F_NODAD}
		if err := k.wrote(pod.AddrAdd(link, local)); err != nil {
			return fmt.Errorf("give %s in the pod the address %s: %w", podLink, local.IPNet, err)
		}
	}
	if err := k.wrote(pod.AddrAdd(link, own)); err != nil {
		return fmt.Errorf("give %s in the pod the address %s: %w", podLink, addr, err)
	}
	gw := gateway(addr)
	if err := k.wrote(pod.NeighSet(neighbour(index, gw, nodeMAC()))); err != nil {
		return fmt.Errorf("make neighbour %s in the pod: %w", gw, err)
	}
	route := &netlink.Route{LinkIndex: index, Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Family: netlinkFamily(addr)}
	if err := k.wrote(pod.RouteAdd(route)); err != nil {
		return fmt.Errorf("make the default route via %s in the pod: %w", gw, err)
	}
	return nil
}

// nodeEnd sets up the node's end of the cable.
func (k *kernel) nodeEnd(node *handle, index int, c cable) error {
	if err := k.raise(node, index, c.uid, devconf(c)); err != nil {
		return fmt.Errorf("set interface %s up: %w", linkName(c.uid), err)
	}
	for _, addr := range c.addrs {
		if err := k.wrote(node.NeighSet(neighbour(index, addr, podMAC(c.uid)))); err != nil {
			return fmt.Errorf("make neighbour %s: %w", addr, err)
		}
		if err := k.podRoute(node, index, addr, c.node.of(addr)); err != nil {
			return fmt.Errorf("make the route to pod address %s: %w", addr, err)
		}
	}
	return nil
}

func (k *kernel) podRoute(node *handle, index int, addr, src netip.Addr) error {
	route := &netlink.Route{LinkIndex: index, Dst: single(addr), Scope: netlink.SCOPE_LINK, Protocol: RouteProtocol}
	if src.IsValid() {
		route.Src = src.AsSlice()
	}
	err := k.wrote(node.RouteReplace(route))
	if errors.Is(err, unix.EINVAL) && addr.Is6() {
		// The node's address is not ready yet (duplicate address detection). The kernel chooses the same when it is.
		route.Src = nil
		err = k.wrote(node.RouteReplace(route))
	}
	return err
}

// Settings of an interface for IPv4, as enumerated in linux/ip.h.
const (
	devconfRPFilter      = 8
	devconfRouteLocalnet = 26
)

// devconf returns the settings of the node's end for IPv4: a pod cannot send with a source address that is not its own, and
// the node may send to it from 127.0.0.1 where a host port needs that (pods never to 127.0.0.1 of the node: see setTable).
func devconf(c cable) map[uint16]uint32 {
	settings := map[uint16]uint32{devconfRPFilter: 1, devconfRouteLocalnet: 0}
	if c.localnet {
		settings[devconfRouteLocalnet] = 1
	}
	return settings
}

// raise sets an interface up, with an alias (the kernel takes none when it makes an interface), with settings for IPv4 and without an IPv6
// address made by the kernel.
func (k *kernel) raise(h *handle, index int, alias string, v4 map[uint16]uint32) error {
	const addrGenMode, none = 8, 1 // IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE
	message := func(v6 bool) error {
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
		spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
		if len(v4) > 0 {
			conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(1 /* IFLA_INET_CONF */, nil)
			for id, value := range v4 {
				conf.AddRtAttr(int(id), nl.Uint32Attr(value))
			}
		}
		if v6 {
			spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(addrGenMode, []byte{none})
		}
		data := []nl.NetlinkRequestData{msg, spec}
		if alias != "" {
			data = append(data, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias)))
		}
		return k.wrote(h.execute(unix.RTM_SETLINK, data...))
	}
	err := message(true)
	if errors.Is(err, unix.EAFNOSUPPORT) { // no IPv6 here
		err = message(false)
	}
	return err
}

// repairPod makes again what is missing on the node's end of a cable.
func (k *kernel) repairPod(c cable) error {
	node, err := k.open()
	if err != nil {
		return err
	}
	defer node.close()
	link, err := node.LinkByName(linkName(c.uid))
	if err != nil {
		return fmt.Errorf("interface %s: %w; the pod has no network any more and must be started again", linkName(c.uid), err)
	}
	return k.nodeEnd(node, link.Attrs().Index, c)
}

// removePod takes the cable away; routes and neighbours go with it. One that is not there is no error.
func (k *kernel) removePod(uid string) error { return k.removeLink(linkName(uid)) }

func (k *kernel) removeLink(link string) error {
	node, err := k.open()
	if err != nil {
		return err
	}
	defer node.close()
	name := nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(link))
	err = k.wrote(node.execute(unix.RTM_DELLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), name))
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", link, err)
	}
	return nil
}

// setOwnRanges has the node refuse packets for pods that do not exist, instead of sending them to its default gateway.
func (k *kernel) setOwnRanges(prefixes []netip.Prefix) error {
	node, err := k.open()
	if err != nil {
		return err
	}
	defer node.close()
	have, err := ownRoutes(node)
	if err != nil {
		return err
	}
	missing := map[netip.Prefix]bool{}
	for _, prefix := range prefixes {
		missing[prefix] = true
	}
	for _, route := range have {
		if dst := prefixOf(route); route.Type == unix.RTN_UNREACHABLE && !missing[dst] {
			if err := k.wrote(node.RouteDel(unreachable(dst))); err != nil {
				return fmt.Errorf("remove the route for pod range %s of an earlier run: %w", dst, err)
			}
		} else if route.Type == unix.RTN_UNREACHABLE {
			delete(missing, dst)
		}
	}
	for prefix := range missing {
		if err := k.wrote(node.RouteAdd(unreachable(prefix))); err != nil {
			return fmt.Errorf("make the route for unused addresses of pod range %s: %w", prefix, err)
		}
	}
	return nil
}

func unreachable(prefix netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: ipNet(prefix), Type: unix.RTN_UNREACHABLE, Protocol: RouteProtocol, Priority: unreachableMetric, Family: netlinkFamily(prefix.Addr())}
}

// changeRoute makes one step for a route to another node's pods.
func (k *kernel) changeRoute(c routeChange) error {
	node, err := k.open()
	if err != nil {
		return err
	}
	defer node.close()
	route := &netlink.Route{Dst: ipNet(c.dst), Protocol: RouteProtocol, Family: netlinkFamily(c.dst.Addr())}
	if !c.to.IsValid() {
		route.Gw = c.from.AsSlice()
		if err := k.wrote(node.RouteDel(route)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove the route to pod range %s via %s: %w", c.dst, c.from, err)
		}
		return nil
	}
	route.Gw = c.to.AsSlice()
	if c.from.IsValid() {
		err = k.wrote(node.RouteReplace(route))
	} else {
		err = k.wrote(node.RouteAdd(route))
	}
	return explainRoute(c, err)
}

func explainRoute(c routeChange, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("pod range %s: this machine has another route there; remove it, or give that node another range (--pod-cidr)", c.dst)
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("pod range %s: %s is not on a network of this node (%w); nodes need a network in common, or a route of your own to that range", c.dst, c.to, err)
	}
	return fmt.Errorf("make the route to pod range %s via %s: %w", c.dst, c.to, err)
}

// removeRoutes removes every route that is ours.
func (k *kernel) removeRoutes() error {
	node, err := k.open()
	if err != nil {
		return err
	}
	defer node.close()
	routes, err := ownRoutes(node)
	if err != nil {
		return err
	}
	var errs []error
	for i := range routes {
		if err := k.wrote(node.RouteDel(&routes[i])); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove the route to %s: %w", routes[i].Dst, err))
		}
	}
	return errors.Join(errs...)
}

func neighbour(index int, addr netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, Family: netlinkFamily(addr), State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac}
}

func single(addr netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(addr, addr.BitLen())) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
