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

// tcpLinger2 is TCP_LINGER2 of tcp(7); package syscall has it for Linux, under this name too.
const tcpLinger2 = syscall.TCP_LINGER2

// leaveNothing makes close wait (1 s at most) until the other side has acknowledged our FIN, and then forget the connection
// instead of keeping it in FIN_WAIT2 and TIME_WAIT. The server reads a clean end of file first, and a reset only if it writes after it.
// SO_LINGER alone, as the kubelet sets it (kubernetes #89898), keeps TIME_WAIT, and SO_LINGER 0 makes the server's read fail.
func leaveNothing(_, _ string, raw syscall.RawConn) error {
	var err error
	ctrl := raw.Control(func(fd uintptr) {
		err = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1, Linger: 1})
		if err == nil {
			err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpLinger2, -1)
		}
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
