package echo

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
)

// trim lets go of the pages of the program's file that were needed to start: the Go runtime looks through its tables once, which for
// the whole of endpointd are over 40 MB. They stay in the page cache, shared by all processes, and come back one by one if they are needed.
// Nothing is lost if it fails.
func trim() {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps") // proc_pid_maps(5)
	if err != nil {
		return
	}
	for line := range bytes.Lines(maps) {
		fields := bytes.Fields(line) // range, rights, offset, device, inode, path
		if len(fields) < 6 || string(bytes.Join(fields[5:], []byte(" "))) != self || bytes.IndexByte(fields[1], 'w') >= 0 {
			continue // what can be written may differ from the file
		}
		from, to, _ := bytes.Cut(fields[0], []byte("-"))
		begin, err1 := strconv.ParseUint(string(from), 16, 64)
		end, err2 := strconv.ParseUint(string(to), 16, 64)
		if err1 == nil && err2 == nil && begin < end {
			_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, uintptr(begin), uintptr(end-begin), syscall.MADV_DONTNEED)
		}
	}
}
