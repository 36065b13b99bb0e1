package podnet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// TestPodsOfTwoNodes sends packets between pods of two nodes and to a machine outside, which knows nothing of pods.
func TestPodsOfTwoNodes(t *testing.T) {
	sw := newSwitch(t)
	node1, n1 := newDual(t, sw, 1)
	node2, n2 := newDual(t, sw, 2)
	outside := newNode(t, sw, "outside", "10.200.0.99/24", "fd00:200::99/64")
	for n, other := range map[*Network]Peer{n1: peer(2), n2: peer(1)} {
		if err := n.SetPeers(t.Context(), []Peer{other}); err != nil {
			t.Fatal(err)
		}
	}
	one, oneAddrs := newPod(t, n1, "one")
	two, twoAddrs := newPod(t, n2, "two")
	for _, p := range []*place{node1, node2, one, two, outside} {
		p.serve(t, "tcp", ":80")
		p.serve(t, "udp", ":53")
	}
	for i, outsideAddr := range []netip.Addr{addr("10.200.0.99"), addr("fd00:200::99")} {
		for network, port := range map[string]uint16{"tcp": 80, "udp": 53} {
			node1Addr, node2Addr := dual(1).NodeAddrs[i], dual(2).NodeAddrs[i]
			one.expect(t, network, addrPort(twoAddrs[i], port), "two "+oneAddrs[i].String())
			two.expect(t, network, addrPort(oneAddrs[i], port), "one "+twoAddrs[i].String())
			one.expect(t, network, addrPort(node2Addr, port), "node-2 "+oneAddrs[i].String())
			node1.expect(t, network, addrPort(twoAddrs[i], port), "two "+node1Addr.String())
			one.expect(t, network, addrPort(outsideAddr, port), "outside "+node1Addr.String())
		}
	}
}

// TestUnusedAddress: a packet for a pod that does not exist is refused at once, not sent to the default gateway.
func TestUnusedAddress(t *testing.T) {
	node, n := newDual(t, newSwitch(t), 1)
	node.do(t, func() error {
		return errors.Join(routeVia(prefix("0.0.0.0/0"), addr("10.200.0.1")), routeVia(prefix("::/0"), addr("fd00:200::1")))
	})
	one, _ := newPod(t, n, "one")
	for _, p := range []*place{node, one} {
		for _, free := range []string{"10.244.1.77", "fd00:244:0:1::77"} {
			_, err := p.dialFor("tcp", netip.AddrPortFrom(addr(free), 80), patience) // TCP heeds only the answer to its second packet
			if err == nil || strings.Contains(err.Error(), "timeout") {
				t.Errorf("%s to the unused address %s: %v, want no route", p.name, free, err)
			}
		}
	}
}

// TestSetPeersWalk visits random sets of peers: after each step the kernel has exactly the routes that were asked for, a
// repetition writes nothing, and the routes of others stay.
func TestSetPeersWalk(t *testing.T) {
	node, n := newDual(t, newSwitch(t), 1)
	foreign := &netlink.Route{Dst: ipNet(prefix("192.168.7.0/24")), Gw: addr("10.200.0.1").AsSlice()}
	node.do(t, func() error { return netlink.RouteAdd(foreign) })
	before := node.dump(t)
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for step := range 40 {
		var peers []Peer
		want := map[netip.Prefix]netip.Addr{}
		for i := 2; i < 8; i++ {
			if random.IntN(2) == 0 {
				continue
			}
			p := peer(i)
			if random.IntN(2) == 0 { // the node has another address today
				p.Addrs = []netip.Addr{addr(fmt.Sprintf("10.200.0.%d", 110+i)), addr(fmt.Sprintf("fd00:200::%d", 110+i))}
			}
			if random.IntN(3) == 0 {
				p.PodCIDRs = p.PodCIDRs[:1]
			}
			for j, cidr := range p.PodCIDRs {
				want[cidr] = p.Addrs[j]
			}
			peers = append(peers, p)
		}
		if err := n.SetPeers(t.Context(), peers); err != nil {
			t.Fatalf("seed %d step %d: %v", seed, step, err)
		}
		checkPeers(t, n, want, peers)
		writes := n.kernel.writes.Load()
		slices.Reverse(peers)
		if err := n.SetPeers(t.Context(), peers); err != nil {
			t.Fatalf("seed %d step %d, again: %v", seed, step, err)
		}
		if more := n.kernel.writes.Load() - writes; more != 0 {
			t.Fatalf("seed %d step %d: the same peers again wrote %d times", seed, step, more)
		}
	}
	if err := n.SetPeers(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, node.dump(t)); diff != "" {
		t.Errorf("without peers, the node is not as before (-before +after):\n%s", diff)
	}
}

// checkPeers reads the kernel with other means than the package's own.
func checkPeers(t *testing.T, n *Network, want map[netip.Prefix]netip.Addr, peers []Peer) {
	t.Helper()
	got := map[netip.Prefix]netip.Addr{}
	err := inNamespace(n.kernel.ns, func() error {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		for _, r := range routes {
			if via, ok := netip.AddrFromSlice(r.Gw); ok && r.Protocol == RouteProtocol {
				ones, _ := r.Dst.Mask.Size()
				dst, _ := netip.AddrFromSlice(r.Dst.IP)
				got[netip.PrefixFrom(dst, ones)] = via
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Fatalf("routes (-want +got):\n%s", diff)
	}
	ranges, err := n.kernel.observeInside()
	if err != nil {
		t.Fatal(err)
	}
	if want := inside(n.config, peers); !slices.Equal(ranges, want) {
		t.Fatalf("ranges that are not masqueraded: %v, want %v", ranges, want)
	}
}

// TestPeerNotOnLink: a peer that cannot be reached is named, and the others are done all the same.
func TestPeerNotOnLink(t *testing.T) {
	_, n := newDual(t, newSwitch(t), 1)
	far := Peer{Name: "far", Addrs: []netip.Addr{addr("172.30.0.1"), addr("fd00:999::1")},
		PodCIDRs: []netip.Prefix{prefix("10.244.9.0/24"), prefix("fd00:244:0:9::/64")}}
	greedy := Peer{Name: "greedy", Addrs: []netip.Addr{addr("10.200.0.30")}, PodCIDRs: []netip.Prefix{prefix("10.244.0.0/16")}}
	err := n.SetPeers(context.Background(), []Peer{far, peer(2), greedy})
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range []string{"10.244.9.0/24", "fd00:244:0:9::/64", "node far", "node greedy: pod range 10.244.0.0/16 overlaps this node's 10.244.1.0/24", "network in common"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	have, err := n.kernel.observePeerRoutes()
	if err != nil {
		t.Fatal(err)
	}
	if len(have) != 2 || have[peer(2).PodCIDRs[0]] != peer(2).Addrs[0] {
		t.Errorf("routes %v, want those to node-2", have)
	}
}
