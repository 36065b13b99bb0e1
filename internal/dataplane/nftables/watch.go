package nftables

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A watch hears what anybody changes in nf_tables of a network namespace, so that a table need not be read again whenever some other
// table changes.
type watch struct {
	fd     int
	buffer []byte
	// heard is the last generation that everything is known of; 0 at first.
	heard uint32
	// touched: somebody else changed a table of ours, or nobody knows.
	touched bool
}

// newWatch hears nothing of the socket's own elements and rules: a large change would drown the rest.
func newWatch(own *socket) (*watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	w := &watch{fd: fd, buffer: make([]byte, 64<<10)}
	err = w.prepare(own)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	return w, nil
}

func (w *watch) prepare(own *socket) error {
	name, err := unix.Getsockname(own.fd)
	if err != nil {
		return err
	}
	port, ok := name.(*unix.SockaddrNetlink)
	if !ok {
		return errors.New("the socket is none of netlink")
	}
	const (
		load, equal, answer = unix.BPF_LD | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
		kindAt, portAt      = 4, 12 // in struct nlmsghdr
		newGeneration       = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	)
	// A filter reads in network order what is in the machine's.
	program := []unix.SockFilter{
		{Code: load | unix.BPF_H, K: kindAt},
		{Code: equal, Jt: 2, K: uint32(swap16(newGeneration))}, // to the second last
		{Code: load | unix.BPF_W, K: portAt},
		{Code: equal, Jt: 1, K: swap32(port.Pid)}, // to the last
		{Code: answer, K: 1 << 30},
		{Code: answer, K: 0},
	}
	if err := unix.SetsockoptSockFprog(w.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return err
	}
	return unix.Bind(w.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

func swap16(n uint16) uint16 {
	b := native32(uint32(n))
	return uint16(b[0])<<8 | uint16(b[1])
}

func swap32(n uint32) uint32 {
	b := native32(n)
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// begin hears everything from here on, and forgets what was before.
func (w *watch) begin() error {
	if err := unix.SetsockoptInt(w.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	w.hear("", "")
	w.touched = false
	return nil
}

// hear takes in what there is, about the tables of these names.
func (w *watch) hear(names ...tableName) {
	for {
		n, _, err := unix.Recvfrom(w.fd, w.buffer, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.ENOBUFS): // some was lost
			w.touched = true
			continue
		case err != nil:
			w.touched = true
			return
		}
		for m := range messages(w.buffer[:n]) {
			w.take(m, names)
		}
	}
}

func (w *watch) take(m received, names []tableName) {
	if m.kind>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.body) < 4 {
		return
	}
	for kind, value := range attrs(m.body[4:]) {
		if m.kind&0xff == unix.NFT_MSG_NEWGEN {
			if n, ok := number(value, 4); ok && kind == unix.NFTA_GEN_ID {
				w.heard = uint32(n)
			}
			continue
		}
		if kind == 1 { // the table's name in every message of nf_tables
			for _, name := range names {
				w.touched = w.touched || text(value) == string(name)
			}
		}
	}
}

func (w *watch) close() error { return unix.Close(w.fd) }
