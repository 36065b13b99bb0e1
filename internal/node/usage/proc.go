package usage

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/stream"
)

// tick is the unit of CPU times in /proc: USER_HZ, the same on every machine that Go runs on.
const tick = 10 * time.Millisecond

// process is a line of /proc/PID/stat, see proc_pid_stat(5).
type process struct {
	parent, session int
	own             time.Duration // of its threads, in ticks
	children        time.Duration // of its children that have ended and been waited for
}

// processes has all of the machine: PID → process.
type processes map[int]process

func readProcesses(proc string) processes {
	all := processes{}
	folder, err := os.Open(proc)
	if err != nil {
		return all
	}
	defer folder.Close()               //nolint:errcheck // read only
	names, _ := folder.Readdirnames(0) // what it read before an error, it returns
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if p, err := readProcess(filepath.Join(proc, name, "stat")); err == nil { // else it has ended
				all[pid] = p
			}
		}
	}
	return all
}

func readProcess(path string) (process, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return process{}, err
	}
	text := string(data)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // from the third field on: the second, the name, may hold anything
	if len(fields) < 15 {
		return process{}, fmt.Errorf("%s: %d fields", path, len(fields))
	}
	var numbers [15]int64
	for _, i := range []int{1, 3, 11, 12, 13, 14} {
		if numbers[i], err = strconv.ParseInt(fields[i], 10, 64); err != nil {
			return process{}, fmt.Errorf("%s: field %d: %w", path, i+3, err)
		}
	}
	return process{
		parent: int(numbers[1]), session: int(numbers[3]),
		own: time.Duration(numbers[11]+numbers[12]) * tick, children: time.Duration(numbers[13]+numbers[14]) * tick,
	}, nil
}

// of lists the processes of the container whose first one is given: its descendants and the session that it leads. In a PID
// namespace of its own, orphans become its children; in a shared one, they keep the session.
func (all processes) of(first int) []int {
	if _, ok := all[first]; !ok {
		return nil
	}
	var members []int
	for pid, p := range all {
		if p.session == first || all.descends(pid, first) {
			members = append(members, pid)
		}
	}
	slices.Sort(members)
	return members
}

func (all processes) descends(pid, from int) bool {
	for steps := 0; steps < len(all); steps++ { // the processes were not read at one moment: no circle may hold us
		if pid == from {
			return true
		}
		p, ok := all[pid]
		if !ok {
			return false
		}
		pid = p.parent
	}
	return false
}

// cpu is what a process has used, with its ended children. The kernel's clock of a process is exact where /proc counts ticks.
func (p process) cpu(pid int) time.Duration {
	const scheduled = 2 // CPUCLOCK_SCHED; see clock_getcpuclockid(3) for how a PID becomes a clock
	var exact unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &exact); err == nil {
		return time.Duration(exact.Nano()) + p.children
	}
	return p.own + p.children
}

// memory is the anonymous and shared memory of processes.
func (m *Meter) memory(pids []int) (bytes uint64) {
	for _, pid := range pids {
		data, err := os.ReadFile(filepath.Join(m.o.Proc, strconv.Itoa(pid), "status"))
		if err != nil {
			continue // it has ended
		}
		bytes += kilobytes(string(data), "RssAnon:") + kilobytes(string(data), "RssShmem:")
	}
	return bytes
}

// kilobytes finds "key  number kB" in a file of /proc, and gives bytes; what is not there is 0, as of a process that has ended.
func kilobytes(text, key string) uint64 {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, key); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64) // 0 if the kernel were to write anything else
			return n << 10
		}
	}
	return 0
}

// machine is the node as a whole, as a kubelet has it: all CPU time that is neither idle nor stolen, and the memory that is neither
// free nor file pages that nobody used lately.
func (m *Meter) machine() (stream.Usage, error) {
	u := stream.Usage{At: time.Now()}
	data, err := os.ReadFile(filepath.Join(m.o.Proc, "stat"))
	if err != nil {
		return u, err
	}
	found := false
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) > 7 && fields[0] == "cpu":
			for _, i := range []int{1, 2, 3, 6, 7} { // user nice system, irq softirq; guests' time is in user's
				ticks, err := strconv.ParseInt(fields[i], 10, 64)
				if err != nil {
					return u, fmt.Errorf("stat: field %d: %w", i, err)
				}
				u.CPU += time.Duration(ticks) * tick
			}
			found = true
		case len(fields) == 2 && fields[0] == "btime":
			seconds, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return u, fmt.Errorf("stat: btime: %w", err)
			}
			u.Since = time.Unix(seconds, 0)
		}
	}
	if !found {
		return u, fmt.Errorf("stat: cpu: %w", errNoKey)
	}
	data, err = os.ReadFile(filepath.Join(m.o.Proc, "meminfo"))
	if err != nil {
		return u, err
	}
	text := string(data)
	total, spare := kilobytes(text, "MemTotal:"), kilobytes(text, "MemFree:")+kilobytes(text, "Inactive(file):")
	u.WorkingSet = total - min(spare, total)
	return u, nil
}
