package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/shim/cgroup"
	"github.com/endpointd/endpointd/internal/node/shim/launch"
)

// drainGrace is how long an exit is kept back for the last output to be in the log. What keeps a pipe open
// longer is no process of the container.
const drainGrace = 5 * time.Millisecond

// box is one attempt of a container.
type box struct {
	spec    container.Container // as asked; what Exec needs of it
	group   string              // its cgroup; "" = none
	ownPIDs bool
	child   *child // set before the state is Running
	io      *streams
	done    chan struct{} // closed when it has exited and its status says so

	mu     sync.Mutex // guards status
	status container.Status
}

func (b *box) state() container.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

func (b *box) running() bool { return b.state().State == container.Running }

// start runs a container, and returns when its program was executed.
func (p *pod) start(c *container.Container) (container.Status, error) {
	if err := checkContainer(c); err != nil {
		return container.Status{}, err
	}
	b := &box{spec: *c, done: make(chan struct{})}
	previous, err := p.claim(b)
	if err != nil {
		return container.Status{}, err
	}
	if err := p.launch(b); err != nil {
		p.mu.Lock()
		if previous != nil {
			p.containers[c.Name] = previous
		} else {
			delete(p.containers, c.Name)
		}
		p.mu.Unlock()
		b.removeGroup()
		return container.Status{}, err
	}
	b.mu.Lock()
	b.status = container.Status{
		Pod: c.Pod, Name: c.Name, Attempt: c.Attempt, ID: ContainerID(c.Pod, c.Name, c.Attempt), Labels: c.Labels,
		State: container.Running, PID: b.child.hostPID, StartedAt: time.Now(),
	}
	status := b.status
	b.mu.Unlock()
	p.publish(status)
	go p.await(b)
	return status, nil
}

func checkContainer(c *container.Container) error {
	switch {
	case len(c.Args) == 0:
		return &launch.Failure{Code: 127, Text: "the command is empty: set command or args"}
	case c.Name == "" || strings.ContainsAny(c.Name, "/\x00") || c.Name[0] == '.':
		return fmt.Errorf("container name %q is not safe as a file name", c.Name)
	}
	for _, text := range append(append([]string{c.WorkingDir}, c.Args...), c.Env...) {
		if strings.ContainsRune(text, 0) {
			return fmt.Errorf("%.40q holds a NUL byte, which the kernel does not pass on", text)
		}
	}
	return nil
}

// claim makes b the container of its name, unless one runs or is being started.
func (p *pod) claim(b *box) (previous *box, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	previous = p.containers[b.spec.Name]
	if previous != nil && previous.state().State != container.Exited {
		return nil, errors.New("it runs already or is being started: wait for its exit")
	}
	p.containers[b.spec.Name] = b
	return previous, nil
}

// launch makes the container's cgroup, log and streams, and starts it.
func (p *pod) launch(b *box) error {
	c, sandbox := &b.spec, &p.bundle.Sandbox
	if p.bundle.Cgroup != "" {
		b.group = path.Join(p.bundle.Cgroup, "c-"+c.Name)
		if err := errors.Join(cgroup.Make(b.group), cgroup.Limit(b.group, c.Resources)); err != nil {
			return err
		}
	}
	log, err := p.openLog(c)
	if err != nil {
		return err
	}
	b.ownPIDs = !sandbox.HostPID && !sandbox.ShareProcessNamespace
	options := childOptions{
		spec: launch.Spec{
			Container: *c, FreshProc: !sandbox.HostPID, FreshIPC: !sandbox.HostIPC, Leashed: sandbox.HostPID, OOMScore: p.oomScore,
		},
		flags: unix.CLONE_NEWNS, cgroup: b.group,
	}
	folder, err := os.Getwd()
	if err != nil {
		return err
	}
	options.spec.Stage = path.Join(folder, StageDir)
	if b.ownPIDs {
		options.flags |= unix.CLONE_NEWPID
	}
	b.io = newStreams(c, log)
	if options.streams, err = b.io.childEnds(); err != nil {
		b.io.abandon()
		return err
	}
	b.child, err = p.startChild(options)
	b.io.closeChildEnds()
	if err != nil {
		b.io.abandon()
		return err
	}
	b.io.run(b.child.master)
	return nil
}

// openLog makes the log of this attempt, and removes those before the previous one.
func (p *pod) openLog(c *container.Container) (*logFile, error) {
	dir := path.Join(LogDir, c.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		number, _, _ := strings.Cut(entry.Name(), ".")
		if attempt, err := strconv.Atoi(number); err == nil && attempt < c.Attempt-1 {
			_ = os.Remove(path.Join(dir, entry.Name()))
		}
	}
	log, err := openLog(path.Join(dir, strconv.Itoa(c.Attempt)+".log"), maxLogSize)
	if errors.Is(err, unix.ENOSPC) {
		return log, nil // the next write tries again
	}
	return log, err
}

// await sees a container to its end.
func (p *pod) await(b *box) {
	exit := <-b.child.exited
	finished := time.Now()
	if !b.ownPIDs {
		// Its namespace lives on; what it left behind must not.
		if err := b.killAll(); err != nil {
			fmt.Fprintln(os.Stderr, "container", b.spec.Name, "end what it left:", err)
		}
	}
	b.io.drain(drainGrace)
	b.mu.Lock()
	s := &b.status
	s.State, s.FinishedAt, s.PID = container.Exited, finished, 0
	s.ExitCode, s.Signal = exitCode(exit)
	s.OOMKilled = s.Signal == int(syscall.SIGKILL) && b.group != "" && cgroup.OOMKilled(b.group)
	status := b.status
	b.mu.Unlock()
	close(b.done)
	p.publish(status)
	b.io.finish()
	b.removeGroup()
}

// removeGroup is best effort: otherwise the group goes with the pod's.
func (b *box) removeGroup() {
	if b.group == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = cgroup.Remove(ctx, b.group)
}

func exitCode(status unix.WaitStatus) (code, sig int) {
	if status.Signaled() {
		return 128 + int(status.Signal()), int(status.Signal())
	}
	return status.ExitStatus(), 0
}

func asFailure(err error) *launch.Failure {
	if err == nil {
		return nil
	}
	failure := &launch.Failure{}
	if errors.As(err, &failure) {
		return failure
	}
	return &launch.Failure{Code: 128, Text: err.Error()}
}

// watcher is a client of the stream of events.
type watcher struct {
	wake    chan struct{}
	pending []container.Status // guarded by pod.mu
}

// publish tells the watchers, who may have to act at once, and writes the container's file.
func (p *pod) publish(status container.Status) {
	p.saving.Lock()
	defer p.saving.Unlock()
	p.tell(status)
	if err := saveStatus(status); err != nil {
		fmt.Fprintln(os.Stderr, "container", status.Name, "keep its state:", err) // those who watch know it all the same
	}
}

func (p *pod) tell(status container.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w := range p.watchers {
		w.pending = append(w.pending, status)
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func saveStatus(status container.Status) error {
	data, err := json.Marshal(status)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(StateDir, 0o700); err != nil {
		return err
	}
	file := path.Join(StateDir, status.Name+".json")
	if err := os.WriteFile(file+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

func (p *pod) serveEvents(c *conn) {
	me := &watcher{wake: make(chan struct{}, 1)}
	p.mu.Lock()
	for _, b := range p.containers {
		if status := b.state(); status.State != "" {
			me.pending = append(me.pending, status)
		}
	}
	p.watchers[me] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.watchers, me)
		p.mu.Unlock()
	}()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		c.awaitEnd()
	}()
	for {
		p.mu.Lock()
		change := Change{Containers: me.pending}
		me.pending = nil
		p.mu.Unlock()
		if c.answer(change) != nil {
			return
		}
		select {
		case <-me.wake:
		case <-gone:
			return
		}
	}
}
