package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	cgroups "github.com/endpointd/endpointd/internal/node/shim/cgroup"
)

// The networks of the traffic parts. All of it is in network namespaces of our own, so every node may have the same addresses:
//
//	lab      the API server, at apiAddr; the nodes' gateway, which knows no Services: what no proxy translated is refused there
//	node     one for each contender: its proxy, a link to the lab, and a link to each pod
//	client   a pod of the node, clientAddr
//	server   a pod that answers at every address of endpointRange: each is an endpoint that works
var (
	apiAddr       = netip.MustParseAddr("10.200.255.1")
	nodeAddr      = netip.MustParseAddr("192.0.2.10")
	clientAddr    = netip.MustParseAddr("10.244.1.10")
	serverAddr    = netip.MustParseAddr("10.244.1.20")
	podRange      = netip.MustParsePrefix("10.244.1.0/24") // the node's
	endpointRange = netip.MustParsePrefix("172.16.0.0/12")
	serviceRange  = netip.MustParsePrefix("10.96.0.0/16")
)

// onThread runs f on a thread that ends with it, so f may change what belongs to the thread. The main thread is spared, because
// /proc/self is what it is.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := onThread(f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// place is a network namespace, for as long as it is open.
type place struct {
	name string
	ns   *os.File
}

// newPlace makes a namespace in which lo is up.
func newPlace(name string) (*place, error) {
	p := &place{name: name}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		if p.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return linkUp("lo")
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network namespace %s: %w", name, err), p.close())
	}
	return p, nil
}

// placeOf is the namespace that a process is in.
func placeOf(name string, pid int) (*place, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	return &place{name: name, ns: ns}, err
}

func (p *place) close() error {
	if p == nil || p.ns == nil {
		return nil
	}
	ns := p.ns
	p.ns = nil
	return ns.Close()
}

// enter brings the calling thread there, for good.
func (p *place) enter() error {
	if err := unix.Setns(int(p.ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("join %s: %w", p.name, err)
	}
	return nil
}

// do runs f there.
func (p *place) do(f func() error) error {
	return onThread(func() error {
		if err := p.enter(); err != nil {
			return err
		}
		if err := f(); err != nil {
			return fmt.Errorf("in %s: %w", p.name, err)
		}
		return nil
	})
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return netlink.LinkSetUp(link)
}

// set writes a sysctl of the calling thread's network namespace.
func set(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func addAddr(link string, p netip.Prefix) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	return netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(p)})
}

// route leads a range to a link, to via if it is valid. One of type RTN_LOCAL has all its addresses be ours.
func route(to netip.Prefix, link string, via netip.Addr, kind int) error {
	r := &netlink.Route{Dst: ipNet(to), Type: kind}
	if kind == unix.RTN_LOCAL {
		r.Table, r.Scope = unix.RT_TABLE_LOCAL, netlink.SCOPE_HOST
	}
	if link != "" {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
		r.LinkIndex = l.Attrs().Index
	}
	if via.IsValid() {
		r.Gw, r.Flags = via.AsSlice(), int(netlink.FLAG_ONLINK)
	} else if kind == unix.RTN_UNICAST {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s: %w", to, err)
	}
	return nil
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

var everywhere = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// join makes a link between two places: named there in the first, and uplink in the second.
func join(a, b *place, there string) error {
	err := a.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = there
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "uplink", PeerNamespace: netlink.NsFd(b.ns.Fd())}); err != nil {
			return fmt.Errorf("link %s: %w", there, err)
		}
		return linkUp(there)
	})
	if err != nil {
		return err
	}
	return b.do(func() error { return linkUp("uplink") })
}

// newLab is where the API server is.
func newLab() (*place, error) {
	p, err := newPlace("lab")
	if err != nil {
		return nil, err
	}
	err = p.do(func() error {
		return errors.Join(addAddr("lo", host(apiAddr)), set("ipv4/ip_forward", "1"), route(serviceRange, "", netip.Addr{}, unix.RTN_UNREACHABLE))
	})
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// newNode is the number-th node of a lab.
func newNode(lab *place, number int) (*place, error) {
	name := "node-" + strconv.Itoa(number)
	p, err := newPlace(name)
	if err != nil {
		return nil, err
	}
	gateway := netip.AddrFrom4([4]byte{10, 200, byte(number), 1})
	own := gateway.Next()
	err = errors.Join(join(lab, p, name), lab.do(func() error {
		return addAddr(name, netip.PrefixFrom(gateway, 24))
	}), p.do(func() error {
		return errors.Join(addAddr("uplink", netip.PrefixFrom(own, 24)), addAddr("uplink", host(nodeAddr)),
			set("ipv4/ip_forward", "1"), set("ipv4/conf/all/rp_filter", "0"), set("ipv4/conf/default/rp_filter", "0"),
			route(everywhere, "uplink", gateway, unix.RTN_UNICAST))
	}))
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// newPod is a new pod of a node; one that was there before at the same address is let go.
func newPod(node *place, name string, addr netip.Addr) (*place, error) {
	p, err := newPlace(name)
	if err != nil {
		return nil, err
	}
	err = node.do(func() error {
		if old, err := netlink.LinkByName(name); err == nil {
			if err := netlink.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) { // the kernel may just be doing it
				return err
			}
		}
		return nil
	})
	gateway := netip.MustParseAddr("169.254.1.1")
	err = errors.Join(err, join(node, p, name), node.do(func() error {
		return errors.Join(addAddr(name, host(gateway)), route(host(addr), name, netip.Addr{}, unix.RTN_UNICAST))
	}), p.do(func() error {
		return errors.Join(addAddr("uplink", host(addr)),
			route(everywhere, "uplink", gateway, unix.RTN_UNICAST))
	}))
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// newServerPod is a pod that has all endpoints' addresses.
func newServerPod(node *place) (*place, error) {
	p, err := newPod(node, "server", serverAddr)
	if err != nil {
		return nil, err
	}
	err = errors.Join(p.do(func() error {
		return errors.Join(route(endpointRange, "lo", netip.Addr{}, unix.RTN_LOCAL), set("core/somaxconn", "4096"), set("ipv4/tcp_max_syn_backlog", "4096"))
	}), node.do(func() error { return route(endpointRange, "server", serverAddr, unix.RTN_UNICAST) }))
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// flushConntrack forgets all connections of a node, as new namespaces of its pods forget TIME_WAIT.
func flushConntrack(node *place) error {
	return node.do(func() error {
		err := netlink.ConntrackTableFlush(netlink.ConntrackTable)
		if errors.Is(err, unix.ENOENT) {
			return nil // no rule has needed it yet
		}
		return err
	})
}

// cgroup is a cgroup v2 folder of ours.
type cgroup struct {
	path string
	fd   *os.File
}

// newCgroup makes a folder below where we are ourselves, or below another.
func newCgroup(parent *cgroup, name string) (*cgroup, error) {
	var path string
	if parent != nil {
		path = filepath.Join(parent.path, name)
	} else {
		own, err := cgroupOf("self")
		if err != nil {
			return nil, err
		}
		path = filepath.Join(own, name)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, err
	}
	fd, err := os.Open(path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return &cgroup{path: path, fd: fd}, nil
}

// cgroupOf is the cgroup v2 folder of a process, or of "self".
func cgroupOf(pid string) (string, error) {
	root, ok := cgroups.Find()
	if !ok {
		return "", errors.New("no cgroup v2 is mounted")
	}
	text, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(root, path), nil
		}
	}
	return "", fmt.Errorf("/proc/%s/cgroup: no cgroup v2", pid)
}

// remove takes the folder away, which no process may be in.
func (c *cgroup) remove() error {
	if c == nil {
		return nil
	}
	return errors.Join(c.fd.Close(), os.Remove(c.path))
}

// id is how the kernel calls it.
func (c *cgroup) id() (uint64, error) {
	var stat unix.Stat_t
	err := unix.Fstat(int(c.fd.Fd()), &stat)
	return stat.Ino, err
}

// dropLink removes a link, and so the other end of it.
func dropLink(p *place, name string) error {
	return p.do(func() error {
		link, err := netlink.LinkByName(name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) { // the kernel may just be doing it
			return err
		}
		return nil
	})
}
