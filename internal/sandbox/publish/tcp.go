package publish

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// dialTimeout is for one endpoint, maxTries how many of them a connection tries.
	dialTimeout = 2 * time.Second
	maxTries    = 3
	// acceptPause is after an error that may pass, such as no descriptors left.
	acceptPause = 50 * time.Millisecond
)

// serveTCP owns the listener.
func (o *opened) serveTCP(ctx context.Context, l net.Listener) {
	defer l.Close() //nolint:errcheck // nothing to lose
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		select { // a full house lets connections wait in the kernel
		case o.publisher.conns <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := l.Accept()
		if err != nil {
			<-o.publisher.conns
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			o.publisher.o.Logger.Warn("accept on a node port", "address", l.Addr().String(), "err", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		o.work.Go(func() {
			defer func() { <-o.publisher.conns }()
			o.forward(ctx, conn.(*net.TCPConn))
		})
	}
}

// forward owns the client's connection. It ends with both directions, or with ctx.
func (o *opened) forward(ctx context.Context, client *net.TCPConn) {
	defer client.Close() //nolint:errcheck // nothing to lose
	server := o.dial(ctx)
	if server == nil {
		_ = client.SetLinger(0) // refused: a reset, as from a port where nobody listens
		return
	}
	defer server.Close() //nolint:errcheck // as above
	defer context.AfterFunc(ctx, func() { _, _ = client.Close(), server.Close() })()
	var both sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{client, server}, {server, client}} {
		both.Go(func() {
			from, to := way[0], way[1]
			if _, err := io.Copy(to, from); err != nil { // in the kernel, by splice(2)
				// Broken: the other side is to see that, not a clean end.
				_, _ = from.SetLinger(0), to.SetLinger(0)
				_, _ = from.Close(), to.Close()
				return
			}
			_ = to.CloseWrite() // it may be gone
		})
	}
	both.Wait()
}

// dial returns nil when no endpoint takes the connection.
func (o *opened) dial(ctx context.Context) *net.TCPConn {
	for i, endpoint := range o.next() {
		if i == maxTries {
			break
		}
		if conn := dialOne(ctx, endpoint); conn != nil {
			return conn
		}
	}
	return nil
}

func dialOne(ctx context.Context, endpoint netip.AddrPort) *net.TCPConn {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "tcp", endpoint.String())
	if err != nil {
		return nil
	}
	return conn.(*net.TCPConn)
}
