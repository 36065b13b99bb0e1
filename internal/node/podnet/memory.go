package podnet

import (
	"fmt"
	"net/netip"
	"slices"
)

// reserve takes an address of each range and the host ports, or nothing.
func (n *Network) reserve(uid string, ports []HostPort) ([]netip.Addr, []forward, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var addrs []netip.Addr
	for _, p := range n.pools {
		addr, err := p.next()
		if err != nil {
			n.release(addrs)
			return nil, nil, err
		}
		addrs = append(addrs, addr)
	}
	forwards, err := forwardsOf(addrs, ports)
	for i := 0; err == nil && i < len(forwards); i++ {
		if owner := n.ports.conflict(forwards[i]); owner != "" {
			err = fmt.Errorf("%s: %w by pod %s; choose another hostPort, or let the pods run on different nodes", forwards[i], ErrPortTaken, owner)
		} else {
			n.ports.put(forwards[i], uid)
			continue
		}
		for _, f := range forwards[:i] {
			n.ports.drop(f)
		}
	}
	if err != nil {
		n.release(addrs)
		return nil, nil, err
	}
	n.pods[uid] = &pod{addrs: addrs, adopted: true}
	return addrs, forwards, nil
}

func (n *Network) take(addr netip.Addr) {
	for _, p := range n.pools {
		p.take(addr)
	}
}

func (n *Network) release(addrs []netip.Addr) {
	for _, addr := range addrs {
		for _, p := range n.pools {
			p.release(addr)
		}
	}
}

func (n *Network) lookup(uid string) (p *pod, adopted bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p = n.pods[uid]
	return p, p != nil && p.adopted
}

// enter waits until nobody else works on the pod and returns the way out.
func (n *Network) enter(uid string) func() {
	n.mu.Lock()
	t := n.busy[uid]
	if t == nil {
		t = &turnstile{}
		n.busy[uid] = t
	}
	t.users++
	n.mu.Unlock()
	t.mu.Lock()
	return func() {
		t.mu.Unlock()
		n.mu.Lock()
		defer n.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(n.busy, uid)
		}
	}
}

// claim notes what an adopted pod has, and returns the host ports that the kernel does not have yet or no longer should.
func (n *Network) claim(uid string, addrs []netip.Addr, wanted []forward) (add, drop []forward, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other, p := range n.pods {
		for _, addr := range addrs {
			if other != uid && slices.Contains(p.addrs, addr) {
				return nil, nil, fmt.Errorf("address %s belongs to pod %s", addr, other)
			}
		}
	}
	had := n.ports.of(uid)
	for _, f := range wanted {
		if owner := n.ports.conflict(f); owner != "" && owner != uid {
			return nil, nil, fmt.Errorf("%s: %w by pod %s", f, ErrPortTaken, owner)
		}
		if !slices.Contains(had, f) {
			add = append(add, f)
		}
	}
	for _, f := range had {
		if !slices.Contains(wanted, f) {
			drop = append(drop, f)
		}
		n.ports.drop(f)
	}
	for _, f := range wanted {
		n.ports.put(f, uid)
	}
	if old := n.pods[uid]; old != nil {
		n.release(old.addrs)
	}
	for _, addr := range addrs {
		n.take(addr)
	}
	n.pods[uid] = &pod{addrs: addrs, adopted: true}
	return add, drop, nil
}
