package process

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// killSessions ends what a pod in the node's process namespace left, where there is no cgroup to do it. Containers' first
// processes begin sessions; those are known by number, and the number is not given away while a process is in the session.
func (p *pod) killSessions(ctx context.Context) error {
	p.mu.Lock()
	leaders := maps.Clone(p.orphans) // PID → when the container started
	p.mu.Unlock()
	if p.bundle.BootID != bootID() {
		return nil // they ended with the machine, and their numbers are others' now
	}
	for pid, started := range leaders {
		if born, err := startTime(pid); err == nil && (born.Before(started.Add(-clockSlack)) || born.After(started.Add(clockSlack))) {
			delete(leaders, pid) // the number was given away
		}
	}
	if len(leaders) == 0 {
		return nil
	}
	for {
		found, err := killMembers(leaders)
		if err != nil || !found {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes in the node's namespace go on: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

func killMembers(leaders map[int]time.Time) (found bool, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		fields, err := statFields(pid)
		if err != nil || fields[0] == "Z" {
			continue
		}
		session, err := strconv.Atoi(fields[3])
		if err != nil {
			continue
		}
		if _, ours := leaders[session]; !ours {
			continue
		}
		found = true
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return found, fmt.Errorf("end process %d: %w", pid, err)
		}
	}
	return found, nil
}

// clockSlack covers the resolution of process start times, and a clock that was set a little.
const clockSlack = 5 * time.Second

// statFields gives what follows the name in proc_pid_stat(5): state, parent, group, session; 19th the start.
func statFields(pid int) ([]string, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil, err
	}
	text := string(stat)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // the name may hold anything
	if len(fields) < 20 {
		return nil, errors.New("short stat")
	}
	return fields, nil
}

// startTime is when a process began.
func startTime(pid int) (time.Time, error) {
	fields, err := statFields(pid)
	if err != nil {
		return time.Time{}, err
	}
	const ticksPerSecond = 100 // USER_HZ, the same on every machine that Go runs on
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	var uptime unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &uptime); err != nil {
		return time.Time{}, err
	}
	age := time.Duration(uptime.Nano()) - time.Duration(ticks)*time.Second/ticksPerSecond
	return time.Now().Add(-age), nil
}

// bootID changes with each start of the machine.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}
