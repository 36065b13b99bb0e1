// Package cgroup puts pods and containers into groups of cgroup v2: limits, and ending all processes of a group at once.
//
// In: paths of groups, and container.Resources. Out: files of the cgroup2 file system.
//
// Invariants: processes are in leaves only (the rule "no internal processes" of the kernel's cgroup-v2 document), so controllers can
// be turned on above them. A controller that is not there is no error: its limit does not hold, and Controllers says so.
//
// What it refuses: cgroup v1. How to test: go test ./internal/node/process; this machine's groups are used where they can be made.
package cgroup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
)

// Find gives the mount point of cgroup v2, alone or beside v1 ("hybrid").
func Find() (mountpoint string, ok bool) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false
	}
	return find(data)
}

// find reads proc_pid_mountinfo(5).
func find(mountinfo []byte) (string, bool) {
	lines := bufio.NewScanner(bytes.NewReader(mountinfo))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if ok && strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return unescape(fields[4]), true
		}
	}
	return "", false
}

func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// wanted are the controllers that Limit uses.
func wanted() []string { return []string{"cpu", "memory", "pids"} }

// Make makes a group and those above it. One that is there already is no error.
func Make(group string) error { return os.MkdirAll(group, 0o755) }

// Delegate turns the controllers on for the groups below, and says which are missing there.
func Delegate(group string) (missing []string, err error) {
	data, err := os.ReadFile(path.Join(group, "cgroup.controllers"))
	if err != nil {
		return wanted(), err
	}
	available := strings.Fields(string(data))
	var errs []error
	for _, name := range wanted() {
		if !slices.Contains(available, name) {
			missing = append(missing, name)
			continue
		}
		if err := write(group, "cgroup.subtree_control", "+"+name); err != nil {
			missing = append(missing, name)
			errs = append(errs, err)
		}
	}
	return missing, errors.Join(errs...)
}

// Limit sets what r asks for, as far as the group has the controllers.
func Limit(group string, r container.Resources) error {
	var errs []error
	set := func(file, value string) {
		if err := write(group, file, value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if r.CPUMillis > 0 {
		const period = 100_000 // µs, the kernel's default
		set("cpu.max", fmt.Sprintf("%d %d", max(r.CPUMillis*period/1000, 1000), period))
	}
	if r.CPUShares > 0 {
		// From cpu.shares 2…262144 to cpu.weight 1…10000, as KEP-2254 has it.
		shares := min(max(r.CPUShares, 2), 262144)
		set("cpu.weight", strconv.FormatInt(1+(shares-2)*9999/262142, 10))
	}
	if r.MemoryBytes > 0 {
		set("memory.max", strconv.FormatInt(r.MemoryBytes, 10))
	}
	if r.PIDs > 0 {
		set("pids.max", strconv.FormatInt(r.PIDs, 10))
	}
	return errors.Join(errs...)
}

// OOMKilled says whether the kernel has killed a process of the group for memory.
func OOMKilled(group string) bool {
	data, err := os.ReadFile(path.Join(group, "memory.events"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			return n != "0"
		}
	}
	return false
}

// Kill sends SIGKILL to all processes of the group and below, none of which can escape it by forking (Linux 5.14).
func Kill(group string) error { return write(group, "cgroup.kill", "1") }

// Remove waits until the groups are empty and removes them. A group that is not there is no error.
func Remove(ctx context.Context, group string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := removeAll(group)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w: processes are left in it", group, ctx.Err())
		case <-time.After(wait):
		}
	}
}

func removeAll(group string) error {
	entries, err := os.ReadDir(group)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeAll(path.Join(group, entry.Name())); err != nil {
				return err
			}
		}
	}
	err = unix.Rmdir(group)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func write(group, file, value string) error {
	f, err := os.OpenFile(path.Join(group, file), os.O_WRONLY, 0) // no O_CREATE: the kernel makes these files
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
