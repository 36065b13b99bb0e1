package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// cgroupMount is where cgroup v2 is mounted, "" if it is not (proc_pid_mountinfo(5)).
func cgroupMount(mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) > 4 && len(kind) > 0 && kind[0] == "cgroup2" {
			return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`).Replace(fields[4])
		}
	}
	return ""
}

// cgroupPath is the sandbox's own cgroup, "" where there is no cgroup v2.
func cgroupPath(dataDir string) string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	mount := cgroupMount(string(text))
	if mount == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(dataDir))
	return filepath.Join(mount, "endpointd-"+hex.EncodeToString(sum[:6]))
}

// MakeCgroups makes a cgroup for each node, with the controllers that the machine hands down, and returns their paths. Where
// it may not, or there is no cgroup v2, there are none: resources are not limited then.
func MakeCgroups(dataDir string, nodes []Node) map[string]string {
	root := cgroupPath(dataDir)
	if root == "" {
		return nil
	}
	paths := map[string]string{}
	if err := os.Mkdir(root, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil
	}
	handDown(root)
	for _, n := range nodes {
		path := filepath.Join(root, n.Name)
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return paths
		}
		paths[n.Name] = path
	}
	return paths
}

// handDown gives every controller that a cgroup has to those below it.
func handDown(cgroup string) {
	text, err := os.ReadFile(filepath.Join(cgroup, "cgroup.controllers"))
	if err != nil {
		return
	}
	for controller := range strings.FieldsSeq(string(text)) {
		// One by one: a controller that can not be handed down does not keep the others.
		_ = os.WriteFile(filepath.Join(cgroup, "cgroup.subtree_control"), []byte("+"+controller), 0)
	}
}

// cgroupGrace is how long the kernel may take to end what was killed.
const cgroupGrace = 2 * time.Second

// removeCgroup kills what is in the sandbox's cgroup, and removes it with all below.
func removeCgroup(dataDir string) error {
	root := cgroupPath(dataDir)
	if root == "" {
		return nil
	}
	if _, err := os.Stat(root); err != nil {
		return nil //nolint:nilerr // there is none
	}
	_ = os.WriteFile(filepath.Join(root, "cgroup.kill"), []byte("1"), 0) // since Linux 5.14; mostly it is empty
	deadline := time.Now().Add(cgroupGrace)
	for {
		err := removeTree(root)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// removeTree removes folders from below; a cgroup's files go with it.
func removeTree(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", root, err)
	}
	slices.Reverse(dirs)
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cgroup %s: %w", dir, err)
		}
	}
	return nil
}
