// Package program builds upstream's programs for tests that compare us with them.
//
// What it is: [Build]. In: the name of a folder of test/oracle, which is a module of its own. Out: .cache/bin/NAME. Invariants: one process builds at
// a time; with nothing changed it is a look into Go's cache. It refuses to download by itself what Go would not. How to test: by its users.
package program

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/endpointd/endpointd/internal/testkit"
)

// limit bounds a build with nothing in Go's cache. After that of endpointd kube-proxy takes 20 seconds on two cores, and CoreDNS a minute.
const limit = 15 * time.Minute

// Build makes the program and returns its path.
func Build(folder, name string) (path string, err error) {
	root, err := testkit.Root()
	if err != nil {
		return "", err
	}
	path = filepath.Join(root, ".cache", "bin", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, lock.Close()) }() // closing unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", path, ".")
	cmd.Dir = filepath.Join(root, "test", "oracle", folder)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as endpointd, with which it shares what is compiled
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return path, nil
}
