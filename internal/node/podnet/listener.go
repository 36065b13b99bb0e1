package podnet

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// listener names the process of the node that has a port, as far as /proc tells. It runs on a thread in the node's network namespace.
func listener(f forward) string {
	const unknown = "a process of the node"
	inode := socketInode(f)
	if inode == "" {
		return unknown
	}
	want := "socket:[" + inode + "]"
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return unknown
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err != nil || target != want {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if err != nil {
			return "process " + pid + " of the node"
		}
		return fmt.Sprintf("process %s (pid %s) of the node", strings.TrimSpace(string(name)), pid)
	}
	return unknown
}

// socketInode finds the socket that is bound to the port of f, in a table such as /proc/net/tcp (proc(5)); "" = not found.
func socketInode(f forward) string {
	base, listening := "udp", "07" // 07 = unconnected
	if f.protocol == unix.IPPROTO_TCP {
		base, listening = "tcp", "0A" // LISTEN
	}
	tables := []string{base + "6"} // a socket of IPv6 may hold the port of IPv4 too
	if f.host.Addr().Is4() {
		tables = []string{base, base + "6"}
	}
	for _, table := range tables {
		if inode := findSocket(filepath.Join("/proc/thread-self/net", table), f.host.Port(), listening); inode != "" {
			return inode
		}
	}
	return ""
}

func findSocket(path string, port uint16, state string) string {
	const local, status, inode, columns = 1, 3, 9, 10
	table, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = table.Close() }() // read only
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < columns || fields[status] != state {
			continue
		}
		_, hex, _ := strings.Cut(fields[local], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); err == nil && uint16(n) == port {
			return fields[inode]
		}
	}
	return ""
}
