package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Lock is the right to have a sandbox in a data folder. The kernel releases it with the process.
type Lock struct {
	file *os.File
}

// RunningError says that a folder's sandbox is there.
type RunningError struct {
	DataDir string
	PID     int // of the host side; 0 = unknown
}

func (e *RunningError) Error() string {
	return fmt.Sprintf("data folder %s: a sandbox runs here already (pid %d): see `endpointd status`, end it with `endpointd down`, or choose another folder with --data-dir",
		e.DataDir, e.PID)
}

func lockFile(dataDir string) string { return filepath.Join(dataDir, "up.lock") }

// Acquire makes the folders and takes the lock, or returns a *RunningError.
func Acquire(dataDir string) (*Lock, error) {
	for _, dir := range []string{dataDir, runDir(dataDir), filepath.Join(dataDir, "logs")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("data folder %s: %w: choose another one with --data-dir", dataDir, err)
		}
	}
	l, err := tryLock(dataDir)
	if err != nil {
		return nil, err
	}
	if err = l.file.Truncate(0); err == nil {
		_, err = l.file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		l.Release()
		return nil, err
	}
	return l, nil
}

func tryLock(dataDir string) (*Lock, error) {
	file, err := os.OpenFile(lockFile(dataDir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data folder %s: %w: choose another one with --data-dir", dataDir, err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return &Lock{file: file}, nil
	}
	defer file.Close() //nolint:errcheck // read only
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	text, _ := io.ReadAll(io.LimitReader(file, 20))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text))) // 0 = it has not written yet
	return nil, &RunningError{DataDir: dataDir, PID: pid}
}

// Release gives the folder back.
func (l *Lock) Release() { _ = l.file.Close() }

// downGrace is how long a sandbox may take to end; it needs less.
const downGrace = stopGrace + 5*time.Second

// Down ends the sandbox of a folder and returns when all is gone and what was left is removed. It reports whether one ran.
func Down(ctx context.Context, dataDir string) (ran bool, err error) {
	if _, err := os.Stat(lockFile(dataDir)); errors.Is(err, fs.ErrNotExist) {
		return false, nil // there never was one
	}
	deadline := time.NewTimer(downGrace)
	defer deadline.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	told := 0
	for {
		lock, err := tryLock(dataDir)
		var running *RunningError
		switch {
		case err == nil:
			defer lock.Release()
			return ran, Clean(dataDir)
		case !errors.As(err, &running):
			return ran, err
		}
		ran = true
		if running.PID != told && holds(running.PID, lockFile(dataDir)) {
			if err := syscall.Kill(running.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				return ran, fmt.Errorf("end pid %d: %w", running.PID, err)
			}
			told = running.PID
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ran, ctx.Err()
		case <-deadline.C:
			if told == 0 {
				return ran, fmt.Errorf("data folder %s: its sandbox runs where this process cannot see it: end it there", dataDir)
			}
			_ = syscall.Kill(told, syscall.SIGKILL) // it may have ended
			deadline.Reset(downGrace)
		}
	}
}

// holds says whether the process has the file open: a pid in a file may be of another PID namespace, or of another life.
func holds(pid int, file string) bool {
	want, err := os.Stat(file)
	if err != nil || pid <= 1 {
		return false
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // the pattern is right
	for _, fd := range fds {
		if have, err := os.Stat(fd); err == nil && os.SameFile(want, have) {
			return true
		}
	}
	return false
}

// Clean removes what a sandbox that was killed leaves: its sockets and its cgroups, with whatever is in them. Call it
// with the lock.
func Clean(dataDir string) error {
	err := os.Remove(filepath.Join(runDir(dataDir), controlName))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	left, _ := filepath.Glob(filepath.Join(runDir(dataDir), "*"+keptSuffix)) // the pattern is right
	for _, socket := range left {
		err = errors.Join(err, os.Remove(socket))
	}
	return errors.Join(err, removeCgroup(dataDir))
}
