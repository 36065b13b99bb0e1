package nodelife

import (
	"fmt"
	"net/netip"
	"slices"
)

// The sizes of nodes' ranges, as Kubernetes' defaults.
const (
	nodeBits4 = 24
	nodeBits6 = 64
)

// nodeBits is the prefix length of a node's part of a range.
func nodeBits(cluster netip.Prefix) int {
	if cluster.Addr().Is4() {
		return nodeBits4
	}
	return nodeBits6
}

// free is the first part of the cluster's range that overlaps none of used.
func free(cluster netip.Prefix, used []netip.Prefix) (netip.Prefix, error) {
	bits := nodeBits(cluster)
	for p := netip.PrefixFrom(cluster.Masked().Addr(), bits); cluster.Contains(p.Addr()); {
		i := slices.IndexFunc(used, p.Overlaps)
		if i < 0 {
			return p, nil
		}
		// Behind what is in the way, which may be larger.
		last := lastAddr(p)
		if end := lastAddr(used[i]); last.Less(end) {
			last = end
		}
		next := last.Next()
		if !next.IsValid() {
			break
		}
		p = netip.PrefixFrom(next, bits)
	}
	return netip.Prefix{}, fmt.Errorf("no /%d is free in %s: give the server a larger --pod-cidr, or delete Nodes that are gone", bits, cluster)
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// prefixes are those of texts that are ranges.
func prefixes(texts []string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

func overlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(p netip.Prefix) bool { return slices.ContainsFunc(b, p.Overlaps) })
}
