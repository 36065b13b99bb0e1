package sandbox

import "golang.org/x/sys/unix"

// peer is the pid of the inside, as this process sees it; 0 when it cannot.
func (c *Client) peer() int {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) { // 0 says it all
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
