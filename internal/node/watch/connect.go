package watch

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
)

// How soon the agent gives up on a connection over which nothing comes back, and makes a new one. A TCP connection
// that has met a cut link would be silent for long after its end: the kernel doubles its pause with every packet lost.
const (
	dialTimeout    = 900 * time.Millisecond // less than the second after which the kernel sends its first packet again
	keepAliveIdle  = 2 * time.Second
	keepAlivePause = time.Second
	keepAliveCount = 2
	silent         = 3 * time.Second // what was sent and not acknowledged for so long ends the connection
)

// Connection is a copy of config for a client of the agent, with connections of its own and without a limit of
// requests. Each request has its own connection (HTTP/1.1): a request that hangs holds up no other, one that
// is cancelled takes its connection with it, and so does a cut link after three seconds.
// HTTP/2 shares one connection, and would find out after 45 s.
//
// Each call gives separate connections: call it once for the client of the Lease and once for everything else.
func Connection(config *rest.Config) *rest.Config {
	c := rest.CopyConfig(config)
	c.NextProtos = []string{"http/1.1"}
	c.QPS, c.RateLimiter = -1, nil
	dialer := &net.Dialer{
		Timeout: dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: keepAliveIdle, Interval: keepAlivePause, Count: keepAliveCount,
		},
		ControlContext: func(_ context.Context, _, _ string, raw syscall.RawConn) error {
			var failed error
			err := raw.Control(func(fd uintptr) {
				failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silent.Milliseconds()))
			})
			if err == nil {
				err = failed
			}
			if err != nil {
				return fmt.Errorf("limit the silence of a connection: %w", err)
			}
			return nil
		},
	}
	c.Dial = dialer.DialContext
	return c
}
