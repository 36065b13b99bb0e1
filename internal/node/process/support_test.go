package process_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/testkit"
)

// awaitOutput waits until a container has written something.
func awaitOutput(t *testing.T, r container.Runtime, c container.Container, want string) {
	t.Helper()
	testkit.Await(t, patience, func() error {
		if _, err := os.Stat(r.LogFile(c.Pod, c.Name, c.Attempt)); err != nil {
			return err
		}
		if got := output(t, r, c); !strings.Contains(got, want) {
			return fmt.Errorf("output is %q, want %q in it", got, want)
		}
		return nil
	})
}

// processes counts those whose command line holds a text. The /proc here is that of the tests' own namespace.
func processes(t *testing.T, text string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, entry := range entries {
		data, err := os.ReadFile("/proc/" + entry.Name() + "/cmdline")
		if err == nil && strings.Contains(string(data), text) {
			n++
		}
	}
	return n
}

func readlink(t *testing.T, path string) string {
	t.Helper()
	to, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// mountTmpfs mounts memory for the time of a test, in the tests' own namespace.
func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
