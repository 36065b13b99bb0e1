package app

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"syscall"

	"github.com/endpointd/endpointd/internal/apiserver/pki"
)

func listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	step := "correct --listen"
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		step = "another program has this port: stop it, or choose another one with --listen"
	case errors.Is(err, fs.ErrPermission):
		step = "ports below 1024 need root: choose a higher one with --listen"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		step = "no interface of this machine has this address: choose one of its own with --listen"
	}
	return nil, fmt.Errorf("%w: %s", err, step)
}

// clientURL is how a client on this machine reaches the listener.
func clientURL(bound netip.AddrPort) string {
	ip := bound.Addr().Unmap()
	if ip.IsUnspecified() {
		// Go's wildcard listener takes both families; a client of either knows this address.
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return (&url.URL{Scheme: "https", Host: net.JoinHostPort(ip.String(), strconv.Itoa(int(bound.Port())))}).String()
}

func boundAddress(l net.Listener) netip.AddrPort {
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// certNames are all names and addresses under which clients may reach the server: from this machine, by the addresses
// it listens on, and from pods by the kubernetes Service.
func certNames(bound []netip.Addr, cidrs []netip.Prefix) (pki.Options, error) {
	o := pki.Options{
		Hosts: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		IPs:   []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()},
	}
	if host, err := os.Hostname(); err == nil && host != "" {
		o.Hosts = append(o.Hosts, host)
	}
	for _, cidr := range cidrs {
		// The first address is the kubernetes Service's.
		o.IPs = append(o.IPs, cidr.Masked().Addr().Next())
	}
	o.IPs = append(o.IPs, slices.DeleteFunc(slices.Clone(bound), netip.Addr.IsUnspecified)...)
	if !slices.ContainsFunc(bound, netip.Addr.IsUnspecified) {
		return o, nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return o, fmt.Errorf("addresses of this machine: %w", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && !ip.Unmap().IsLinkLocalUnicast() {
				o.IPs = append(o.IPs, ip)
			}
		}
	}
	return o, nil
}
