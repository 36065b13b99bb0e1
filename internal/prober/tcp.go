package prober

import (
	"context"
	"net/netip"
)

// TCP succeeds if a connection can be opened.
func TCP(addr netip.AddrPort) Probe { return tcp(addr.String()) }

// tcp is TCP for an address that may hold a host name.
func tcp(addr string) Probe {
	return func(ctx context.Context) error {
		conn, err := dial(ctx, addr)
		if err != nil {
			return &Failure{err.Error()}
		}
		_ = conn.Close() // it has been opened, which is all that was asked
		return nil
	}
}
