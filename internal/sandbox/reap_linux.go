package sandbox

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// reaper waits for all children, those too that the kernel gave to PID 1. Nothing else in the process may wait for one, so
// os/exec is out.
type reaper struct {
	mu      sync.Mutex                        // guards waiting, and a start against its own end
	waiting map[int]chan<- syscall.WaitStatus // pid → who waits
}

func newReaper() *reaper { return &reaper{waiting: map[int]chan<- syscall.WaitStatus{}} }

// start forks with the given function; exited gets one value when the child ended.
func (r *reaper) start(fork func() (pid int, err error)) (pid int, exited <-chan syscall.WaitStatus, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if pid, err = fork(); err != nil {
		return 0, nil, err
	}
	c := make(chan syscall.WaitStatus, 1)
	r.waiting[pid] = c
	return pid, c, nil
}

// signal is safe against a pid that was given to somebody else: as long as nobody has waited for the child it has its pid.
func (r *reaper) signal(pid int, sig syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, lives := r.waiting[pid]; lives {
		_ = syscall.Kill(pid, sig) // it may have ended
	}
}

// signalGroup is signal for the child and its process group, of which it is the leader.
func (r *reaper) signalGroup(pid int, sig syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, lives := r.waiting[pid]; lives {
		_ = syscall.Kill(-pid, sig) // as above
	}
}

// run reaps until ctx ends.
func (r *reaper) run(ctx context.Context) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	defer signal.Stop(died)
	for {
		r.collect()
		select {
		case <-died:
		case <-ctx.Done():
			return
		}
	}
}

// collect takes all that have ended. It reports whether any child is left.
func (r *reaper) collect() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return false // ECHILD
		case pid == 0:
			return true
		default:
			if c, ours := r.waiting[pid]; ours {
				delete(r.waiting, pid)
				c <- status
			}
		}
	}
}
