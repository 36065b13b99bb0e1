package etcd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"go.uber.org/zap/zapcore"
)

const (
	// etcd preallocates one log segment of 64 MB and the next one beside it; the rest is for the database.
	spaceNew = 160 << 20
	// An existing folder already holds its current segment.
	spaceAgain = 80 << 20
)

// failure takes etcd's last words. It is the hook behind zap's Fatal and Panic.
type failure struct {
	dir  string
	errc chan error    // buffered, holds at most one error
	done chan struct{} // holds one token once something failed
}

func newFailure(dir string) *failure {
	return &failure{dir: dir, errc: make(chan error, 1), done: make(chan struct{}, 1)}
}

func (f *failure) failed() bool { return len(f.done) > 0 }

// OnWrite keeps the first error and never returns. Going on would acknowledge writes that are not on disk; exiting here would
// skip the one line that the user needs; unwinding would run etcd's deferred calls on the broken log. The goroutine is left parked
// for the little time that the process still lives.
func (f *failure) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := errors.New(entry.Message)
	for _, field := range fields {
		if cause, ok := field.Interface.(error); ok && field.Type == zapcore.ErrorType {
			err = fmt.Errorf("%s: %w", entry.Message, cause)
		}
	}
	select {
	case f.done <- struct{}{}:
		f.errc <- explain(f.dir, err)
	default:
	}
	select {}
}

// explain turns an error about the folder into one line with the next step.
func explain(dir string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("etcd data %s: %w: free some space there, or choose another folder with --data-dir", dir, err)
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("etcd data %s: %w: make the folder writable for this user (uid %d), or choose another one with --data-dir", dir, err, os.Getuid())
	case errors.Is(err, syscall.EIO):
		return fmt.Errorf("etcd data %s: %w: the disk reports errors; check it (dmesg), then restore the folder from a backup", dir, err)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, fs.ErrExist):
		return fmt.Errorf("etcd data %s: %w: choose a folder with --data-dir", dir, err)
	}
	return fmt.Errorf("etcd data %s: %w: restore the folder from a backup, or move it away to start empty", dir, err)
}

// checkSpace refuses to start where etcd would fail in the middle of writing its log.
func checkSpace(dir string) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return explain(dir, err)
	}
	need := uint64(spaceAgain)
	if _, err := os.Stat(filepath.Join(dir, "member", "wal")); err != nil {
		need = spaceNew
	}
	return enough(dir, st.Bavail*uint64(st.Bsize), need)
}

func enough(dir string, free, need uint64) error {
	if free >= need {
		return nil
	}
	return explain(dir, fmt.Errorf("%w (%d MB free, etcd needs %d MB)", syscall.ENOSPC, free>>20, need>>20))
}
