package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// The ports of DNS and of DNS over TLS (RFC 7858, section 3.1).
const (
	portDNS = 53
	portTLS = 853
)

// An Upstream is a server to ask: over UDP, and TCP where that is too short, or over TLS.
type Upstream struct {
	Addr netip.AddrPort
	TLS  bool
	// ServerName is what its certificate must be for; if it is empty, the certificate must be for the address.
	ServerName string
}

// ParseUpstream reads 10.0.0.53, 10.0.0.53:5353, fd00::53, [fd00::53]:5353, or the same behind tls://, then perhaps with #name at the end: the name in
// its certificate.
func ParseUpstream(text string) (Upstream, error) {
	rest, isTLS := strings.CutPrefix(text, "tls://")
	if scheme, _, found := strings.Cut(rest, "://"); found {
		return Upstream{}, fmt.Errorf("upstream %q: %s:// is not known; write an address for UDP and TCP, or tls://address#name", text, scheme)
	}
	rest, name, hasName := strings.Cut(rest, "#")
	switch {
	case hasName && !isTLS:
		return Upstream{}, fmt.Errorf("upstream %q: a name behind # is for certificates; write tls:// before it", text)
	case hasName && (name == "" || strings.ContainsAny(name, " /#:")):
		return Upstream{}, fmt.Errorf("upstream %q: want the name in its certificate behind #, as in tls://1.1.1.1#cloudflare-dns.com", text)
	}
	port := uint16(portDNS)
	if isTLS {
		port = portTLS
	}
	addr, err := parseAddr(rest, port)
	if err != nil {
		return Upstream{}, fmt.Errorf("upstream %q: %w", text, err)
	}
	return Upstream{Addr: addr, TLS: isTLS, ServerName: name}, nil
}

func parseAddr(text string, port uint16) (netip.AddrPort, error) {
	full, err := netip.ParseAddrPort(text)
	if err != nil {
		inner, isBracketed := strings.CutPrefix(text, "[")
		if isBracketed {
			inner, isBracketed = strings.CutSuffix(inner, "]")
		}
		addr, err := netip.ParseAddr(inner)
		if err != nil || isBracketed && !addr.Is6() {
			return netip.AddrPort{}, errors.New("want an IP address, perhaps with :port; a host name would need DNS to find it")
		}
		full = netip.AddrPortFrom(addr, port)
	}
	if addr := full.Addr(); addr.IsUnspecified() || addr.IsMulticast() {
		return netip.AddrPort{}, fmt.Errorf("%s is no address of a server", addr)
	}
	if full.Port() == 0 {
		return netip.AddrPort{}, errors.New("port 0 is no port; leave it out for the usual one")
	}
	return netip.AddrPortFrom(full.Addr().Unmap(), full.Port()), nil
}

// String is what ParseUpstream reads, ports written out.
func (u Upstream) String() string {
	if !u.TLS {
		return u.Addr.String()
	}
	if u.ServerName == "" {
		return "tls://" + u.Addr.String()
	}
	return "tls://" + u.Addr.String() + "#" + u.ServerName
}
