package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/shim/cgroup"
)

// cgroupPath is the sandbox's own cgroup, "" where there is no cgroup v2.
func cgroupPath(dataDir string) string {
	mount, ok := cgroup.Find()
	if !ok {
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
	_, _ = cgroup.Delegate(root) // what the machine does not hand down, the agents say
	for _, n := range nodes {
		path := filepath.Join(root, n.Name)
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return paths
		}
		paths[n.Name] = path
	}
	return paths
}

// leaf is the cgroup of one command on a node, beside those of its pods: the node's data plane leads its connections as it does theirs. Nil is none.
type leaf struct {
	path string
	dir  *os.File
}

// newLeaf makes one below a node's cgroup, nil where it cannot.
func newLeaf(node string) *leaf {
	if node == "" {
		return nil
	}
	path, err := os.MkdirTemp(node, "exec-")
	if err != nil {
		return nil
	}
	dir, err := os.Open(path)
	if err != nil {
		_ = os.Remove(path)
		return nil
	}
	return &leaf{path, dir}
}

// remove returns when nothing is left in it and it is gone, or when ctx ends; Clean removes it then.
func (l *leaf) remove(ctx context.Context) {
	for wait := time.Millisecond; !l.gone(); wait = min(2*wait, leafPeriod) {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// leafPeriod is between two looks at what a command left in the background.
const leafPeriod = time.Second

// gone removes it if no process is left in it.
func (l *leaf) gone() bool { return !errors.Is(unix.Rmdir(l.path), unix.EBUSY) }

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
