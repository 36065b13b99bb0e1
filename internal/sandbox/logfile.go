package sandbox

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// maxLog is the size in bytes at which a log file is set aside as NAME.log.1.
const maxLog = 10 << 20

// logFile is a file of bounded size. Writing to it never fails: a part must not end because a disk is full.
type logFile struct {
	path string
	max  int64

	mu   sync.Mutex // guards what follows
	file *os.File
	size int64
}

// OpenLog opens a file that is set aside before it grows too large. Writing to it never fails.
func OpenLog(path string) (io.WriteCloser, error) { return openLog(path) }

func openLog(path string) (*logFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	l := &logFile{path: path, max: maxLog}
	return l, l.open()
}

func (l *logFile) open() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return err
	}
	l.file, l.size = file, info.Size()
	return nil
}

func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > l.max {
		old := l.file
		if err := os.Rename(l.path, l.path+".1"); err == nil && l.open() == nil {
			_ = old.Close() // what it could not write is lost
		}
	}
	n, _ := l.file.Write(p)
	l.size += int64(n)
	return len(p), nil
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}

// part is the log of a part that is started again and again: one pipe for all its lives.
type part struct {
	write   *os.File // what children have as their standard output and error
	copying sync.WaitGroup
	read    *os.File
	log     *logFile
}

func newPart(path string) (*part, error) {
	log, err := openLog(path)
	if err != nil {
		return nil, err
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		_ = log.Close()
		return nil, err
	}
	// Our end waits in the poller, so that Close ends a Read; the children's end blocks, as programs expect it.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = log.Close()
		return nil, err
	}
	p := &part{read: os.NewFile(uintptr(fds[0]), path), write: os.NewFile(uintptr(fds[1]), path), log: log}
	p.copying.Go(func() { _, _ = io.Copy(log, p.read) }) // it ends when close closes its end
	return p, nil
}

// close is for when no child is left, or nobody cares.
func (p *part) close(logger *slog.Logger) {
	_ = p.write.Close()
	_ = p.read.Close()
	p.copying.Wait()
	if err := p.log.Close(); err != nil {
		logger.Warn("close the log", "err", err)
	}
}
