package podnet

import (
	"fmt"
	"testing"
)

// TestPodsOfANode sends packets between the pods and the node, in both directions, families and protocols.
func TestPodsOfANode(t *testing.T) {
	node, n := newDual(t, newSwitch(t), 1)
	one, oneAddrs := newPod(t, n, "one")
	two, twoAddrs := newPod(t, n, "two")
	for _, p := range []*place{node, one, two} {
		p.serve(t, "tcp", ":80")
		p.serve(t, "udp", ":53")
	}
	for i := range oneAddrs {
		nodeAddr := dual(1).NodeAddrs[i]
		one.expect(t, "udp", addrPort(twoAddrs[i], 53), "two "+oneAddrs[i].String())
		one.expect(t, "tcp", addrPort(twoAddrs[i], 80), "two "+oneAddrs[i].String())
		two.expect(t, "tcp", addrPort(oneAddrs[i], 80), "one "+twoAddrs[i].String())
		one.expect(t, "tcp", addrPort(oneAddrs[i], 80), "one "+oneAddrs[i].String())
		one.expect(t, "tcp", addrPort(nodeAddr, 80), "node-1 "+oneAddrs[i].String())
		one.expect(t, "udp", addrPort(nodeAddr, 53), "node-1 "+oneAddrs[i].String())
		node.expect(t, "tcp", addrPort(oneAddrs[i], 80), "one "+nodeAddr.String())
		node.expect(t, "udp", addrPort(twoAddrs[i], 53), "two "+nodeAddr.String())
	}
	one.expect(t, "tcp", addrPort(addr("127.0.0.1"), 80), "one 127.0.0.1")
	one.expect(t, "tcp", addrPort(addr("::1"), 80), "one ::1")
}

// TestFirstPacket: as soon as Add returns, no packet is lost in either direction and family; a SYN that is lost costs a second.
func TestFirstPacket(t *testing.T) {
	node, n := newDual(t, newSwitch(t), 1)
	node.serve(t, "tcp", ":80")
	for i := range 40 {
		uid := fmt.Sprint("pod-", i)
		pod, addrs := newPod(t, n, uid)
		family := i % 2
		if i%4 < 2 {
			pod.serve(t, "tcp", ":80")
			node.expect(t, "tcp", addrPort(addrs[family], 80), uid+" "+dual(1).NodeAddrs[family].String())
		} else {
			pod.expect(t, "tcp", addrPort(dual(1).NodeAddrs[family], 80), "node-1 "+addrs[family].String())
		}
		if err := n.Remove(t.Context(), uid); err != nil {
			t.Fatal(err)
		}
	}
}
