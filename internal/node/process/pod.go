package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/shim"
)

// pod is one folder, and the shim in it.
type pod struct {
	uid     string
	dir     string
	bundle  shim.Bundle
	process *process      // the shim; nil = there was none alive when the pod was found
	watched chan struct{} // closed when nobody watches the shim any more; nil = nobody ever did

	mu         sync.Mutex // guards what follows
	ready      bool       // it stands, or stood
	alive      bool
	removing   bool
	containers map[string]container.Status
	starting   map[string]int // container → Starts under way; its events wait for their end
	held       []container.Event
	orphans    map[int]time.Time // PID of a container that ran when the shim died → when it had started
}

var errNoBundle = errors.New("no bundle")

func (p *pod) started() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ready
}

func (p *pod) living() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alive
}

func (p *pod) release() {
	if p.process != nil {
		p.process.close()
	}
}

func (p *pod) describe() container.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := container.Pod{Sandbox: p.bundle.Sandbox, CreatedAt: p.bundle.CreatedAt}
	if p.alive {
		d.PID = p.process.pid
		if !d.Sandbox.HostNetwork {
			d.NetNS = "/proc/" + strconv.Itoa(d.PID) + "/ns/net"
		}
	}
	for _, status := range p.containers {
		d.Containers = append(d.Containers, status)
	}
	slices.SortFunc(d.Containers, func(a, b container.Status) int { return strings.Compare(a.Name, b.Name) })
	return d
}

// end marks what the death of the shim means: every container was killed.
func (p *pod) end(now time.Time) {
	p.alive = false
	for name, status := range p.containers {
		if status.State == container.Running {
			p.orphans[status.PID] = status.StartedAt
			status.State, status.PID, status.FinishedAt = container.Exited, 0, now
			status.ExitCode, status.Signal = 128+int(syscall.SIGKILL), int(syscall.SIGKILL)
			p.containers[name] = status
		}
	}
}

// loadPod reads a folder. It returns nil when nothing is there any more.
func loadPod(r *Runtime, uid string) (*pod, error) {
	p := newPod(r, uid)
	data, err := os.ReadFile(filepath.Join(p.dir, shim.BundleFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoBundle
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &p.bundle); err != nil {
		return nil, fmt.Errorf("%s: %w", shim.BundleFile, err)
	}
	p.ready = true
	if p.process, err = findShim(p.dir, &p.bundle); err != nil {
		return nil, err
	}
	if p.process != nil && !p.awaitSocket(r.ctx) {
		p.process.close()
		p.process = nil
	}
	// After the shim was found: what changes from here on comes over its stream.
	if err := p.loadStates(); err != nil {
		return nil, err
	}
	if p.process == nil {
		p.end(time.Now())
	} else {
		p.alive = true
	}
	return p, nil
}

// awaitSocket waits for a shim that is found while it starts, and says whether it lives. One that is frozen lives: the kernel accepts in its
// place.
func (p *pod) awaitSocket(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for {
		if p.process.ended() {
			return false
		}
		if conn, err := p.dial(ctx); err == nil {
			_ = conn.Close()
			return true
		}
		select {
		case <-ctx.Done():
			return true // whatever it does, RemovePod can end it
		case <-time.After(time.Millisecond):
		}
	}
}

func newPod(r *Runtime, uid string) *pod {
	return &pod{
		uid: uid, dir: filepath.Join(r.dir, uid), containers: map[string]container.Status{}, starting: map[string]int{},
		orphans: map[int]time.Time{},
	}
}

func (p *pod) loadStates() error {
	entries, err := os.ReadDir(filepath.Join(p.dir, shim.StateDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) != ".json" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(p.dir, shim.StateDir, entry.Name()))
		if err != nil {
			return err
		}
		var status container.Status
		if err := json.Unmarshal(data, &status); err != nil {
			return fmt.Errorf("state of container %s: %w", entry.Name(), err)
		}
		p.containers[status.Name] = status
	}
	return nil
}

// process is a running shim, ours or of another agent.
type process struct {
	pid int
	fd  *os.File // a pidfd
}

func (p *process) close() { _ = p.fd.Close() }

func (p *process) kill() error {
	err := unix.PidfdSendSignal(int(p.fd.Fd()), unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// wait returns when the process has ended, and with it, were it the first of its namespace, all others there.
func (p *process) wait(ctx context.Context) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		if p.ended() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// ended also reaps the shim if this process started it.
func (p *process) ended() bool {
	poll := []unix.PollFd{{Fd: int32(p.fd.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	if err != nil || n == 0 {
		return false
	}
	_ = unix.Waitid(unix.P_PIDFD, int(p.fd.Fd()), nil, unix.WEXITED|unix.WNOHANG, nil) // no child, or reaped before: fine
	return true
}

// lockFile is locked by the shim, which inherits it open.
const lockFile = "lock"

// findShim gives the process that lives in a pod's folder; nil = none.
func findShim(dir string, bundle *shim.Bundle) (*process, error) {
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer lock.Close() //nolint:errcheck // also lets go of the lock
	pid, err := holder(lock)
	if err != nil {
		return nil, err
	}
	if pid == 0 {
		awaitRest(lock.Name(), bundle)
		return nil, nil // nobody lives here
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd")}
	// The lock is held still, so the PID was that of its holder when it was opened.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		p.close()
		return nil, nil
	}
	return p, nil
}

// How long a shim may take from its clone until it writes its PID, which it does first of all: a machine that is busy needs seconds.
const (
	namePause    = 10 * time.Millisecond
	namePatience = 10 * time.Second
)

// holder gives the PID of who holds the lock, 0 = nobody. An agent that died while it started the pod may be followed so soon that the
// PID is not there yet, or never will be.
func holder(lock *os.File) (int, error) {
	for waited := time.Duration(0); ; waited += namePause {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return 0, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return 0, err
		}
		data, err := os.ReadFile(lock.Name())
		if err != nil {
			return 0, err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err == nil {
			return pid, nil
		}
		if waited >= namePatience {
			return 0, fmt.Errorf("%s is locked and does not say by whom: %w", lock.Name(), err)
		}
		<-time.After(namePause)
	}
}

// awaitRest waits for a shim that has closed its files already but not ended: the kernel is at its namespace still.
func awaitRest(lock string, bundle *shim.Bundle) {
	data, err := os.ReadFile(lock)
	if err != nil || bundle.BootID != bootID() {
		return
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	p := &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd")}
	defer p.close()
	if born, err := startTime(pid); err != nil || born.Sub(bundle.CreatedAt).Abs() > clockSlack {
		return // the number was given away
	}
	ctx, cancel := context.WithTimeout(context.Background(), endGrace)
	defer cancel()
	_ = p.wait(ctx)
}
