package launch

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// capabilities are the kernel's, in the order of their numbers (include/uapi/linux/capability.h).
const capabilities = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE " +
	"NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE " +
	"SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL " +
	"SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"

// capabilityMask gives the bits of the names.
func capabilityMask(names []string) (uint64, error) {
	all := strings.Fields(capabilities)
	var mask uint64
next:
	for _, name := range names {
		short := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		for bit, known := range all {
			if short == known {
				mask |= 1 << bit
				continue next
			}
		}
		return 0, &Failure{Code: codeOther, Text: fmt.Sprintf("unknown capability %q: use a name such as NET_BIND_SERVICE", name)}
	}
	return mask, nil
}

// setRights takes away what the container must not have, and becomes its user. As with containerd, root keeps Capabilities
// when it executes a program, and another user has none but may gain them from a file, up to these.
func setRights(spec *Spec) error {
	c := &spec.Container
	mask, err := capabilityMask(c.Capabilities)
	if err != nil {
		return err
	}
	if c.Privileged {
		mask = ^uint64(0)
	}
	last := lastCapability()
	for bit := 0; bit <= last; bit++ {
		if mask&(1<<bit) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(bit), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", bit, err)
		}
	}
	if err := setUser(spec); err != nil {
		return err
	}
	if err := limitCapabilities(mask); err != nil {
		return err
	}
	if spec.Leashed {
		// After the change of user, which clears it.
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return fmt.Errorf("set parent death signal: %w", err)
		}
	}
	if c.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	return nil
}

// setUser uses bare system calls: those of package syscall change every thread, and this one alone lives on.
func setUser(spec *Spec) error {
	u := spec.Container.User
	if len(u.Groups) > 0 {
		_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(u.Groups)), uintptr(unsafe.Pointer(&u.Groups[0])), 0)
		if errno != 0 {
			return &Failure{Code: codeOther, Text: fmt.Sprintf(
				"set supplementary groups %v: %v: %s", u.Groups, errno, mapHint("fsGroup and supplementalGroups"))}
		}
	} else {
		// A user namespace without privileges denies it; then there is nothing to be dropped that counts.
		_, _, _ = unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
	}
	gid, uid := uintptr(u.GID), uintptr(u.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return &Failure{Code: codeOther, Text: fmt.Sprintf("become group %d: %s: %s", u.GID, unmapped(errno), mapHint("runAsGroup"))}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return &Failure{Code: codeOther, Text: fmt.Sprintf("become user %d: %s: %s", u.UID, unmapped(errno), mapHint("runAsUser"))}
	}
	return nil
}

func unmapped(errno unix.Errno) string {
	if errno == unix.EINVAL {
		return "it is not mapped in this user namespace"
	}
	return errno.Error()
}

func mapHint(field string) string {
	return "run the node as root, or leave out " + field
}

// limitCapabilities leaves at most the ones in mask to this thread, none of them inheritable or ambient.
func limitCapabilities(mask uint64) error {
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) // Linux 4.3
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for i := range data {
		half := uint32(mask >> (32 * i))
		data[i].Permitted &= half
		data[i].Effective &= half
		data[i].Inheritable = 0
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}

// lastCapability asks the kernel, which may be newer or older than the table.
func lastCapability() int {
	data, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err == nil {
		if last, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
			return last
		}
	}
	return len(strings.Fields(capabilities)) - 1
}

// sigaction is the kernel's struct on 64-bit Linux, of which only the handler matters here.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

const lastSignal = 64

// resetSignals undoes what came down from whoever started the agent (nohup ignores SIGHUP): signals that are ignored or
// blocked stay so across exec. Handlers of the Go runtime end with exec by themselves.
func resetSignals() {
	const sigIgn = 1
	for sig := uintptr(1); sig <= lastSignal; sig++ {
		var old sigaction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&old)), 8, 0, 0)
		if errno == 0 && old.handler == sigIgn {
			var fresh sigaction
			_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&fresh)), 0, 8, 0, 0)
		}
	}
	var none uint64
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
}
