package cgroup

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/endpointd/endpointd/internal/node/container"
)

func TestFind(t *testing.T) {
	for _, test := range []struct{ name, mountinfo, want string }{
		{"none", "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n", ""},
		{"alone", "25 30 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"},
		{"beside v1", "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			"/sys/fs/cgroup/unified"},
		{"space", `25 30 0:26 / /my\040groups rw - cgroup2 none rw` + "\n", "/my groups"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, ok := find([]byte(test.mountinfo))
			if got != test.want || ok != (test.want != "") {
				t.Errorf("found %q, %v; want %q", got, ok, test.want)
			}
		})
	}
}

// TestLimit writes to plain files in place of the kernel's.
func TestLimit(t *testing.T) {
	dir := t.TempDir()
	for _, file := range []string{"cpu.max", "cpu.weight", "memory.max"} { // pids.max is not there
		if err := os.WriteFile(filepath.Join(dir, file), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := container.Resources{CPUMillis: 250, CPUShares: 1024, MemoryBytes: 4096, PIDs: 7}
	if err := Limit(dir, r); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"cpu.max": "25000 100000", "cpu.weight": "39", "memory.max": "4096"} {
		if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", file, got, err, want)
		}
	}
}

func TestOOMKilled(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]bool{"low 0\noom 1\noom_kill 0\n": false, "oom 3\noom_kill 2\noom_group_kill 0\n": true} {
		if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := OOMKilled(dir); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
