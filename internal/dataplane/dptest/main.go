package dptest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/testkit"
)

const (
	insideEnv = "DPTEST_INSIDE" // set in namespaces made for the tests
	cgroupEnv = "DPTEST_CGROUP" // and, with BPF, the path of their cgroup
)

// BPF is root on the machine itself, whose kernel takes BPF programs, and a cgroup to attach them to. There is none in a user namespace.
func BPF() testkit.Feature {
	return testkit.Feature{Name: "bpf", Since: "5.8", Probe: func(context.Context) error {
		if insideOf, err := os.ReadFile("/proc/self/uid_map"); err != nil || strings.Join(strings.Fields(string(insideOf)), " ") != "0 0 4294967295" {
			return fmt.Errorf("a user namespace: %w", testkit.ErrNotAllowed)
		}
		if os.Getenv(cgroupEnv) == "" {
			path, err := newCgroup()
			if err != nil {
				return fmt.Errorf("%w: %w", testkit.ErrNotAllowed, err)
			}
			if err := os.Remove(path); err != nil {
				return err
			}
		}
		return tryMap()
	}}
}

// tryMap makes an array of one number.
func tryMap() error {
	attr := struct{ kind, key, value, entries, flags uint32 }{kind: unix.BPF_MAP_TYPE_ARRAY, key: 4, value: 4, entries: 1}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errors.Is(errno, unix.EPERM) {
		return fmt.Errorf("bpf: %w: %w", testkit.ErrNotAllowed, errno)
	}
	if errno != 0 {
		return fmt.Errorf("bpf: %w", errno)
	}
	return unix.Close(int(fd))
}

// Main is the body of a TestMain: it runs the tests in network and mount namespaces of their own, so that none can touch the machine's. With bpf
// it does that as root, in a new cgroup, where the machine has [BPF]; otherwise in a user namespace. Where neither is to be had, only
// tests that need no World run.
func Main(m *testing.M, bpf bool) {
	bpf = bpf && os.Getenv(insideEnv) == "" && BPF().Probe(context.Background()) == nil
	if os.Getenv(insideEnv) != "" {
		// What is mounted from here on is not the machine's business.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "make mounts private:", err)
			os.Exit(1)
		}
		testkit.Main(m)
	}
	if !bpf && testkit.Net().Probe(context.Background()) != nil {
		testkit.Main(m)
	}
	code, err := again(bpf)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// again runs this program in new namespaces and returns its exit code.
func again(bpf bool) (code int, err error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = testkit.AsRootOf(syscall.CLONE_NEWNET | syscall.CLONE_NEWNS)
	if bpf {
		path, err := newCgroup()
		if err != nil {
			return 1, err
		}
		defer func() { err = errors.Join(err, removeCgroup(path)) }()
		dir, err := os.Open(path)
		if err != nil {
			return 1, err
		}
		defer func() { _ = dir.Close() }()
		cmd.Env = append(cmd.Env, cgroupEnv+"="+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	runtime.LockOSThread() // the child ends with this thread
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 1, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// newCgroup makes a child of our own cgroup, version 2.
func newCgroup() (string, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer func() { _ = mounts.Close() }()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		own, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(own)) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
				return os.MkdirTemp(filepath.Join(fields[4], path), "endpointd-dptest-")
			}
		}
	}
	return "", errors.New("no cgroup of version 2 is mounted")
}

// removeCgroup waits for processes that are ending.
func removeCgroup(path string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := os.Remove(path)
		if err == nil || !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		<-time.After(5 * time.Millisecond)
	}
}

// needInside skips a test outside of namespaces made for it.
func needInside(t testing.TB) {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		testkit.Need(t, testkit.Net())
		t.Fatal("the test binary did not start itself again in namespaces of its own: use dptest.Main")
	}
}

// NeedBPF skips a test without [BPF].
func NeedBPF(t testing.TB) {
	t.Helper()
	testkit.Need(t, BPF())
	if os.Getenv(cgroupEnv) == "" {
		t.Fatal("the test binary did not start itself again in a cgroup of its own: use dptest.Main(m, true)")
	}
}

// privileged adds what only root on the machine can make.
func (w *World) privileged(pins string) error {
	top := os.Getenv(cgroupEnv)
	if top == "" {
		return nil
	}
	if err := unix.Mount("bpffs", pins, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a bpffs: %w", err)
	}
	w.Pins = pins
	var err error
	if w.Cgroup, err = os.MkdirTemp(top, "clients-"); err != nil {
		return err
	}
	// Clients are threads of one process.
	if err := os.WriteFile(filepath.Join(w.Cgroup, "cgroup.type"), []byte("threaded"), 0); err != nil {
		return err
	}
	for _, p := range append(w.Pods[:3:3], w.Node) {
		if err := p.join(w.Cgroup); err != nil {
			return err
		}
	}
	return nil
}
