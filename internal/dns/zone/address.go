package zone

import "net/netip"

// AppendDashed appends an address as the label that it is in names of pods, and of endpoints without a hostname: dots and colons are dashes. As
// CoreDNS has it, what would end in a dash ends in 0.
func AppendDashed(dst []byte, addr netip.Addr) []byte {
	start := len(dst)
	dst = addr.WithZone("").AppendTo(dst)
	for i, c := range dst[start:] {
		if c == '.' || c == ':' {
			dst[start+i] = '-'
		}
	}
	if dst[len(dst)-1] == '-' {
		dst = append(dst, '0')
	}
	return dst
}

// parseDashed reads an address that is written so, in any form that it may have: 1-2-3-4, 2001-db8--1. It is written by hand because the
// parser of netip allocates for what is none.
func parseDashed(label []byte) (netip.Addr, bool) {
	if addr, ok := parseDecimals(label); ok {
		return addr, true
	}
	return parseHex(label)
}

func parseDecimals(label []byte) (netip.Addr, bool) {
	var octets [4]byte
	for i := range octets {
		if i > 0 {
			if len(label) == 0 || label[0] != '-' {
				return netip.Addr{}, false
			}
			label = label[1:]
		}
		n := 0
		for n < len(label) && label[n] != '-' {
			n++
		}
		octet, ok := decimal(label[:n])
		if !ok {
			return netip.Addr{}, false
		}
		octets[i], label = octet, label[n:]
	}
	return netip.AddrFrom4(octets), len(label) == 0
}

// decimal reads an octet without leading zeros.
func decimal(text []byte) (byte, bool) {
	if len(text) == 0 || len(text) > 3 || len(text) > 1 && text[0] == '0' {
		return 0, false
	}
	n := 0
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return byte(n), n < 256
}

// parseHex reads an IPv6 address (RFC 4291, section 2.2, without the form that ends in dots).
func parseHex(label []byte) (netip.Addr, bool) {
	var octets [16]byte
	at, gap := 0, -1 // gap is where :: is
	if len(label) > 1 && label[0] == '-' && label[1] == '-' {
		label, gap = label[2:], 0
	}
	for len(label) > 0 {
		group, n := 0, 0
		for ; n < len(label) && n < 4; n++ {
			digit, ok := nibble(label[n])
			if !ok {
				break
			}
			group = group<<4 | int(digit)
		}
		if n == 0 || at == len(octets) {
			return netip.Addr{}, false
		}
		octets[at], octets[at+1] = byte(group>>8), byte(group)
		at += 2
		if label = label[n:]; len(label) == 0 {
			break
		}
		if label[0] != '-' || len(label) == 1 {
			return netip.Addr{}, false
		}
		if label = label[1:]; label[0] == '-' {
			if gap >= 0 {
				return netip.Addr{}, false
			}
			label, gap = label[1:], at
		}
	}
	switch {
	case gap < 0 && at < len(octets), gap >= 0 && at == len(octets):
		return netip.Addr{}, false
	case gap >= 0:
		moved := len(octets) - at
		copy(octets[gap+moved:], octets[gap:at])
		clear(octets[gap : gap+moved])
	}
	return netip.AddrFrom16(octets), true
}

func nibble(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
