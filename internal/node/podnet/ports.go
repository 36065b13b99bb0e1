package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// forward is one host port in one family: packets for host arrive at target.
type forward struct {
	protocol uint8          // IPPROTO_TCP, …
	host     netip.AddrPort // an unspecified address = every address of the node
	target   netip.AddrPort // in the pod
}

func (f forward) String() string {
	if f.host.Addr().IsUnspecified() {
		return fmt.Sprintf("hostPort %d/%s", f.host.Port(), protocolName(f.protocol))
	}
	return fmt.Sprintf("hostPort %s/%s", f.host, protocolName(f.protocol))
}

// forwardsOf resolves host ports for a pod with these addresses.
func forwardsOf(addrs []netip.Addr, ports []HostPort) ([]forward, error) {
	var forwards []forward
	for _, p := range ports {
		protocol, ok := protocolNumber(p.Protocol)
		if !ok {
			return nil, fmt.Errorf("hostPort %d: protocol %q is not known; use TCP, UDP or SCTP", p.Port, p.Protocol)
		}
		if p.Port == 0 || p.ContainerPort == 0 {
			return nil, fmt.Errorf("hostPort %d to containerPort %d: both must be 1-65535", p.Port, p.ContainerPort)
		}
		host := p.HostIP.Unmap().WithZone("")
		found := false
		for _, addr := range addrs {
			on := host
			if !host.IsValid() {
				on = unspecified(addr)
			} else if host.Is4() != addr.Is4() {
				continue
			}
			found = true
			forwards = append(forwards, forward{protocol, netip.AddrPortFrom(on, p.Port), netip.AddrPortFrom(addr, p.ContainerPort)})
		}
		if !found {
			return nil, fmt.Errorf("hostPort %d: hostIP %s is %s, and the pod has %s only; drop the hostIP, or give the node a range of that family (--pod-cidr)",
				p.Port, host, familyName(host), join(addrs))
		}
	}
	for i, f := range forwards {
		if slices.Contains(forwards[:i], f) {
			return nil, fmt.Errorf("%s is given twice in the pod; drop one", f)
		}
	}
	return forwards, nil
}

func unspecified(family netip.Addr) netip.Addr {
	if family.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func protocolNumber(name string) (uint8, bool) {
	switch name {
	case "TCP", "":
		return unix.IPPROTO_TCP, true
	case "UDP":
		return unix.IPPROTO_UDP, true
	case "SCTP":
		return unix.IPPROTO_SCTP, true
	}
	return 0, false
}

func protocolName(number uint8) string {
	switch number {
	case unix.IPPROTO_TCP:
		return "TCP"
	case unix.IPPROTO_UDP:
		return "UDP"
	case unix.IPPROTO_SCTP:
		return "SCTP"
	}
	return strconv.Itoa(int(number))
}

// portTable says which pod has which host port.
type portTable struct {
	owners map[portKey]map[netip.Addr]portOwner // port → host address, maybe unspecified → owner
}

type portKey struct {
	v4       bool
	protocol uint8
	port     uint16
}

type portOwner struct {
	uid     string
	forward forward
}

func newPortTable() *portTable { return &portTable{owners: map[portKey]map[netip.Addr]portOwner{}} }

func (f forward) key() portKey { return portKey{f.host.Addr().Is4(), f.protocol, f.host.Port()} }

// conflict returns the UID of a pod that has the port on an address in common, "" if none has. An unspecified address has
// all in common, as with bind(2) and for the Kubernetes scheduler.
func (t *portTable) conflict(f forward) string {
	for addr, owner := range t.owners[f.key()] {
		if addr == f.host.Addr() || addr.IsUnspecified() || f.host.Addr().IsUnspecified() {
			return owner.uid
		}
	}
	return ""
}

func (t *portTable) put(f forward, uid string) {
	if t.owners[f.key()] == nil {
		t.owners[f.key()] = map[netip.Addr]portOwner{}
	}
	t.owners[f.key()][f.host.Addr()] = portOwner{uid, f}
}

func (t *portTable) drop(f forward) {
	delete(t.owners[f.key()], f.host.Addr())
	if len(t.owners[f.key()]) == 0 {
		delete(t.owners, f.key())
	}
}

// of returns the host ports of a pod.
func (t *portTable) of(uid string) []forward {
	return t.where(func(o portOwner) bool { return o.uid == uid })
}

// all returns the host ports of all pods.
func (t *portTable) all() []forward { return t.where(func(portOwner) bool { return true }) }

func (t *portTable) where(keep func(portOwner) bool) []forward {
	var forwards []forward
	for _, addrs := range t.owners {
		for _, owner := range addrs {
			if keep(owner) {
				forwards = append(forwards, owner.forward)
			}
		}
	}
	return forwards
}

// probePorts binds each host port for a moment: one that a process of the node has is refused, because the pod would take its
// packets away. SCTP is not probed; few kernels have it.
func probePorts(ctx context.Context, ns netns.NsHandle, forwards []forward) error {
	return inNamespace(ns, func() error {
		for _, f := range forwards {
			err := probePort(ctx, f)
			switch {
			case errors.Is(err, unix.EADDRINUSE):
				return fmt.Errorf("%s: %w by %s; stop it or choose another hostPort", f, ErrPortTaken, listener(f))
			case errors.Is(err, unix.EADDRNOTAVAIL):
				return fmt.Errorf("%s: the node has no address %s; use one of its own as hostIP, or none", f, f.host.Addr())
			}
			// Anything else says nothing about others, such as EACCES for a port below 1024.
		}
		return nil
	})
}

func probePort(ctx context.Context, f forward) error {
	family := "6"
	if f.host.Addr().Is4() {
		family = "4"
	}
	var config net.ListenConfig
	switch f.protocol {
	case unix.IPPROTO_TCP:
		l, err := config.Listen(ctx, "tcp"+family, f.host.String())
		if err != nil {
			return err
		}
		return l.Close()
	case unix.IPPROTO_UDP:
		l, err := config.ListenPacket(ctx, "udp"+family, f.host.String())
		if err != nil {
			return err
		}
		return l.Close()
	}
	return nil
}
