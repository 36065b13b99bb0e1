package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopGrace is how long a child may take to end on SIGTERM.
const stopGrace = 20 * time.Second

// process is a child of ours.
type process struct {
	name    string
	cmd     *exec.Cmd
	log     *os.File
	started time.Time
	heard   func(string)   // called with each line; may be nil
	until   string         // how the line begins that says that it is ready; "" is any line
	first   chan time.Time // when it printed that line on standard output; closed with the output
	done    chan struct{}  // closed when it is gone
	err     error          // how it ended; valid after done
}

// start runs a program whose standard error goes to a file. The goroutine that starts it stays on its thread until the
// child is gone: the kernel kills the child when that thread ends, so it never outlives us.
func start(name, log string, env []string, program string, args ...string) (*process, error) {
	return startUntil("", name, log, env, program, args...)
}

// startUntil does the same with a program that says more before the line that begins with until.
func startUntil(until, name, log string, env []string, program string, args ...string) (*process, error) {
	return spot{}.start(&process{until: until, name: name}, log, env, program, args...)
}

// spot is where a child runs. The zero value is where we are.
type spot struct {
	place  *place
	group  *cgroup
	mounts bool // in a mount namespace of its own: what it mounts goes with it
}

// command is a child that dies with the thread that starts it. That thread must be at the spot.
func (s spot) command(ctx context.Context, env []string, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if s.group != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(s.group.fd.Fd())
	}
	if s.mounts {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	return cmd
}

// on runs f on a thread of its own in the spot's network namespace.
func (s spot) on(f func() error) error {
	if s.place == nil {
		return onThread(f)
	}
	return s.place.do(f)
}

// start starts p, whose name and until are given.
func (s spot) start(p *process, log string, env []string, program string, args ...string) (*process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := s.command(context.Background(), env, program, args...)
	cmd.Stderr = file
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.cmd, p.log, p.first, p.done = cmd, file, make(chan time.Time, 1), make(chan struct{})
	started := make(chan error, 2) // how it started, and why not if the thread could not get there
	go func() {
		started <- s.on(func() error {
			p.started = time.Now()
			err := cmd.Start()
			started <- err
			if err != nil {
				return err
			}
			var reading sync.WaitGroup
			reading.Go(func() { p.read(out) })
			reading.Wait()
			p.err = cmd.Wait()
			close(p.done)
			return nil
		})
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", p.name, err), file.Close())
	}
	return p, nil
}

func (p *process) read(out io.Reader) {
	defer close(p.first)
	lines := bufio.NewScanner(out)
	for said := false; lines.Scan(); {
		if !said && strings.HasPrefix(lines.Text(), p.until) {
			p.first <- time.Now()
			said = true
		}
		if p.heard != nil {
			p.heard(lines.Text())
		}
	}
}

// ready waits for the line on standard output that says so, and returns when it came.
func (p *process) ready(ctx context.Context, longest time.Duration) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	select {
	case at, ok := <-p.first:
		if ok {
			return at, nil
		}
		<-p.done
		return time.Time{}, fmt.Errorf("%s ended before it was ready: %v%s", p.name, p.cmd.ProcessState, p.tail())
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("%s is not ready after %v: %w%s", p.name, longest, ctx.Err(), p.tail())
	}
}

// tail is the end of the child's log, for an error message.
func (p *process) tail() string {
	const most = 4 << 10
	content, err := os.ReadFile(p.log.Name())
	if err != nil || len(content) == 0 {
		return ""
	}
	return "\n" + string(content[max(0, len(content)-most):])
}

// stop ends the child with SIGTERM. That it has ended already is an error.
func (p *process) stop() error {
	defer p.log.Close() //nolint:errcheck // the child wrote it, we only read
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended by itself: %v%s", p.name, p.cmd.ProcessState, p.tail())
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s: %w%s", p.name, p.err, p.tail())
		}
		return nil
	case <-grace.C:
		_ = p.cmd.Process.Kill() // it may have ended just now
		<-p.done
		return fmt.Errorf("%s did not end within %v of SIGTERM, killed%s", p.name, stopGrace, p.tail())
	}
}

// kill ends a child that does not end by itself as it should, or that we need no more of. One that has ended is fine.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return p.log.Close()
}

// cpu is the CPU time that the child has used so far, user and system, in nanoseconds and over all its threads.
func (p *process) cpu() (time.Duration, error) {
	used, err := cpuClock(p.cmd.Process.Pid)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", p.name, err)
	}
	return used, nil
}

func cpuClock(pid int) (time.Duration, error) {
	// As clock_getcpuclockid(3) makes it: the inverted process id, and 2 for the scheduler's own clock.
	clock := int32(^pid)<<3 | 2 //nolint:gosec // process ids have 22 bits
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// idle waits until the child has used less CPU time than quiet over 10 ms, at most for longest.
func (p *process) idle(ctx context.Context, quiet, longest time.Duration) error {
	const window = 10 * time.Millisecond
	tick := time.NewTicker(window)
	defer tick.Stop()
	until := time.Now().Add(longest)
	last, err := p.cpu()
	if err != nil {
		return err
	}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		now, err := p.cpu()
		if err != nil {
			return err
		}
		if now-last < quiet {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("%s is still busy after %v", p.name, longest)
		}
		last = now
	}
}

// memory is resident memory in bytes: now, what of it is the process's own and not pages of files, and the highest so far.
type memory struct{ now, anonymous, peak int64 }

func (p *process) memory() (memory, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return memory{}, err
	}
	field := func(name string) int64 {
		for line := range strings.Lines(string(status)) {
			if rest, ok := strings.CutPrefix(line, name+":"); ok {
				kB, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
				return kB << 10
			}
		}
		return 0
	}
	m := memory{now: field("VmRSS"), anonymous: field("RssAnon"), peak: field("VmHWM")}
	if m.now == 0 || m.anonymous == 0 || m.peak == 0 {
		return m, fmt.Errorf("memory of %s: VmRSS, RssAnon and VmHWM are not in its status", p.name)
	}
	return m, nil
}
