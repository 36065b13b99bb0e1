package prober

import (
	"context"
	"net"
	"syscall"
)

// dial opens a connection for one probe. Nothing of it is reused and nothing is left when it was closed.
func dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1, Control: leaveNothing}
	return d.DialContext(ctx, "tcp", addr)
}

// leaveNothing makes the kernel forget a connection as soon as the other side has acknowledged our FIN, instead of keeping it in
// FIN_WAIT2 and TIME_WAIT: a node that makes 1,000 probes a second would hold 60,000 of those. The server reads a clean end of
// file, and is reset only if it writes after it. SO_LINGER, as the kubelet sets it (kubernetes #89898), would keep TIME_WAIT, and with
// 0 the server's read would fail.
func leaveNothing(_, _ string, raw syscall.RawConn) error {
	var err error
	ctrl := raw.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_LINGER2, -1) // tcp(7)
	})
	if ctrl != nil {
		return ctrl
	}
	return err
}

// bound makes reads and writes of c end with ctx. The function that it returns undoes that.
func bound(ctx context.Context, c net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.SetDeadline(past) })
}
