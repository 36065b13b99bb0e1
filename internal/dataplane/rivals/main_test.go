package rivals

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/testkit"
)

// insideEnv tells the test binary that it runs in namespaces made for it.
const insideEnv = "RIVALS_TEST_INSIDE"

// TestMain runs the tests in a user and a network namespace of their own, so that none can touch the machine's network.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" || testkit.Net().Probe(context.Background()) != nil {
		testkit.Main(m)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = testkit.AsRootOf(syscall.CLONE_NEWNET)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// place is a network namespace with nothing in it.
type place struct {
	t  *testing.T
	ns netns.NsHandle
}

func newPlace(t *testing.T) *place {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		testkit.Need(t, testkit.Net())
		t.Fatal("the test binary did not start itself again in namespaces of its own")
	}
	p := &place{t: t}
	thread(t, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		p.ns, err = netns.Get()
		return err
	})
	t.Cleanup(func() { _ = p.ns.Close() })
	return p
}

// do runs f in the place.
func (p *place) do(f func() error) {
	p.t.Helper()
	thread(p.t, func() error {
		if err := netns.Set(p.ns); err != nil {
			return err
		}
		return f()
	})
}

// thread runs f on a thread that ends with it.
func thread(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
