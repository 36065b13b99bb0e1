package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/endpointd/endpointd/internal/fdstore"
)

const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 5 * time.Second
	// steady is how long a part has to run for its next end to count as the first again.
	steady = 10 * time.Second
)

// nextBackoff is how long to wait before the next start, given the last wait (zero = none) and how long the part ran.
func nextBackoff(last, ran time.Duration) time.Duration {
	if last == 0 || ran >= steady {
		return firstBackoff
	}
	return min(2*last, maxBackoff)
}

// supervised is a process that is started again whenever it ends.
type supervised struct {
	name   string
	args   []string
	spaces *namespaces    // nil = the outer ones
	extra  []*os.File     // descriptors from 3 on, behind what is kept
	store  *fdstore.Store // nil = nothing is kept
	dir    string

	reaper *reaper
	log    *part
	event  func(Event)

	mu       sync.Mutex // guards what follows
	pid      int        // 0 = it does not run
	since    time.Time
	restarts int
	lastExit string
}

// run starts it until ctx ends; then it gets SIGTERM, and after grace SIGKILL. It returns when no process is left, and nothing is kept any more.
func (s *supervised) run(ctx context.Context, grace time.Duration) {
	defer func() {
		if err := s.store.Close(); err != nil {
			s.event(Event{Kind: EventWarn, Name: s.name, Text: "what it kept: " + err.Error()})
		}
	}()
	var backoff time.Duration
	for ctx.Err() == nil {
		began := time.Now()
		how := s.once(ctx, grace)
		if ctx.Err() != nil {
			return
		}
		ran := time.Since(began)
		backoff = nextBackoff(backoff, ran)
		s.mu.Lock()
		s.restarts++
		s.lastExit = how
		s.mu.Unlock()
		s.event(Event{Kind: EventExited, Name: s.name, Text: how, Took: ran, Again: backoff})
		timer := time.NewTimer(backoff)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// once returns how it ended.
func (s *supervised) once(ctx context.Context, grace time.Duration) string {
	pid, exited, err := s.start()
	if err != nil {
		return err.Error()
	}
	s.set(pid)
	defer s.set(0)
	select {
	case status := <-exited:
		return describe(status)
	case <-ctx.Done():
	}
	s.reaper.signal(pid, syscall.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case status := <-exited:
		return describe(status)
	case <-timer.C:
	}
	s.reaper.signal(pid, syscall.SIGKILL)
	return describe(<-exited)
}

func (s *supervised) start() (pid int, exited <-chan syscall.WaitStatus, err error) {
	fork := func(env []string, kept []uintptr) (int, error) {
		files := append([]uintptr{0, s.log.write.Fd(), s.log.write.Fd()}, kept...)
		for _, f := range s.extra {
			files = append(files, f.Fd())
		}
		pid, err = syscall.ForkExec(Program(), s.args, &syscall.ProcAttr{Dir: s.dir, Env: env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true}})
		return pid, err
	}
	return s.reaper.start(func() (int, error) {
		err := s.spaces.within(func() error { return s.store.Start(fork) })
		if err == nil {
			prefer(pid)
		}
		return pid, err
	})
}

// prefer gives a part nine times the processor time of a session of a container, where many of these want it: the scheduler
// shares it among sessions (sched(7), autogroup), so that a hundred containers that start would otherwise leave the server and
// the agents a hundredth, and their leases would run out. It is best effort: without privileges, or autogroups, nothing changes.
func prefer(pid int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte("-10"), 0)
}

func (s *supervised) set(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pid, s.since = pid, time.Now()
}

func (s *supervised) status() PartStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return PartStatus{Name: s.name, PID: s.pid, Since: s.since, Restarts: s.restarts, LastExit: s.lastExit}
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "killed by " + status.Signal().String()
	}
	return fmt.Sprintf("exit code %d", status.ExitStatus())
}

// EventKind says what an Event is about.
type EventKind string

// The kinds of events.
const (
	EventStep   EventKind = "step"   // something was done
	EventExited EventKind = "exited" // a part ended and will be started again
	EventWarn   EventKind = "warn"   // something is not as it should be
)

// Event is something that happened inside.
type Event struct {
	Kind  EventKind
	Name  string        // the part
	Text  string        // what happened
	Took  time.Duration // a step's, or how long the part ran
	Again time.Duration // until it is started again
}

// Log writes the event.
func (e Event) Log(log *slog.Logger) {
	switch e.Kind {
	case EventExited:
		log.Warn("part ended", "part", e.Name, "how", e.Text, "ran", e.Took.Round(time.Millisecond), "again", e.Again)
	case EventWarn:
		log.Warn("not as it should be", "part", e.Name, "what", e.Text)
	case EventStep:
		log.Info("done", "part", e.Name, "what", e.Text, "took", e.Took.Round(100*time.Microsecond))
	}
}
