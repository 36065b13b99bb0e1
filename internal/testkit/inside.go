package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"go.uber.org/goleak"
)

// insideEnv tells a test binary that it runs in namespaces made for it.
const insideEnv = "ENDPOINTD_TEST_INSIDE"

// MainInside is [Main] in a user namespace and the others that flags ask for (syscall.CLONE_NEWNET and the like), so that tests with packets
// cannot touch the machine's network: the test binary starts itself again there. Where the kernel does not allow that, it is Main, and
// tests that call [NeedInside] skip.
func MainInside(m *testing.M, flags uintptr, options ...goleak.Option) {
	if Inside() || Net().Probe(context.Background()) != nil {
		Main(m, options...)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = AsRootOf(flags)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// Inside says whether this process is the one that [MainInside] started.
func Inside() bool { return os.Getenv(insideEnv) != "" }

// NeedInside skips a test outside of the namespaces of [MainInside], and only where they cannot be had.
func NeedInside(t testing.TB) {
	t.Helper()
	if !Inside() {
		Need(t, Net())
		t.Fatal("the test binary did not start itself again in namespaces of its own")
	}
}
