package podnet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/testkit"
)

// TestMain runs the tests in a user and a network namespace of their own, so that none can touch the machine's network.
// Where the kernel does not allow that, only the tests without packets run.
func TestMain(m *testing.M) { testkit.MainInside(m, syscall.CLONE_NEWNET|syscall.CLONE_NEWNS) }

// place is a network namespace: a switch, a node, a pod or something outside.
type place struct {
	name string
	ns   netns.NsHandle
	path string
}

func newPlace(t testing.TB, name string) *place {
	t.Helper()
	testkit.NeedInside(t)
	p := &place{name: name}
	current, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = current.Close() }()
	err = inNamespace(current, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		p.ns, err = netns.Get()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	p.path = fmt.Sprintf("/proc/self/fd/%d", int(p.ns))
	p.do(t, func() error { // no duplicate address detection, so that the test's own networks work at once
		return errors.Join(up("lo"), setting("ipv6/conf/default/accept_dad", "0"))
	})
	t.Cleanup(func() { p.end(t) })
	return p
}

// end lets the kernel end the namespace; what is in it goes with it, a little later.
func (p *place) end(t testing.TB) {
	if p.ns.IsOpen() {
		if err := p.ns.Close(); err != nil {
			t.Error(err)
		}
	}
}

// do runs f in the place.
func (p *place) do(t testing.TB, f func() error) {
	t.Helper()
	if err := inNamespace(p.ns, f); err != nil {
		t.Fatalf("in %s: %v", p.name, err)
	}
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// newSwitch is a bridge in a place of its own.
func newSwitch(t testing.TB) *place {
	p := newPlace(t, "switch")
	p.do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		return up("br0")
	})
	return p
}

// newNode is a place with an interface on the switch, and with the addresses given.
func newNode(t testing.TB, sw *place, name string, addrs ...string) *place {
	p := newPlace(t, name)
	sw.do(t, func() error {
		bridge, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex, attrs.MTU = name, bridge.Attrs().Index, 1400
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "uplink", PeerNamespace: netlink.NsFd(p.ns)}); err != nil {
			return err
		}
		return up(name)
	})
	p.do(t, func() error {
		link, err := netlink.LinkByName("uplink")
		if err != nil {
			return err
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(link)
	})
	testkit.Await(t, patience, func() error { return inNamespace(p.ns, settled) })
	return p
}

// settled says what the kernel still has to do for the uplink, in the background.
func settled() error {
	link, err := netlink.LinkByName("uplink")
	if err != nil {
		return err
	}
	if state := link.Attrs().OperState; state != netlink.OperUp {
		return fmt.Errorf("the uplink is %s", state)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return err
	}
	local := false
	for _, a := range addrs {
		routes, err := netlink.RouteGet(a.IP)
		if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
			return fmt.Errorf("%s is not the node's own yet (%v)", a.IP, err) //nolint:errorlint // may be nil
		}
		local = local || a.IP.IsLinkLocalUnicast()
	}
	if !local {
		return errors.New("the uplink has no link-local address")
	}
	return nil
}

// newNetwork starts the pod network of a node.
func newNetwork(t testing.TB, node *place, o Options) *Network {
	t.Helper()
	var n *Network
	node.do(t, func() (err error) {
		n, err = New(context.Background(), o)
		return err
	})
	t.Cleanup(func() { _ = n.Stop() })
	return n
}

// newPod adds a pod.
func newPod(t testing.TB, n *Network, uid string, ports ...HostPort) (*place, []netip.Addr) {
	t.Helper()
	p := newEmpty(t, uid)
	addrs, err := n.Add(t.Context(), uid, p.path, ports)
	if err != nil {
		t.Fatal(err)
	}
	return p, addrs
}

// newEmpty is a place as a runtime makes it for a pod: not even lo is up.
func newEmpty(t testing.TB, name string) *place {
	p := newPlace(t, name)
	p.do(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(lo)
	})
	return p
}

// serve answers on a port of a place with the address that the client is seen with.
func (p *place) serve(t testing.TB, network, addr string) {
	t.Helper()
	done := make(chan struct{})
	if strings.HasPrefix(network, "udp") {
		var c net.PacketConn
		p.do(t, func() (err error) {
			c, err = net.ListenPacket(network, addr)
			return err
		})
		go func() {
			defer close(done)
			buffer := make([]byte, 100)
			for {
				_, from, err := c.ReadFrom(buffer)
				if err != nil {
					return
				}
				_, _ = c.WriteTo([]byte(p.name+" "+host(from)+"\n"), from)
			}
		}()
		t.Cleanup(func() { _ = c.Close(); <-done })
		return
	}
	var l net.Listener
	p.do(t, func() (err error) {
		l, err = net.Listen(network, addr)
		return err
	})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				lines := bufio.NewScanner(c)
				for lines.Scan() {
					if _, err := fmt.Fprintln(c, p.name, host(c.RemoteAddr())); err != nil {
						return
					}
				}
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
}

func host(addr net.Addr) string {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return addr.String()
	}
	return ap.Addr().Unmap().String()
}

const (
	// patience is for what must come, on a machine that is busy.
	patience = 10 * time.Second
	// askTimeout is for what must not.
	askTimeout = 700 * time.Millisecond
)

// dial connects from a place. No packet may be lost on the way: a SYN that has to be sent again is an error.
func (p *place) dial(network string, to netip.AddrPort) (net.Conn, error) {
	c, err := p.dialFor(network, to, patience)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c, nil
	}
	if err := sentOnce(tcp); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func sentOnce(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		switch {
		case err != nil:
			failed = err
		case info.Total_retrans > 0:
			failed = fmt.Errorf("%d packets were sent again", info.Total_retrans)
		}
	})
	return errors.Join(err, failed)
}

func (p *place) dialFor(network string, to netip.AddrPort, timeout time.Duration) (net.Conn, error) {
	var c net.Conn
	err := inNamespace(p.ns, func() (err error) {
		c, err = net.DialTimeout(network, to.String(), timeout)
		return err
	})
	return c, err
}

// refused is the error of asking where nobody may answer; if somebody does, what he says.
func (p *place) refused(network string, to netip.AddrPort) (answer string, err error) {
	c, err := p.dialFor(network, to, askTimeout)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	return exchangeFor(c, askTimeout)
}

// exchange returns "<name of who answered> <address it saw>".
func exchange(c net.Conn) (string, error) { return exchangeFor(c, patience) }

func exchangeFor(c net.Conn, timeout time.Duration) (string, error) {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte("who?\n")); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

// expect asks and compares.
func (p *place) expect(t testing.TB, network string, to netip.AddrPort, want string) {
	t.Helper()
	c, err := p.dial(network, to)
	if err != nil {
		t.Errorf("%s from %s to %s: %v, want %q", network, p.name, to, err, want)
		return
	}
	defer func() { _ = c.Close() }()
	if got, err := exchange(c); err != nil {
		t.Errorf("%s from %s to %s: %v, want %q", network, p.name, to, err, want)
	} else if got != want {
		t.Errorf("%s from %s to %s: %q, want %q", network, p.name, to, got, want)
	}
}

func addrPort(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// dual are the options of node i of the tests: 10.200.0.(10+i), fd00:200::(10+i) and a range of each family.
func dual(i int) Options {
	return Options{
		NodeAddrs: []netip.Addr{addr(fmt.Sprintf("10.200.0.%d", 10+i)), addr(fmt.Sprintf("fd00:200::%d", 10+i))},
		PodCIDRs:  []netip.Prefix{prefix(fmt.Sprintf("10.244.%d.0/24", i)), prefix(fmt.Sprintf("fd00:244:0:%d::/64", i))},
	}
}

// newDual is node i with its pod network.
func newDual(t testing.TB, sw *place, i int) (*place, *Network) {
	o := dual(i)
	node := newNode(t, sw, fmt.Sprintf("node-%d", i), o.NodeAddrs[0].String()+"/24", o.NodeAddrs[1].String()+"/64")
	return node, newNetwork(t, node, o)
}

// peer is node i as seen by the others.
func peer(i int) Peer {
	return Peer{Name: fmt.Sprintf("node-%d", i), Addrs: dual(i).NodeAddrs, PodCIDRs: dual(i).PodCIDRs}
}

func routeVia(dst netip.Prefix, via netip.Addr) error {
	return netlink.RouteAdd(&netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()})
}

// withoutLocal has a namespace send a local range to its gateway, as a pod with CAP_NET_ADMIN can.
func withoutLocal(dst netip.Prefix) error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for i := range routes {
		if p := prefixOf(routes[i]); p.Overlaps(dst) {
			if err := netlink.RouteDel(&routes[i]); err != nil {
				return err
			}
		}
	}
	link, err := netlink.LinkByName(podLink)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: ipNet(dst), LinkIndex: link.Attrs().Index, Gw: gateway(dst.Addr()).AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
}

// received returns what arrives at a UDP port of a place when another sends it one packet from a given source, "" if nothing does in 200 ms.
func (p *place) received(t testing.TB, sender *place, source netip.Addr, to netip.AddrPort) string {
	t.Helper()
	var server net.PacketConn
	p.do(t, func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(unspecified(to.Addr()), to.Port()).String())
		return err
	})
	defer func() { _ = server.Close() }()
	sender.do(t, func() error {
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, err = c.Write([]byte("forged"))
		return err
	})
	if err := server.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 100)
	size, _, _ := server.ReadFrom(buffer)
	return string(buffer[:size])
}
