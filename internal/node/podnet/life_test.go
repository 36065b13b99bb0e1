package podnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/endpointd/endpointd/internal/testkit"
)

// TestNothingIsLeft compares the node before and after: Remove takes what Add made, Close what New and SetPeers made.
func TestNothingIsLeft(t *testing.T) {
	sw := newSwitch(t)
	o := dual(1)
	node := newNode(t, sw, "node-1", o.NodeAddrs[0].String()+"/24", o.NodeAddrs[1].String()+"/64")
	// The kernel itself adds addresses (anycast) where IPv6 is forwarded, and that setting stays.
	node.do(t, func() error { return setting(forwardV6, "1") })
	untouched := node.dump(t)
	n := newNetwork(t, node, o)
	empty := node.dump(t)
	ports := []HostPort{{Port: 8080, ContainerPort: 80}, {Port: 8080, ContainerPort: 80, Protocol: "UDP"}, {Port: 8081, ContainerPort: 80, HostIP: o.NodeAddrs[1]}}
	newPod(t, n, "one", ports...)
	newPod(t, n, "two")
	for range 2 { // the second time there is nothing to do
		for _, uid := range []string{"one", "two", "never there"} {
			if err := n.Remove(t.Context(), uid); err != nil {
				t.Fatal(err)
			}
		}
	}
	sameDump(t, empty, node.dump(t))
	if forwards, err := n.kernel.observePorts(); err != nil || len(forwards) != 0 {
		t.Errorf("host ports %v, %v are left", forwards, err)
	}
	newPod(t, n, "three", ports...)
	if err := n.SetPeers(t.Context(), []Peer{peer(2)}); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	sameDump(t, untouched, node.dump(t))
}

// TestFailedAdd: whatever fails, nothing is left and the address is free again.
func TestFailedAdd(t *testing.T) {
	node, n := newDual(t, newSwitch(t), 1)
	before := node.dump(t)
	pod := newEmpty(t, "has eth0")
	pod.do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = podLink
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	})
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name, path, says string
		ctx              context.Context
	}{
		{"no such namespace", "/proc/self/fd/99999", "the pod's sandbox has ended", t.Context()},
		{"the node's namespace", node.path, "is the node's own", t.Context()},
		{"eth0 is there", pod.path, "has a network already", t.Context()},
		{"no time", newEmpty(t, "ok").path, "canceled", canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := n.Add(c.ctx, "uid", c.path, []HostPort{{Port: 8080, ContainerPort: 80}})
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one that says %q", err, c.says)
			}
			sameDump(t, before, node.dump(t))
		})
	}
	good := newEmpty(t, "good")
	if _, err := n.Add(t.Context(), "uid", good.path, []HostPort{{Port: 8080, ContainerPort: 80}}); err != nil {
		t.Errorf("after failures: %v", err)
	}
	if _, err := n.Add(t.Context(), "uid", good.path, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second Add: %v, want %v", err, fs.ErrExist)
	}
}

// TestPodDies: when the kernel ends a pod's namespace, everything that named it can be removed, and the address is given to nobody before.
func TestPodDies(t *testing.T) {
	node, n := newDual(t, newSwitch(t), 1)
	before := node.dump(t)
	pod, addrs := newPod(t, n, "one", HostPort{Port: 8080, ContainerPort: 80})
	pod.end(t)
	testkit.Await(t, patience, func() error {
		left, err := n.kernel.observePods()
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("interfaces are left: %v", left)
		}
		return err
	})
	if _, err := n.Add(t.Context(), "thief", newEmpty(t, "thief").path, []HostPort{{Port: 8080, ContainerPort: 80}}); !errors.Is(err, ErrPortTaken) {
		t.Errorf("a port of a pod that was not removed yet: %v, want %v", err, ErrPortTaken)
	}
	if err := n.Remove(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	sameDump(t, before, node.dump(t))
	if _, again := newPod(t, n, "two"); again[0] == addrs[0] {
		t.Errorf("the next pod has %s, the address that was freed last", again[0])
	}
}

// TestPoolEmpty fills a small range.
func TestPoolEmpty(t *testing.T) {
	node := newNode(t, newSwitch(t), "node-1", "10.200.0.11/24")
	n := newNetwork(t, node, Options{NodeAddrs: []netip.Addr{addr("10.200.0.11")}, PodCIDRs: []netip.Prefix{prefix("10.244.1.8/29")}})
	for i := range 5 { // of 8: network, gateway and broadcast are left out
		_, addrs := newPod(t, n, fmt.Sprint("pod-", i))
		if want := addr(fmt.Sprintf("10.244.1.%d", 10+i)); addrs[0] != want {
			t.Errorf("pod %d has %s, want %s", i, addrs[0], want)
		}
	}
	before := node.dump(t)
	_, err := n.Add(t.Context(), "late", newEmpty(t, "late").path, nil)
	if !errors.Is(err, ErrPoolEmpty) || !strings.Contains(err.Error(), "10.244.1.8/29: 5 of 5 are used") {
		t.Errorf("error %v, want %v with the range and the number used", err, ErrPoolEmpty)
	}
	sameDump(t, before, node.dump(t))
	if err := n.Remove(t.Context(), "pod-2"); err != nil {
		t.Fatal(err)
	}
	if _, addrs := newPod(t, n, "late"); addrs[0] != addr("10.244.1.12") {
		t.Errorf("the only free address is 10.244.1.12, the pod has %s", addrs[0])
	}
}

// TestOverlapIsRefused: a range in use is named with its user, and nothing is changed.
func TestOverlapIsRefused(t *testing.T) {
	node := newNode(t, newSwitch(t), "node-1", "10.200.0.11/24", "172.20.0.1/16", "fd00:200::11/64")
	node.do(t, func() error {
		return errors.Join(routeVia(prefix("10.0.0.0/9"), addr("10.200.0.1")),
			netlink.RouteAdd(&netlink.Route{Dst: ipNet(prefix("192.168.3.0/24")), Gw: addr("10.200.0.1").AsSlice(), Table: 77}))
	})
	before := node.dump(t)
	v4, v6 := addr("10.200.0.11"), addr("fd00:200::11")
	for _, c := range []struct {
		name string
		o    Options
		is   error
		says string
	}{
		{"route", Options{NodeAddrs: []netip.Addr{v4}, PodCIDRs: []netip.Prefix{prefix("10.99.0.0/24")}}, ErrOverlap, "the route 10.0.0.0/9 via 10.200.0.1 dev uplink"},
		{"route of another table", Options{NodeAddrs: []netip.Addr{v4}, PodCIDRs: []netip.Prefix{prefix("192.168.0.0/16")}}, ErrOverlap, "the route 192.168.3.0/24"},
		{"interface", Options{NodeAddrs: []netip.Addr{v4}, PodCIDRs: []netip.Prefix{prefix("172.20.7.0/24")}}, ErrOverlap, "interface uplink (172.20.0.1/16)"},
		{"node", Options{NodeAddrs: []netip.Addr{v4}, PodCIDRs: []netip.Prefix{prefix("10.200.0.0/24")}}, ErrOverlap, "the node's own address 10.200.0.11"},
		{"IPv6 interface", Options{NodeAddrs: []netip.Addr{v4, v6}, PodCIDRs: []netip.Prefix{prefix("10.244.1.0/24"), prefix("fd00:200::/48")}}, ErrOverlap, "fd00:200::"},
		{"no address of the family", Options{NodeAddrs: []netip.Addr{v4}, PodCIDRs: []netip.Prefix{prefix("fd00:244::/64")}}, nil, "give an IPv6 address"},
		{"two of a family", Options{NodeAddrs: []netip.Addr{v4}, PodCIDRs: []netip.Prefix{prefix("10.244.1.0/24"), prefix("10.244.2.0/24")}}, nil, "at most one of each"},
		{"too small", Options{NodeAddrs: []netip.Addr{v4}, PodCIDRs: []netip.Prefix{prefix("10.244.1.0/31")}}, nil, "give a larger one"},
		{"none", Options{NodeAddrs: []netip.Addr{v4}}, nil, "no pod range"},
		{"address of another machine", Options{NodeAddrs: []netip.Addr{addr("10.201.0.1")}, PodCIDRs: []netip.Prefix{prefix("10.244.1.0/24")}}, nil, "on no interface here"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, try := range map[string]func() error{
				"Check": func() error { return Check(c.o) },
				"New":   func() error { _, err := New(t.Context(), c.o); return err },
			} {
				err := inNamespace(node.ns, try)
				if err == nil || !strings.Contains(err.Error(), c.says) || (c.is != nil && !errors.Is(err, c.is)) {
					t.Errorf("%s: %v, want %v that says %q", name, err, c.is, c.says)
				}
			}
			sameDump(t, before, node.dump(t))
		})
	}
}

// TestAdopt: a second agent takes everything over while a connection goes on.
func TestAdopt(t *testing.T) {
	sw := newSwitch(t)
	node, first := newDual(t, sw, 1)
	outside := newNode(t, sw, "outside", "10.200.0.99/24", "fd00:200::99/64")
	if err := first.SetPeers(t.Context(), []Peer{peer(2)}); err != nil {
		t.Fatal(err)
	}
	ports := []HostPort{{Port: 8080, ContainerPort: 80}}
	web, webAddrs := newPod(t, first, "web", ports...)
	client, _ := newPod(t, first, "client")
	_, lostAddrs := newPod(t, first, "lost", HostPort{Port: 9999, ContainerPort: 1})
	web.serve(t, "tcp", ":80")
	direct, err := client.dial("tcp", addrPort(webAddrs[0], 80))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = direct.Close() }()
	translated, err := outside.dial("tcp", addrPort(dual(1).NodeAddrs[0], 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = translated.Close() }()
	alive := func(when string) {
		t.Helper()
		if got, err := exchange(direct); err != nil {
			t.Errorf("%s: the connection between pods: %q, %v", when, got, err)
		}
		if got, err := exchange(translated); err != nil {
			t.Errorf("%s: the connection through the host port: %q, %v", when, got, err)
		}
	}
	alive("before")
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	before := node.dump(t)
	second := newNetwork(t, node, dual(1))
	alive("after New")
	sameDump(t, before, node.dump(t))
	if _, fresh := newPod(t, second, "fresh"); slices.Contains([]netip.Addr{webAddrs[0], lostAddrs[0]}, fresh[0]) {
		t.Errorf("a new pod has %s, which is in use", fresh[0])
	}
	node.do(t, func() error { // something went wrong meanwhile
		return netlink.RouteDel(&netlink.Route{Dst: single(webAddrs[0]), Scope: netlink.SCOPE_LINK, Protocol: RouteProtocol})
	})
	if err := second.Adopt("web", webAddrs, ports); err != nil {
		t.Fatal(err)
	}
	alive("after Adopt")
	if _, err := second.Add(t.Context(), "greedy", newEmpty(t, "greedy").path, ports); !errors.Is(err, ErrPortTaken) {
		t.Errorf("the host port of an adopted pod: %v, want %v", err, ErrPortTaken)
	}
	if err := second.Prune(t.Context(), []string{"web", "client", "fresh"}); err != nil {
		t.Fatal(err)
	}
	left, err := second.kernel.observePods()
	if _, there := left["lost"]; err != nil || there || len(left) != 3 {
		t.Errorf("after Prune: pods %v, %v, want all but lost", left, err)
	}
	if err := second.Adopt("lost", lostAddrs, nil); err == nil {
		t.Error("a pod without an interface was adopted")
	}
	alive("after Prune")
	newPod(t, second, "late", HostPort{Port: 9999, ContainerPort: 1})
}

// TestAddReplacesLeftovers: the agent ended between Add and noting that it had added the pod.
func TestAddReplacesLeftovers(t *testing.T) {
	node, first := newDual(t, newSwitch(t), 1)
	newPod(t, first, "web", HostPort{Port: 8080, ContainerPort: 80})
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	second := newNetwork(t, node, dual(1))
	web, addrs := newPod(t, second, "web", HostPort{Port: 8080, ContainerPort: 81})
	web.serve(t, "tcp", ":81")
	node.expect(t, "tcp", addrPort(addr("127.0.0.1"), 8080), "web 10.200.0.11")
	node.expect(t, "tcp", addrPort(addrs[1], 81), "web fd00:200::11")
}

// TestManyAtOnce adds 100 pods concurrently, asks each at once and removes them.
func TestManyAtOnce(t *testing.T) {
	const pods = 100
	node, n := newDual(t, newSwitch(t), 1)
	before := node.dump(t)
	places := make([]*place, pods)
	for i := range places {
		places[i] = newEmpty(t, fmt.Sprint("pod-", i))
	}
	each := func(f func(i int) error) time.Duration {
		start := time.Now()
		var all sync.WaitGroup
		errs := make([]error, pods)
		for i := range pods {
			all.Go(func() { errs[i] = f(i) })
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	addrs := make([][]netip.Addr, pods)
	added := each(func(i int) (err error) {
		addrs[i], err = n.Add(t.Context(), places[i].name, places[i].path, []HostPort{{Port: uint16(10000 + i), ContainerPort: 80}})
		return err
	})
	seen := map[netip.Addr]bool{}
	for i, p := range places {
		for _, a := range addrs[i] {
			if seen[a] {
				t.Errorf("%s was given twice", a)
			}
			seen[a] = true
		}
		p.serve(t, "tcp", ":80")
		node.expect(t, "tcp", addrPort(addrs[i][0], 80), p.name+" 10.200.0.11")
		node.expect(t, "tcp", addrPort(dual(1).NodeAddrs[1], uint16(10000+i)), p.name+" fd00:200::11")
	}
	removed := each(func(i int) error { return n.Remove(t.Context(), places[i].name) })
	sameDump(t, before, node.dump(t))
	t.Logf("%d pods, two families and a host port each: added in %v, removed in %v", pods, added, removed)
}

// TestIPv4Alone: a kernel or namespace without IPv6 is enough for pods of IPv4.
func TestIPv4Alone(t *testing.T) {
	node := newNode(t, newSwitch(t), "node-1", "10.200.0.11/24")
	node.do(t, func() error {
		return errors.Join(setting(disableAllV6, "1"), setting(disableNextV6, "1"))
	})
	n := newNetwork(t, node, Options{NodeAddrs: []netip.Addr{addr("10.200.0.11")}, PodCIDRs: []netip.Prefix{prefix("10.244.1.0/24")}})
	pod := newEmpty(t, "pod")
	pod.do(t, func() error {
		return errors.Join(setting(disableAllV6, "1"), setting(disableNextV6, "1"))
	})
	addrs, err := n.Add(t.Context(), "pod", pod.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	pod.serve(t, "tcp4", ":80")
	node.expect(t, "tcp", addrPort(addrs[0], 80), "pod 10.200.0.11")
	node.do(t, func() error {
		v6, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding")
		if err == nil && strings.TrimSpace(string(v6)) != "0" {
			err = errors.New("IPv6 forwarding was turned on for IPv4 pods")
		}
		return err
	})
}

// TestIPv6Off: a pod of IPv6 works in a namespace that has it off by default.
func TestIPv6Off(t *testing.T) {
	node, n := newDual(t, newSwitch(t), 1)
	pod := newEmpty(t, "pod")
	pod.do(t, func() error { return errors.Join(setting(disableAllV6, "1"), setting(disableNextV6, "1")) })
	addrs, err := n.Add(t.Context(), "pod", pod.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	pod.serve(t, "tcp", ":80")
	node.expect(t, "tcp", addrPort(addrs[1], 80), "pod fd00:200::11")
}

// TestForgedSource: a pod cannot send with another pod's address.
func TestForgedSource(t *testing.T) {
	_, n := newDual(t, newSwitch(t), 1)
	forger, _ := newPod(t, n, "forger")
	target, targetAddrs := newPod(t, n, "target")
	target.serve(t, "udp", ":53")
	for i, forged := range []netip.Addr{addr("10.244.1.222"), addr("fd00:244:0:1::222")} {
		forger.do(t, func() error {
			link, err := netlink.LinkByName(podLink)
			if err != nil {
				return err
			}
			return netlink.AddrAdd(link, &netlink.Addr{IPNet: single(forged), Flags: 0x02 /* nodad */})
		})
		got := target.received(t, forger, forged, addrPort(targetAddrs[i], 5353))
		if got != "" {
			t.Errorf("a packet with the forged source %s arrived: %q", forged, got)
		}
	}
}

func BenchmarkAddRemove(b *testing.B) {
	node := newNode(b, newSwitch(b), "node-1", "10.200.0.11/24")
	n := newNetwork(b, node, Options{NodeAddrs: []netip.Addr{addr("10.200.0.11")}, PodCIDRs: []netip.Prefix{prefix("10.244.0.0/16")}})
	pod := newEmpty(b, "pod")
	var adding, removing time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := n.Add(b.Context(), "pod", pod.path, nil); err != nil {
			b.Fatal(err)
		}
		added := time.Now()
		if err := n.Remove(b.Context(), "pod"); err != nil {
			b.Fatal(err)
		}
		adding, removing = adding+added.Sub(start), removing+time.Since(added)
	}
	b.ReportMetric(adding.Seconds()*1e3/float64(b.N), "add-ms")
	b.ReportMetric(removing.Seconds()*1e3/float64(b.N), "remove-ms")
}

// TestFlushedTable: rules that somebody removed come back with the next SetPeers.
func TestFlushedTable(t *testing.T) {
	node, n := newDual(t, newSwitch(t), 1)
	web, _ := newPod(t, n, "web", HostPort{Port: 8080, ContainerPort: 80})
	web.serve(t, "tcp", ":80")
	if err := n.kernel.removeTable(); err != nil {
		t.Fatal(err)
	}
	if _, err := node.refused("tcp", addrPort(dual(1).NodeAddrs[0], 8080)); err == nil {
		t.Fatal("the host port answers without rules")
	}
	if err := n.SetPeers(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	node.expect(t, "tcp", addrPort(dual(1).NodeAddrs[0], 8080), "web 10.200.0.11")
}

// TestRouterAdvertisements: a machine that has its IPv6 routes from a router keeps them when it becomes a router itself.
func TestRouterAdvertisements(t *testing.T) {
	o := dual(1)
	node := newNode(t, newSwitch(t), "node-1", o.NodeAddrs[0].String()+"/24", o.NodeAddrs[1].String()+"/64")
	node.do(t, func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(prefix("::/0")), Gw: addr("fd00:200::1").AsSlice(), Protocol: 9 /* ra */})
	})
	newNetwork(t, node, o)
	node.do(t, func() error {
		for name, want := range map[string]string{"uplink/accept_ra": "2", "all/forwarding": "1"} {
			got, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name)
			if err != nil || strings.TrimSpace(string(got)) != want {
				return fmt.Errorf("%s is %q, %w, want %s", name, got, err, want)
			}
		}
		return nil
	})
}

// TestOtherFirewall: a firewall that would cut pods off is named, and left alone.
func TestOtherFirewall(t *testing.T) {
	o := dual(1)
	node := newNode(t, newSwitch(t), "node-1", o.NodeAddrs[0].String()+"/24", o.NodeAddrs[1].String()+"/64")
	node.do(t, func() error {
		nft, err := nftables.New()
		if err != nil {
			return err
		}
		drop := nftables.ChainPolicyDrop
		other := nft.AddTable(&nftables.Table{Name: "other", Family: nftables.TableFamilyIPv4})
		nft.AddChain(&nftables.Chain{Table: other, Name: "FORWARD", Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
		return nft.Flush()
	})
	var log bytes.Buffer
	o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	n := newNetwork(t, node, o)
	if !strings.Contains(log.String(), `chains="[other FORWARD]"`) {
		t.Errorf("the log does not name the chain: %s", log.String())
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := strings.Join(node.dump(t), "\n"); !strings.Contains(after, "chain other FORWARD has 0 rules") || strings.Contains(after, Table) {
		t.Errorf("another's table was touched, or ours is left:\n%s", after)
	}
}
