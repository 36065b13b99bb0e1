package ebpf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane"
)

// minKernel has all that is needed: links to cgroups and storage of sockets in sock_diag (5.7), getpeername (5.8), the
// end of sockets (5.9), and memory of maps that counts for the
// cgroup and not for RLIMIT_MEMLOCK (5.11).
const minKernel = "5.11"

// Supported returns nil if [New] and Sync would work with these Options; Logger and Namespaces are not needed. Otherwise it returns an error
// that is [dataplane.ErrNotSupported] and says in one line what is missing. It leaves nothing behind, and no client notices.
func Supported(_ context.Context, o Options) error {
	if err := foldersUsable(o); err != nil {
		return err
	}
	spec, err := loadProgram()
	if err != nil {
		return fmt.Errorf("ebpf: read the compiled programs: %w", err)
	}
	for _, m := range spec.Maps {
		if m.Type == ebpf.Hash || m.Type == ebpf.LRUHash {
			m.MaxEntries = 1
		}
	}
	programs := &programPrograms{}
	if err := spec.LoadAndAssign(programs, nil); err != nil {
		return unsupported("BPF programs at cgroups", err)
	}
	defer func() { _ = programs.Close() }()
	all, err := hooks(programs)
	if err != nil {
		return fmt.Errorf("ebpf: %w", err)
	}
	for _, h := range all { // their maps are empty: everything passes
		l, err := link.AttachCgroup(link.CgroupOptions{Path: o.Cgroups[0], Attach: h.attach, Program: h.program})
		if err == nil {
			err = l.Close()
		}
		if err != nil {
			return unsupported("BPF program "+h.name+" at cgroup "+o.Cgroups[0], err)
		}
	}
	return nil
}

// foldersUsable says what is wrong with the folders of the Options.
func foldersUsable(o Options) error {
	if len(o.Cgroups) == 0 {
		return &dataplane.UnsupportedError{Feature: "eBPF without a cgroup of version 2 for the clients"}
	}
	for _, dir := range o.Cgroups {
		if err := onFilesystem(dir, unix.CGROUP2_SUPER_MAGIC); err != nil {
			return &dataplane.UnsupportedError{Feature: "cgroup version 2 at " + dir, MinKernel: "4.5", Why: err}
		}
	}
	if err := pinsExist(o.Pins); err != nil {
		return &dataplane.UnsupportedError{Feature: "bpffs for pins at " + o.Pins, MinKernel: "4.4", Why: err}
	}
	return nil
}

// unsupported tells a machine that cannot from a machine that may not, and from everything else.
func unsupported(feature string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		if inUserNamespace() {
			feature += " in a user namespace"
		} else {
			feature += " without CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN"
		}
		return &dataplane.UnsupportedError{Feature: feature, Why: err}
	case errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS):
		return &dataplane.UnsupportedError{Feature: feature, MinKernel: minKernel, Why: err}
	default:
		return fmt.Errorf("ebpf: %s: %w", feature, err)
	}
}

// inUserNamespace says whether root here is somebody else on the machine.
func inUserNamespace() bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(ids)), " ") != "0 0 4294967295"
}

// OwnCgroup is the path of this process's cgroup of version 2, as its mount namespace sees it, and root where that file system is mounted. It's an
// [dataplane.ErrNotSupported] if none is mounted, or if the process is outside of what is.
func OwnCgroup() (own, root string, err error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", "", fmt.Errorf("find the cgroup file system: %w", err)
	}
	defer func() { _ = mounts.Close() }()
	membership, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", "", fmt.Errorf("find the cgroup of this process: %w", err)
	}
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		top, point, ok := cgroupMount(lines.Text())
		if !ok {
			continue
		}
		for line := range strings.Lines(string(membership)) {
			path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
			if !ok {
				continue
			}
			below, err := filepath.Rel(top, path)
			if err == nil && below != ".." && !strings.HasPrefix(below, "../") {
				return filepath.Join(point, below), point, nil
			}
		}
	}
	if err := lines.Err(); err != nil {
		return "", "", fmt.Errorf("find the cgroup file system: %w", err)
	}
	return "", "", &dataplane.UnsupportedError{Feature: "eBPF without a mounted cgroup file system of version 2", MinKernel: "4.5"}
}

// cgroupMount reads a line of mountinfo, see proc_pid_mountinfo(5). top is which folder of the file system is mounted.
func cgroupMount(line string) (top, point string, ok bool) {
	before, after, found := strings.Cut(line, " - ")
	fields := strings.Fields(before)
	if !found || len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
		return "", "", false
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	return unescape.Replace(fields[3]), unescape.Replace(fields[4]), true
}

// netnsCookie is the kernel's number of this thread's network namespace, which is never used again for another. Before Linux 5.14 nobody can
// know it; 0 is none.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look at the network namespace: %w", err)
	}
	return cookie, nil
}
