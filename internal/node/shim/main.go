package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/shim/cgroup"
	"github.com/endpointd/endpointd/internal/pages"
)

// restAfter is how long a shim must have been without requests before it lets go of the program's pages: longer than the pause between
// two probes, so that none pays for it.
const restAfter = 3 * time.Second

// selfExe runs what this process runs, also when the file was replaced.
const selfExe = "/proc/self/exe"

// pod is the state of the shim.
type pod struct {
	bundle   Bundle
	null     *os.File
	ownPIDs  *os.File    // the process namespace that the shim and its children are in
	oomScore int         // that of the agent, which containers start from
	rest     *time.Timer // drops the program's pages when no request has come for a while

	reaping  sync.Mutex                     // held while a child is started and while children are reaped
	children map[int]chan<- unix.WaitStatus // PID → who waits

	saving sync.Mutex // held while a change is told and written, so that the file says what was told last

	mu         sync.Mutex      // guards what follows
	containers map[string]*box // name → the last attempt
	watchers   map[*watcher]struct{}
}

// Main runs a pod until it is killed. Its working directory is the pod's folder. It returns only when the pod cannot be.
func Main() int {
	ready := os.NewFile(ReadyFD, "ready")
	unix.CloseOnExec(ReadyFD)
	unix.CloseOnExec(LockFD)
	listener, p, err := setUp()
	if err != nil {
		_, _ = fmt.Fprint(ready, err)
		return 1
	}
	children := notifyChildren()
	// The main goroutine is tied to the main thread while packages initialise; work elsewhere saves a switch a wake-up.
	failed := make(chan error, 1)
	go p.reap(children)
	go func() { failed <- p.serve(listener) }()
	// An agent that has died meanwhile does not hear it; the next one finds a pod that stands.
	_, _ = fmt.Fprint(ready, Ready)
	_ = ready.Close()
	p.rest.Reset(0)
	fmt.Fprintln(os.Stderr, "serve the pod's socket:", <-failed)
	return 1
}

func setUp() (*os.File, *pod, error) {
	// The folder's /proc is the agent's, so this is the PID by which agents know this process.
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return nil, nil, err
	}
	if _, err := unix.Pwrite(LockFD, []byte(self+"\n"), 0); err != nil {
		return nil, nil, fmt.Errorf("write lock: %w", err)
	}
	data, err := os.ReadFile(BundleFile)
	if err != nil {
		return nil, nil, err
	}
	p := &pod{
		children: map[int]chan<- unix.WaitStatus{}, containers: map[string]*box{}, watchers: map[*watcher]struct{}{},
		rest: time.AfterFunc(restAfter, pages.Drop),
	}
	if err := json.Unmarshal(data, &p.bundle); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", BundleFile, err)
	}
	if p.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
		return nil, nil, err
	}
	if p.ownPIDs, err = os.Open("/proc/self/ns/pid"); err != nil {
		return nil, nil, err
	}
	p.protect()
	if p.bundle.Sandbox.HostPID {
		// Not being PID 1 of anything, it becomes the parent of the pod's orphans by asking.
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, nil, fmt.Errorf("become subreaper: %w", err)
		}
	}
	if err := prepare(&p.bundle.Sandbox); err != nil {
		return nil, nil, err
	}
	syscall.Umask(0o077)
	listener, err := listen()
	return listener, p, err
}

// protect keeps the kernel from choosing the shim when memory is short: with it the whole pod would go.
func (p *pod) protect() {
	const file, score = "/proc/self/oom_score_adj", "-998" // as the kubelet's pause container
	if data, err := os.ReadFile(file); err == nil {
		p.oomScore, _ = strconv.Atoi(strings.TrimSpace(string(data)))
	}
	_ = os.WriteFile(file, []byte(score), 0) // best effort: needs CAP_SYS_RESOURCE
}

func (p *pod) signal(name string, sig syscall.Signal) error {
	p.mu.Lock()
	b := p.containers[name]
	p.mu.Unlock()
	if b == nil || !b.running() {
		return nil
	}
	if sig == syscall.SIGKILL {
		return b.killAll()
	}
	return b.child.signal(sig)
}

// killAll ends all processes of the container.
func (b *box) killAll() error {
	err := b.child.signal(syscall.SIGKILL)
	if b.group != "" && cgroup.Kill(b.group) == nil {
		return err
	}
	if b.ownPIDs {
		return err // the kernel ends the rest of the namespace with its first process
	}
	return errors.Join(err, killSession(b.child.pid))
}
