// Package pages lets go of memory that a process needed only to start: the pages of its own program's file.
//
// The Go runtime looks through its tables once, and packages initialise once; for the whole of endpointd that maps 40 to 90 MB of the
// program's file. Dropped pages stay in the kernel's page cache, shared by all processes, and are mapped again one by one when they are
// needed: what is saved is what the process counts as resident, and page tables.
//
// In: nothing. Out: nothing; it is best effort. It refuses to touch what can be written, which may differ from the file.
// Test it with go test in this folder.
package pages

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Drop lets go of all clean pages of the program's file. It is safe at any time, and costs page faults afterwards.
func Drop() {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		if from, to, ok := droppable(line, program); ok {
			_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, from, to-from, syscall.MADV_DONTNEED)
		}
	}
}

// droppable reads a line of proc_pid_maps(5): range, rights, offset, device, inode, path.
func droppable(line, program string) (from, to uintptr, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 6 || strings.Join(fields[5:], " ") != program || strings.Contains(fields[1], "w") {
		return 0, 0, false
	}
	first, last, _ := strings.Cut(fields[0], "-")
	begin, err1 := strconv.ParseUint(first, 16, 64)
	end, err2 := strconv.ParseUint(last, 16, 64)
	return uintptr(begin), uintptr(end), err1 == nil && err2 == nil && begin < end
}
