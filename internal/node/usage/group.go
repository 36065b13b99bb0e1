package usage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// groupCPU reads what all processes of a group have used, those that have ended included.
func groupCPU(group string) (time.Duration, error) {
	micros, err := keyed(filepath.Join(group, "cpu.stat"), "usage_usec")
	return time.Duration(micros) * time.Microsecond, err
}

// groupMemory is the working set as a kubelet has it: what is charged, without file pages that nobody used lately.
func groupMemory(group string) (uint64, error) {
	data, err := os.ReadFile(filepath.Join(group, "memory.current"))
	if err != nil {
		return 0, err
	}
	current, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("memory.current of %s: %w", group, err)
	}
	inactive, err := keyed(filepath.Join(group, "memory.stat"), "inactive_file")
	return current - min(inactive, current), err
}

func groupMembers(group string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var members []int
	for field := range strings.FieldsSeq(string(data)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("cgroup.procs of %s: %w", group, err)
		}
		if pid > 0 { // 0 = of a PID namespace that cannot be seen from here
			members = append(members, pid)
		}
	}
	return members, nil
}

var errNoKey = errors.New("no such line")

// keyed reads the number after a key in a file of lines "key number".
func keyed(path, key string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, " "); ok && name == key {
			return strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s: %s: %w", path, key, errNoKey)
}
