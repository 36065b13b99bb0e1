package podnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestHostPorts reaches a pod through ports of its node from everywhere.
func TestHostPorts(t *testing.T) {
	sw := newSwitch(t)
	node1, n1 := newDual(t, sw, 1)
	node2, n2 := newDual(t, sw, 2)
	for n, other := range map[*Network]Peer{n1: peer(2), n2: peer(1)} {
		if err := n.SetPeers(t.Context(), []Peer{other}); err != nil {
			t.Fatal(err)
		}
	}
	outside := newNode(t, sw, "outside", "10.200.0.99/24", "fd00:200::99/64")
	web, webAddrs := newPod(t, n1, "web",
		HostPort{Port: 8080, ContainerPort: 80, Protocol: "TCP"},
		HostPort{Port: 8053, ContainerPort: 53, Protocol: "UDP"},
		HostPort{Port: 8081, ContainerPort: 80, HostIP: dual(1).NodeAddrs[0]})
	neighbour, neighbourAddrs := newPod(t, n1, "neighbour")
	far, farAddrs := newPod(t, n2, "far")
	web.serve(t, "tcp", ":80")
	web.serve(t, "udp", ":53")
	for i, outsideAddr := range []netip.Addr{addr("10.200.0.99"), addr("fd00:200::99")} {
		for network, port := range map[string]uint16{"tcp": 8080, "udp": 8053} {
			node1Addr, node2Addr := dual(1).NodeAddrs[i], dual(2).NodeAddrs[i]
			to := addrPort(node1Addr, port)
			outside.expect(t, network, to, "web "+outsideAddr.String())
			node1.expect(t, network, to, "web "+node1Addr.String())
			node2.expect(t, network, to, "web "+node2Addr.String())
			far.expect(t, network, to, "web "+farAddrs[i].String())
			neighbour.expect(t, network, to, "web "+neighbourAddrs[i].String())
			web.expect(t, network, to, "web "+node1Addr.String()) // hairpin
		}
	}
	node1.expect(t, "tcp", addrPort(addr("127.0.0.1"), 8080), "web 10.200.0.11")
	node1.expect(t, "udp", addrPort(addr("127.0.0.1"), 8053), "web 10.200.0.11")
	outside.expect(t, "tcp", addrPort(dual(1).NodeAddrs[0], 8081), "web 10.200.0.99")
	outside.expect(t, "tcp", addrPort(webAddrsVia(t, outside, webAddrs[0]), 80), "web 10.200.0.99")
	for _, closed := range []netip.AddrPort{
		addrPort(dual(1).NodeAddrs[1], 8081), addrPort(addr("127.0.0.1"), 8081), addrPort(dual(2).NodeAddrs[0], 8080),
	} {
		if _, err := node1.refused("tcp", closed); err == nil {
			t.Errorf("%s answers, but no pod has that port there", closed)
		}
	}
	if err := n1.Remove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if _, err := outside.refused("tcp", addrPort(dual(1).NodeAddrs[0], 8080)); err == nil {
		t.Error("the host port answers after the pod is gone")
	}
}

// webAddrsVia has the outside know the way to a pod, so that it can be asked directly.
func webAddrsVia(t *testing.T, outside *place, pod netip.Addr) netip.Addr {
	t.Helper()
	outside.do(t, func() error { return routeVia(prefix("10.244.1.0/24"), dual(1).NodeAddrs[0]) })
	return pod
}

// TestHostPortOfANewPod: a UDP client that goes on sending from one socket reaches the pod that has the port now, whether there was
// none before or another.
func TestHostPortOfANewPod(t *testing.T) {
	sw := newSwitch(t)
	_, n := newDual(t, sw, 1)
	outside := newNode(t, sw, "outside", "10.200.0.99/24", "fd00:200::99/64")
	for i, to := range dual(1).NodeAddrs {
		client, err := outside.dial("udp", addrPort(to, 8053))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		if _, err := client.Write([]byte("nobody?\n")); err != nil {
			t.Fatal(err)
		}
		for _, uid := range []string{"first", "second"} {
			pod, _ := newPod(t, n, uid, HostPort{Port: 8053, ContainerPort: 53, Protocol: "UDP"})
			pod.serve(t, "udp", ":53")
			answer := ""
			for range 5 { // refusals and answers of before are read first
				if answer, err = exchange(client); err == nil && strings.HasPrefix(answer, uid) {
					break
				}
			}
			if !strings.HasPrefix(answer, uid) {
				t.Errorf("%s: %q, %v, want an answer of %s", dual(1).NodeAddrs[i], answer, err, uid)
			}
			if err := n.Remove(t.Context(), uid); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestHostPortTaken: who has the port is named, and a pod that is refused leaves nothing.
func TestHostPortTaken(t *testing.T) {
	node, n := newDual(t, newSwitch(t), 1)
	specific := HostPort{Port: 8081, ContainerPort: 80, HostIP: dual(1).NodeAddrs[0]}
	newPod(t, n, "web", HostPort{Port: 8080, ContainerPort: 80}, specific)
	node.serve(t, "tcp", "10.200.0.11:9090")
	node.serve(t, "udp6", "[::]:9091")
	before := node.dump(t)
	for _, c := range []struct {
		name string
		port HostPort
		is   error
		says string
	}{
		{"wildcard", HostPort{Port: 8080, ContainerPort: 1}, ErrPortTaken, "by pod web"},
		{"within a wildcard", HostPort{Port: 8080, ContainerPort: 1, HostIP: addr("127.0.0.1")}, ErrPortTaken, "by pod web"},
		{"same address", specific, ErrPortTaken, "hostPort 10.200.0.11:8081/TCP"},
		{"around an address", HostPort{Port: 8081, ContainerPort: 1, HostIP: addr("0.0.0.0")}, ErrPortTaken, "by pod web"},
		{"process", HostPort{Port: 9090, ContainerPort: 1}, ErrPortTaken, "(pid " + strconv.Itoa(os.Getpid()) + ") of the node"},
		{"process, UDP", HostPort{Port: 9091, ContainerPort: 1, Protocol: "UDP"}, ErrPortTaken, "(pid " + strconv.Itoa(os.Getpid()) + ") of the node"},
		{"not the node's", HostPort{Port: 7, ContainerPort: 1, HostIP: addr("10.9.9.9")}, nil, "the node has no address 10.9.9.9"},
		{"unknown protocol", HostPort{Port: 7, ContainerPort: 1, Protocol: "ICMP"}, nil, "use TCP, UDP or SCTP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := newEmpty(t, "late")
			_, err := n.Add(context.Background(), "late", pod.path, []HostPort{c.port})
			if err == nil || (c.is != nil && !errors.Is(err, c.is)) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want %v that says %q", err, c.is, c.says)
			}
			sameDump(t, before, node.dump(t))
		})
	}
	other, _ := newPod(t, n, "other", HostPort{Port: 8081, ContainerPort: 80, HostIP: addr("127.0.0.1")},
		HostPort{Port: 8080, ContainerPort: 53, Protocol: "UDP"})
	other.serve(t, "tcp", ":80")
	node.expect(t, "tcp", addrPort(addr("127.0.0.1"), 8081), "other 10.200.0.11")
}

// TestLoopbackStaysClosed: that the node may send to pods from 127.0.0.1 does not let pods reach what listens there.
func TestLoopbackStaysClosed(t *testing.T) {
	node, n := newDual(t, newSwitch(t), 1)
	pod, _ := newPod(t, n, "web", HostPort{Port: 8080, ContainerPort: 80})
	node.serve(t, "tcp", "127.0.0.1:9999")
	pod.do(t, func() error {
		if err := setting("ipv4/conf/all/route_localnet", "1"); err != nil {
			return err
		}
		return withoutLocal(prefix("127.0.0.0/8"))
	})
	if answer, err := pod.refused("tcp", addrPort(addr("127.0.0.1"), 9999)); err == nil {
		t.Errorf("a pod reached 127.0.0.1 of the node: %q", answer)
	}
	var refused net.Error
	if _, err := pod.refused("tcp", addrPort(addr("127.0.0.1"), 9999)); !errors.As(err, &refused) || !refused.Timeout() {
		t.Errorf("error %v, want a timeout: the packet was to leave the pod and be dropped by the node", err)
	}
}

// TestHostPortTellsItself: pods that come through a host port have source ports on the server's side of 32768, by which package nftables knows what was
// translated; others' are their own.
func TestHostPortTellsItself(t *testing.T) {
	sw := newSwitch(t)
	node1, n1 := newDual(t, sw, 1)
	_, n2 := newDual(t, sw, 2)
	for n, other := range map[*Network]Peer{n1: peer(2), n2: peer(1)} {
		if err := n.SetPeers(t.Context(), []Peer{other}); err != nil {
			t.Fatal(err)
		}
	}
	web, _ := newPod(t, n1, "web", HostPort{Port: 8080, ContainerPort: 80, Protocol: "TCP"}, HostPort{Port: 8081, ContainerPort: 40_000, Protocol: "TCP"})
	neighbour, _ := newPod(t, n1, "neighbour")
	far, _ := newPod(t, n2, "far")
	for hostPort, port := range map[uint16]string{8080: ":80", 8081: ":40000"} {
		var l net.Listener
		web.do(t, func() (err error) {
			l, err = net.Listen("tcp", port)
			return err
		})
		for _, nodeAddr := range dual(1).NodeAddrs {
			for _, client := range []*place{neighbour, far, node1} {
				c, err := client.dial("tcp", addrPort(nodeAddr, hostPort))
				if err != nil {
					t.Fatal(err)
				}
				seen, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				own, there := netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(seen.RemoteAddr().String())
				if own.Addr().Unmap() != there.Addr().Unmap() && client != node1 {
					t.Errorf("%s is seen as %s", own, there)
				}
				switch isHigh := there.Port() >= 32768; {
				case client == node1 && there.Port() != own.Port():
					t.Errorf("the node's port %d became %d", own.Port(), there.Port())
				case client != node1 && isHigh != (hostPort == 8081):
					t.Errorf("%s came to %s with port %d", client.name, port, there.Port())
				}
				_, _ = c.Close(), seen.Close()
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
