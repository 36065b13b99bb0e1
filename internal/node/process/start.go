package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/shim"
	"github.com/endpointd/endpointd/internal/node/shim/cgroup"
)

// shimName is argv[0] that has package reexec run shim.Main.
const shimName = "endpointd-pod"

// StartPod implements container.Runtime.
func (r *Runtime) StartPod(ctx context.Context, s container.Sandbox) (container.Pod, error) {
	p := newPod(r, s.UID)
	if err := r.startPod(ctx, p, s); err != nil {
		return container.Pod{}, fmt.Errorf("start pod %s/%s (%s): %w", s.Namespace, s.Name, s.UID, err)
	}
	return p.describe(), nil
}

func (r *Runtime) startPod(ctx context.Context, p *pod, s container.Sandbox) error {
	if s.UID == "" || strings.ContainsAny(s.UID, "/\x00") || s.UID[0] == '.' {
		return fmt.Errorf("UID %q is not safe as a file name", s.UID)
	}
	if r.ctx.Err() != nil {
		return os.ErrClosed
	}
	r.mu.Lock()
	if _, taken := r.pods[s.UID]; taken {
		r.mu.Unlock()
		return fs.ErrExist
	}
	r.pods[s.UID] = p
	r.mu.Unlock()
	err := r.makePod(ctx, p, s)
	if err != nil {
		err = errors.Join(err, r.clear(context.WithoutCancel(ctx), p))
		p.release()
		r.mu.Lock()
		delete(r.pods, s.UID)
		r.mu.Unlock()
		return err
	}
	p.mu.Lock()
	p.ready, p.alive = true, true
	p.mu.Unlock()
	r.startWatch(p)
	return nil
}

// makePod makes the folder, the cgroup and the shim. What it made is cleared by its caller when it fails.
func (r *Runtime) makePod(ctx context.Context, p *pod, s container.Sandbox) error {
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(p.dir, shim.StageDir), 0o700); err != nil {
		return err
	}
	p.bundle = shim.Bundle{Sandbox: s, CreatedAt: time.Now(), BootID: bootID(), Cgroup: r.podGroup(s.UID)}
	home := p.bundle.Cgroup
	if home != "" {
		home = filepath.Join(home, "shim") // processes are in leaves only
		if err := cgroup.Make(home); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		_, _ = cgroup.Delegate(p.bundle.Cgroup) // what is missing was said once, by New
		if err := cgroup.Limit(p.bundle.Cgroup, s.Resources); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	data, err := json.Marshal(p.bundle)
	if err != nil {
		return err
	}
	bundle := filepath.Join(p.dir, shim.BundleFile)
	if err := os.WriteFile(bundle+".new", data, 0o600); err != nil {
		return err
	}
	if err := os.Rename(bundle+".new", bundle); err != nil {
		return err
	}
	return r.startShim(ctx, p, home)
}

func (r *Runtime) podGroup(uid string) string {
	if r.cgroup == "" {
		return ""
	}
	return filepath.Join(r.cgroup, uid)
}

// startShim starts the process and waits until it says that the pod stands.
func (r *Runtime) startShim(ctx context.Context, p *pod, group string) error {
	lock, err := os.OpenFile(filepath.Join(p.dir, lockFile), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // the shim has it, or nobody should
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	complaints, err := os.OpenFile(filepath.Join(p.dir, shim.ComplaintFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer complaints.Close() //nolint:errcheck // the shim writes it
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close() //nolint:errcheck // read only
	cmd := &exec.Cmd{
		Path: r.executable, Args: []string{shimName, p.bundle.Sandbox.Namespace + "/" + p.bundle.Sandbox.Name}, Dir: p.dir,
		// One processor's worth of caches, and a heap that is collected early: there is one of these for each pod.
		Env:    []string{"GOMAXPROCS=1", "GOGC=30"},
		Stderr: complaints, ExtraFiles: []*os.File{theirs, lock}, SysProcAttr: shimAttributes(&p.bundle.Sandbox),
	}
	pidfd := -1
	cmd.SysProcAttr.PidFD = &pidfd
	if group != "" {
		dir, err := unix.Open(group, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return errors.Join(err, theirs.Close())
		}
		defer unix.Close(dir) //nolint:errcheck // opened for the clone alone
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, dir
	}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return explainStart(err)
	}
	p.process = &process{pid: cmd.Process.Pid, fd: os.NewFile(uintptr(pidfd), "pidfd")}
	_ = cmd.Process.Release() // it is waited for through the pidfd
	return p.awaitReady(ctx, ready)
}

func shimAttributes(s *container.Sandbox) *syscall.SysProcAttr {
	attributes := &syscall.SysProcAttr{Setsid: true}
	if !s.HostNetwork {
		attributes.Cloneflags |= syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS
	}
	if !s.HostPID {
		attributes.Cloneflags |= syscall.CLONE_NEWPID
	}
	if !s.HostIPC {
		attributes.Cloneflags |= syscall.CLONE_NEWIPC
	}
	return attributes
}

func explainStart(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("make namespaces: %w: run as root, or inside a user namespace", err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return fmt.Errorf("make namespaces: %w: the limit in /proc/sys/user/max_*_namespaces is reached", err)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("make a process: %w: processes (ulimit -u, pids.max) or memory are used up", err)
	default:
		return err
	}
}

// awaitReady reads what the shim says first.
func (p *pod) awaitReady(ctx context.Context, ready *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer stop()
	if err := ready.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	said, err := io.ReadAll(ready)
	switch {
	case string(said) == shim.Ready:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("its first process did not get ready: %w", err)
	case len(said) > 0:
		return errors.New(string(said))
	default:
		complaints, _ := os.ReadFile(filepath.Join(p.dir, shim.ComplaintFile))
		return fmt.Errorf("its first process died at once: %s", bytes.TrimSpace(complaints[:min(len(complaints), 1000)]))
	}
}

// RemovePod implements container.Runtime.
func (r *Runtime) RemovePod(ctx context.Context, uid string) error {
	p, err := r.lookup(uid)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.removing = true
	p.mu.Unlock()
	if err := r.clear(ctx, p); err != nil {
		return fmt.Errorf("remove pod %s: %w", uid, err)
	}
	if p.watched != nil {
		<-p.watched // it sees the end that clear has waited for
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pods, uid)
	p.release()
	return nil
}

// clear ends all processes of a pod and removes what it has. It may be called again after an error.
func (r *Runtime) clear(ctx context.Context, p *pod) error {
	group := p.bundle.Cgroup
	killed := false
	if group != "" {
		killed = cgroup.Kill(group) == nil
	}
	if p.process != nil {
		if err := p.process.kill(); err != nil {
			return fmt.Errorf("end its first process: %w", err)
		}
		if err := p.process.wait(ctx); err != nil {
			return fmt.Errorf("wait for the end of its first process: %w", err)
		}
	}
	if p.bundle.Sandbox.HostPID && !killed {
		if p.watched != nil { // who notes what the first process leaves behind
			select {
			case <-p.watched:
			case <-ctx.Done():
				return fmt.Errorf("wait for what its first process left: %w", ctx.Err())
			}
		}
		if err := p.killSessions(ctx); err != nil {
			return err
		}
	}
	if group != "" {
		if err := cgroup.Remove(ctx, group); err != nil {
			return err
		}
	}
	return os.RemoveAll(p.dir)
}
