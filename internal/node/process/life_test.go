package process_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/process"
	"github.com/endpointd/endpointd/internal/testkit"
)

// TestRestart has a second Runtime take over what the first one left, with an exit in between.
func TestRestart(t *testing.T) {
	// A long path: that of a socket has at most 107 bytes.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long-name/", 20))
	first := newRuntime(t, process.Options{Dir: dir})
	pod := startPod(t, first, container.Sandbox{Labels: map[string]string{"pod": "label"}})
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	long, short := shell("echo on; sleep 1000"), shell("read x < "+fifo+"; exit 8")
	long.Name, long.Labels = "long", map[string]string{"a": "b"}
	running := start(t, first, long)
	start(t, first, short)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, fifo, "go\n")
	testkit.Await(t, patience, func() error {
		if data, err := os.ReadFile(filepath.Join(dir, "uid-1", "state", "main.json")); err != nil || !strings.Contains(string(data), "exited") {
			return fmt.Errorf("still running: %s, %w", data, err)
		}
		return nil
	})
	second := newRuntime(t, process.Options{Dir: dir})
	pods, err := second.Pods(t.Context())
	if err != nil || len(pods) != 1 || len(pods[0].Containers) != 2 {
		t.Fatalf("pods are %+v, %v", pods, err)
	}
	if got := pods[0]; got.PID != pod.PID || got.NetNS != pod.NetNS || !got.CreatedAt.Equal(pod.CreatedAt) || got.Sandbox.Labels["pod"] != "label" {
		t.Errorf("pod is %+v, was %+v", got, pod)
	}
	if got := pods[0].Containers[0]; got.State != container.Running || got.PID != running.PID || got.Labels["a"] != "b" || !got.StartedAt.Equal(running.StartedAt) {
		t.Errorf("the long container is %+v, was %+v", got, running)
	}
	if got := pods[0].Containers[1]; got.State != container.Exited || got.ExitCode != 8 {
		t.Errorf("the short container is %+v", got)
	}
	if err := second.Signal(t.Context(), "uid-1", "long", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// The exit that Pods told of is not told again.
	if got := nextExit(t, second); got.Name != "long" || got.Signal != 9 {
		t.Errorf("the next exit is %+v", got)
	}
	if _, err := second.StartPod(t.Context(), container.Sandbox{UID: "uid-1"}); !errors.Is(err, os.ErrExist) {
		t.Errorf("start of a pod that was taken over: %v", err)
	}
	short.Attempt = 1
	short.Args[2] = "exit 2"
	if status, _ := run(t, second, short); status.ExitCode != 2 || status.Attempt != 1 {
		t.Errorf("a new attempt: %+v", status)
	}
}

// TestShimDies kills a pod's first process: the kernel ends the pod, and the Runtime says so, as does the next one.
func TestShimDies(t *testing.T) {
	for name, sandbox := range map[string]container.Sandbox{
		"own": {}, "shared": {ShareProcessNamespace: true}, "node's": {HostPID: true},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s processes, restart %v", name, restart), func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "pods")
				r := newRuntime(t, process.Options{Dir: dir})
				p := startPod(t, r, sandbox)
				start(t, r, shell("sleep 7777 & exec sleep 7777"))
				if restart {
					if err := r.Close(); err != nil {
						t.Fatal(err)
					}
				}
				killAndWait(t, p.PID)
				if restart {
					r = newRuntime(t, process.Options{Dir: dir})
				} else if e := nextEvent(t, r); e.Container != nil || e.Pod != "uid-1" {
					t.Errorf("event is %+v", e)
				}
				pods, err := r.Pods(t.Context())
				if err != nil || len(pods) != 1 || pods[0].PID != 0 || len(pods[0].Containers) != 1 {
					t.Fatalf("pods are %+v, %v", pods, err)
				}
				if c := pods[0].Containers[0]; c.State != container.Exited || c.ExitCode != 137 || c.FinishedAt.IsZero() {
					t.Errorf("container is %+v", c)
				}
				if _, err := r.Start(t.Context(), shell("true")); err == nil || !strings.Contains(err.Error(), "remove the pod") {
					t.Errorf("start in a dead pod: %v", err)
				}
				if err := r.Signal(t.Context(), "uid-1", "main", syscall.SIGTERM); err != nil {
					t.Errorf("signal in a dead pod: %v", err)
				}
				if err := r.RemovePod(t.Context(), "uid-1"); err != nil {
					t.Fatal(err)
				}
				if n := processes(t, "sleep\x007777"); n != 0 {
					t.Errorf("%d processes are left", n)
				}
			})
		}
	}
}

// killAndWait returns when the last thread has ended; the first one may look dead before.
func killAndWait(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // opened to be polled
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, int(patience.Milliseconds()))
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll(poll, int(patience.Milliseconds()))
	}
	if n != 1 || err != nil {
		t.Fatalf("it lives: %d, %v", n, err)
	}
}

// TestRemovePod compares before and after: processes, mounts, folders.
func TestRemovePod(t *testing.T) {
	for name, sandbox := range map[string]container.Sandbox{
		"own": {}, "shared": {ShareProcessNamespace: true}, "node's": {HostPID: true, HostNetwork: true, HostIPC: true},
	} {
		t.Run(name+" processes", func(t *testing.T) {
			dir := t.TempDir()
			r := newRuntime(t, process.Options{Dir: dir})
			before := mounts(t)
			startPod(t, r, sandbox)
			c := shell("trap '' TERM; sleep 8888 & (sleep 8888 &); while :; do sleep 8888; done")
			c.Mounts = []container.Mount{{Source: "tmpfs", Target: "/no-such/x"}}
			start(t, r, c)
			testkit.Await(t, patience, func() error {
				if n := processes(t, "sleep\x008888"); n < 3 {
					return fmt.Errorf("%d processes so far", n)
				}
				return nil
			})
			if err := r.RemovePod(t.Context(), "uid-1"); err != nil {
				t.Fatal(err)
			}
			if n := processes(t, "8888") + processes(t, "endpointd-pod"); n != 0 {
				t.Errorf("%d processes are left", n)
			}
			if after := mounts(t); after != before {
				t.Errorf("mounts are\n%sbefore\n%s", after, before)
			}
			if left := listing(t, dir); len(left) != 1 {
				t.Errorf("left are %v", left)
			}
			select {
			case e := <-r.Events():
				t.Errorf("a pod that was removed is no news: %+v", e)
			default:
			}
			if err := r.RemovePod(t.Context(), "uid-1"); err != nil {
				t.Errorf("remove it again: %v", err)
			}
		})
	}
}

// TestHalfPod has what an agent leaves that dies while it starts a pod.
func TestHalfPod(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "half", "root"), 0o700), os.MkdirAll(filepath.Join(dir, "no-shim"), 0o700)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "half", "bundle.json.new"), "{")
	write(t, filepath.Join(dir, "no-shim", "bundle.json"), `{"Sandbox":{"UID":"no-shim"}}`)
	r := newRuntime(t, process.Options{Dir: dir})
	pods, err := r.Pods(t.Context())
	if err != nil || len(pods) != 1 || pods[0].Sandbox.UID != "no-shim" || pods[0].PID != 0 {
		t.Errorf("pods are %+v, %v", pods, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "half")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the half folder: %v", err)
	}
	startPod(t, r, container.Sandbox{UID: "half"})
}

// TestFrozenShim sees that a shim that does not answer holds up neither a new Runtime nor the removal of its pod.
func TestFrozenShim(t *testing.T) {
	dir := t.TempDir()
	first := newRuntime(t, process.Options{Dir: dir})
	p := startPod(t, first, container.Sandbox{})
	start(t, first, shell("sleep 100"))
	if err := errors.Join(first.Close(), syscall.Kill(p.PID, syscall.SIGSTOP)); err != nil {
		t.Fatal(err)
	}
	second := newRuntime(t, process.Options{Dir: dir})
	pods, err := second.Pods(t.Context())
	if err != nil || len(pods) != 1 || pods[0].PID != p.PID || pods[0].Containers[0].State != container.Running {
		t.Errorf("pods are %+v, %v", pods, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := second.Start(ctx, container.Container{Pod: "uid-1", Name: "x", Args: []string{"true"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("start: %v", err)
	}
	if err := second.RemovePod(t.Context(), "uid-1"); err != nil {
		t.Error(err)
	}
}

// TestMany starts fifty pods at once, and ends them.
func TestMany(t *testing.T) {
	const n = 50
	dir := t.TempDir()
	r := newRuntime(t, process.Options{Dir: dir})
	var all sync.WaitGroup
	began := time.Now()
	for i := range n {
		all.Go(func() {
			uid := fmt.Sprint("uid-", i)
			if _, err := r.StartPod(t.Context(), container.Sandbox{UID: uid}); err != nil {
				t.Error(err)
				return
			}
			c := shell(fmt.Sprintf("exit %d", i))
			c.Pod = uid
			if _, err := r.Start(t.Context(), c); err != nil {
				t.Error(err)
			}
		})
	}
	codes := map[string]int{}
	for range n {
		status := nextExit(t, r)
		codes[status.Pod] = status.ExitCode
	}
	all.Wait()
	t.Logf("%d pods in %v", n, time.Since(began))
	for i := range n {
		if uid := fmt.Sprint("uid-", i); codes[uid] != i {
			t.Errorf("pod %s: code %d", uid, codes[uid])
		}
		all.Go(func() {
			if err := r.RemovePod(t.Context(), fmt.Sprint("uid-", i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if left := listing(t, dir); len(left) != 1 {
		t.Errorf("left are %v", left)
	}
}

// TestNodeProcesses has a pod in the node's process namespace, with an exec in it.
func TestNodeProcesses(t *testing.T) {
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{HostPID: true, HostNetwork: true})
	status := start(t, r, shell("sleep 6666 & exec sleep 6666"))
	_, got := execute(t, r, "sh", "-c", "ls -d /proc/"+fmt.Sprint(os.Getpid())+"; readlink /proc/self/ns/net; ls /proc/self/fd | wc -l")
	want := fmt.Sprintf("/proc/%d\n%s\n4\n", os.Getpid(), readlink(t, "/proc/self/ns/net")) // the fourth is that of ls
	if got != want {
		t.Errorf("exec sees %q, want %q", got, want)
	}
	if status.PID == 0 || readlink(t, fmt.Sprintf("/proc/%d/ns/pid", status.PID)) != readlink(t, "/proc/self/ns/pid") {
		t.Errorf("status is %+v", status)
	}
	if err := r.Signal(t.Context(), "uid-1", "main", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit := nextExit(t, r); exit.Signal != 15 || exit.ExitCode != 143 {
		t.Errorf("exit is %+v", exit)
	}
	if n := processes(t, "sleep\x006666"); n != 0 {
		t.Errorf("%d processes are left of the container that exited", n)
	}
}
