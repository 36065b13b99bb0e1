package model

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// parseAddr reads an IP address as Kubernetes does: also with zeros in front of an IPv4 address's numbers, which are decimal all the same, and
// an IPv4 address in IPv6 clothes is an IPv4 address (k8s.io/utils/net ParseIPSloppy).
func parseAddr(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		parts := strings.Split(text, ".")
		if len(parts) != 4 {
			return netip.Addr{}, fmt.Errorf("%q is not an IP address", text)
		}
		for i, part := range parts {
			parts[i] = strings.TrimLeft(part, "0")
			if parts[i] == "" && part != "" {
				parts[i] = "0"
			}
		}
		if addr, err = netip.ParseAddr(strings.Join(parts, ".")); err != nil {
			return netip.Addr{}, fmt.Errorf("%q is not an IP address", text)
		}
	}
	if addr.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q has a zone, which means something on one machine only", text)
	}
	return addr.Unmap(), nil
}

// endpointAddr reads the address of an endpoint, of which the API refuses the same ones.
func endpointAddr(text string, ipv6 bool) (netip.Addr, error) {
	addr, err := parseAddr(text)
	switch {
	case err != nil:
		return addr, err
	case addr.Is6() != ipv6:
		return addr, fmt.Errorf("%q is not of the slice's address type", text)
	}
	return addr, usable(addr)
}

// usable says what is wrong with an address that packets are to be sent to.
func usable(addr netip.Addr) error {
	switch {
	case addr.IsUnspecified():
		return fmt.Errorf("%q is no address of anybody", addr)
	case addr.IsLoopback():
		return fmt.Errorf("%q is another machine on each machine", addr)
	case addr.IsLinkLocalUnicast(), addr.IsMulticast():
		return fmt.Errorf("%q cannot be reached from everywhere", addr)
	case addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%q is everybody's address", addr)
	}
	return nil
}

// parseRanges reads source ranges and splits them by family. A family without any, or with one of zero bits, is not restricted.
// Where a range cannot be read, a family that is left with none admits nobody: a typing error must not open a door.
func parseRanges(texts []string) (v4, v6 []netip.Prefix, err error) {
	for _, text := range texts {
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		prefix, bad := parsePrefix(text)
		switch {
		case bad != nil:
			err = errors.Join(err, bad)
		case prefix.Addr().Is4():
			v4 = append(v4, prefix)
		default:
			v6 = append(v6, prefix)
		}
	}
	v4, v6 = tidyRanges(v4), tidyRanges(v6)
	if err != nil {
		if v4 == nil {
			v4 = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 32)}
		}
		if v6 == nil {
			v6 = []netip.Prefix{netip.PrefixFrom(netip.IPv6Unspecified(), 128)}
		}
	}
	return v4, v6, err
}

// tidyRanges returns nil for none, and an empty slice for "everybody".
func tidyRanges(ranges []netip.Prefix) []netip.Prefix {
	for _, r := range ranges {
		if r.Bits() == 0 {
			return []netip.Prefix{}
		}
	}
	return sortPrefixes(ranges)
}

func parsePrefix(text string) (netip.Prefix, error) {
	host, bits, ok := strings.Cut(text, "/")
	addr, err := parseAddr(host)
	if !ok || err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a range of addresses such as 10.0.0.0/24", text)
	}
	prefix, err := netip.ParsePrefix(addr.String() + "/" + bits)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a range of addresses such as 10.0.0.0/24", text)
	}
	return prefix.Masked(), nil
}

// sortPrefixes returns a sorted copy without what is invalid or there twice.
func sortPrefixes(prefixes []netip.Prefix) []netip.Prefix {
	var sorted []netip.Prefix
	for _, p := range prefixes {
		if p.IsValid() {
			sorted = append(sorted, p.Masked())
		}
	}
	slices.SortFunc(sorted, netip.Prefix.Compare)
	return slices.Compact(sorted)
}

// sortAddrs returns a sorted copy without what is invalid or there twice.
func sortAddrs(addrs []netip.Addr) []netip.Addr {
	var sorted []netip.Addr
	for _, a := range addrs {
		if a.IsValid() {
			sorted = append(sorted, a.Unmap().WithZone(""))
		}
	}
	slices.SortFunc(sorted, netip.Addr.Compare)
	return slices.Compact(sorted)
}
