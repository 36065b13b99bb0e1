package ebpf

import (
	"net/netip"
	"testing"
)

func TestNodesOfOneMachine(t *testing.T) {
	p := newPlace(t)
	first, second, nobody := newCgroup(t), newCgroup(t), newCgroup(t)
	a := newNode(t, func(o *Options) { o.Cgroups = []string{first} })
	b := newNode(t, func(o *Options) { o.Cgroups = []string{second} })
	a.set(spec{n: 1, endpoints: []int{1}})
	a.sync()
	b.set(spec{n: 1, endpoints: []int{2}})
	b.sync()
	eachNetwork(t, func(t *testing.T, v6 bool, network string) {
		to := at(clusterIP(v6, 1))
		inCgroup(t, first, func() { p.expect(t, network, to, "1") })
		inCgroup(t, second, func() { p.expect(t, network, to, "2") })
		inCgroup(t, nobody, func() { p.refuse(t, network, to) })
		p.refuse(t, network, to) // the cgroup above
	})
}

func TestSeveralCgroupsOfANode(t *testing.T) {
	p := newPlace(t)
	first, second := newCgroup(t), newCgroup(t)
	n := newNode(t, func(o *Options) { o.Cgroups = []string{first, second} })
	n.set(spec{n: 1, endpoints: []int{1}})
	n.sync()
	for _, cgroup := range []string{first, second} {
		inCgroup(t, cgroup, func() { p.expect(t, "tcp", at(clusterIP(false, 1)), "1") })
	}

	// An agent that is told of other cgroups leaves the old ones.
	n.options.Cgroups = []string{second}
	n.restart()
	n.sync()
	inCgroup(t, first, func() { p.refuse(t, "tcp", at(clusterIP(false, 1))) })
	inCgroup(t, second, func() { p.expect(t, "tcp", at(clusterIP(false, 1)), "1") })
}

func TestLoopbackIsTheNodesOwn(t *testing.T) {
	node, pod := newPlace(t), newPlace(t)
	var n *testNode
	node.do(t, func() error { n = newNode(t); return nil })
	n.set(spec{n: 1, endpoints: []int{1}})
	n.sync()
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), nodePort(1))
	node.expect(t, "tcp", to, "1")
	if got, err := pod.ask("tcp", to); err == nil {
		t.Errorf("%s answers on the loopback address of a pod, where nobody listens", got)
	}
}
