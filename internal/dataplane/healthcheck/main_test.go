package healthcheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/endpointd/endpointd/internal/testkit"
)

// insideEnv tells the test binary that it runs in namespaces made for it.
const insideEnv = "HEALTHCHECK_TEST_INSIDE"

// TestMain runs the tests in a network namespace of their own, where every port is free.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		if err := loopback(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		testkit.Main(m)
	}
	if testkit.Net().Probe(context.Background()) != nil {
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

func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func needNamespace(t *testing.T) {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		testkit.Need(t, testkit.Net())
		t.Fatal("the test binary did not start itself again in a namespace of its own")
	}
}
