package traffic

import (
	"fmt"
	"net/netip"
	"slices"
)

// NodePortAddrs says on which addresses of a node NodePorts answer, as kube-proxy's nodePortAddresses does (nftables mode, Kubernetes 1.37). The zero value
// is the primary ones.
type NodePortAddrs struct {
	all, localhost, ranges bool
	primary                bool
	within                 []netip.Prefix
}

// ParseNodePortAddrs reads address ranges and the words primary, all and localhost. Nothing at all is primary.
func ParseNodePortAddrs(texts []string) (NodePortAddrs, error) {
	var n NodePortAddrs
	for i, text := range texts {
		if slices.Contains(texts[:i], text) {
			return n, fmt.Errorf("%s is there twice", text)
		}
		switch text {
		case "primary":
			n.primary = true
		case "all":
			n.all = true
		case "localhost":
			n.localhost = true
		default:
			r, err := netip.ParsePrefix(text)
			if err != nil {
				return n, fmt.Errorf("%q is neither an address range, like 192.0.2.0/24, nor one of primary, all, localhost", text)
			}
			n.ranges = true
			n.within = append(n.within, r.Masked())
		}
	}
	return n, nil
}

// Localhost says whether NodePorts are wanted on addresses of the loopback interface.
func (n NodePortAddrs) Localhost() bool {
	return n.localhost || slices.ContainsFunc(n.within, loopback)
}

func loopback(p netip.Prefix) bool { return p.Addr().IsLoopback() }

func (n NodePortAddrs) needInterfaces() bool { return n.all || n.localhost || n.ranges }

// resolve chooses among the node's own addresses and all those of the machine. Sorted.
func (n NodePortAddrs) resolve(own, local []netip.Addr) []netip.Addr {
	var chosen []netip.Addr
	if n.primary || !n.needInterfaces() {
		for _, a := range own {
			if !a.IsLoopback() {
				chosen = append(chosen, a.Unmap())
			}
		}
	}
	for _, a := range local {
		if n.wants(a) {
			chosen = append(chosen, a)
		}
	}
	slices.SortFunc(chosen, netip.Addr.Compare)
	return slices.Compact(chosen)
}

// wants says whether an address of the machine is one by its range. Loopback addresses are wanted only by name, and so are those of links.
func (n NodePortAddrs) wants(a netip.Addr) bool {
	if a.IsLoopback() {
		return n.localhost || n.named(a, loopback)
	}
	if a.IsLinkLocalUnicast() {
		return n.named(a, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
	}
	return n.all || n.named(a, func(netip.Prefix) bool { return true }) || n.unnamed(a)
}

func (n NodePortAddrs) named(a netip.Addr, which func(netip.Prefix) bool) bool {
	return slices.ContainsFunc(n.within, func(p netip.Prefix) bool { return which(p) && p.Contains(a) })
}

// unnamed: where ranges are of one family only, those of the other one are not restricted, as in kube-proxy.
func (n NodePortAddrs) unnamed(a netip.Addr) bool {
	return n.ranges && !n.primary && !n.localhost && !slices.ContainsFunc(n.within, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() })
}
