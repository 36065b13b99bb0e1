package shim

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// reap waits for every child for ever: those that were started here, and those that lost their parents within the pod.
func (p *pod) reap(sigchld <-chan os.Signal) {
	for range sigchld {
		p.reapAll()
	}
}

func (p *pod) reapAll() {
	p.reaping.Lock()
	defer p.reaping.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if exited, ok := p.children[pid]; ok {
			delete(p.children, pid)
			exited <- status
		}
	}
}

// notifyChildren has SIGCHLD told, and the signals that would end the pod by accident swallowed. They are not ignored, because
// that is inherited.
func notifyChildren() <-chan os.Signal {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	swallowed := make(chan os.Signal, 1)
	signal.Notify(swallowed, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE,
		syscall.SIGUSR1, syscall.SIGUSR2)
	return children
}
