package shim

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// restAfter is how long a shim must have been without requests to be trimmed: longer than the pause between two probes, so that
// none pays for it.
const restAfter = 3 * time.Second

// trim gives back what was needed for starts and is not for waiting: the pages of the program that were read. They stay in the page
// cache, where all pods and the agent share them, and are mapped again when they are needed.
func trim() {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	program, err := os.Readlink(selfExe)
	if err != nil {
		return
	}
	program = strings.TrimSuffix(program, " (deleted)") // after an upgrade
	for line := range strings.Lines(string(maps)) {
		// proc_pid_maps(5): range, permissions, offset, device, inode, path.
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[5] != program || strings.Contains(fields[1], "w") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil {
			_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), unix.MADV_DONTNEED)
		}
	}
}
