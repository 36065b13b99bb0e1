package process_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/process"
	"github.com/endpointd/endpointd/internal/testkit"
)

// TestCgroup has a group for each pod and each container, which end what runs in them and go with them.
func TestCgroup(t *testing.T) {
	group := testGroup(t)
	r := newRuntime(t, process.Options{Cgroup: group})
	for name, sandbox := range map[string]container.Sandbox{
		"own": {}, "shared": {ShareProcessNamespace: true}, "node's": {HostPID: true},
	} {
		t.Run(name+" processes", func(t *testing.T) {
			sandbox.UID = "uid-1"
			sandbox.Resources = container.Resources{CPUMillis: 500, CPUShares: 100, MemoryBytes: 1 << 28, PIDs: 100}
			startPod(t, r, sandbox)
			c := shell("(setsid sleep 9999 &); sleep 9999")
			c.Resources = sandbox.Resources
			start(t, r, c)
			members := filepath.Join(group, "uid-1", "c-main", "cgroup.procs")
			testkit.Await(t, patience, func() error {
				data, err := os.ReadFile(members)
				if n := strings.Count(string(data), "\n"); err == nil && n < 3 {
					return fmt.Errorf("%d processes in the group", n)
				}
				return err
			})
			if code, _ := execute(t, r, "sh", "-c", "grep -q c-main /proc/self/cgroup"); code != 0 {
				t.Error("exec runs outside of the container's group")
			}
			if err := r.Signal(t.Context(), "uid-1", "main", 9); err != nil {
				t.Fatal(err)
			}
			if status := nextExit(t, r); status.Signal != 9 || status.OOMKilled {
				t.Errorf("exit is %+v", status)
			}
			testkit.Await(t, patience, func() error {
				if _, err := os.Stat(members); !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("the container's group is there: %w", err)
				}
				return nil
			})
			c.Attempt = 1
			start(t, r, c)
			if err := r.RemovePod(t.Context(), "uid-1"); err != nil {
				t.Fatal(err)
			}
			if n := processes(t, "sleep\x009999"); n != 0 {
				t.Errorf("%d processes are left", n)
			}
			entries, err := os.ReadDir(group)
			if err != nil {
				t.Fatal(err)
			}
			for _, entry := range entries {
				if entry.IsDir() {
					t.Errorf("group %s is left", entry.Name())
				}
			}
		})
	}
}

// testGroup makes a group for one test, where the machine lets this user.
func testGroup(t *testing.T) string {
	t.Helper()
	mountpoint, ok := process.FindCgroup2()
	if !ok {
		t.Skip("no cgroup v2")
	}
	group, err := os.MkdirTemp(mountpoint, "endpointd-test-") //nolint:usetesting // groups are made in one place alone
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, os.ErrInvalid) || err != nil && os.Getenv(inside) == worldUser {
		t.Skip("this user may not make a cgroup:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	return group
}

// TestNoCgroup sees that a group that cannot be made is done without.
func TestNoCgroup(t *testing.T) {
	r := newRuntime(t, process.Options{Cgroup: filepath.Join(write(t, filepath.Join(t.TempDir(), "file"), ""), "group")})
	startPod(t, r, container.Sandbox{Resources: container.Resources{MemoryBytes: 1}})
	if status, _ := run(t, r, shell("exit 3")); status.ExitCode != 3 {
		t.Errorf("exit is %+v", status)
	}
}
