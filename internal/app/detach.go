package app

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/endpointd/endpointd/internal/sandbox"
)

// ProgressEnd begins the last line that a detached RunUp reports when all is ready; what follows is for the one who waits.
const ProgressEnd = "ready "

// Detach runs this program in the background with the given arguments and returns what it says last when all is ready. It
// reports its progress on descriptor 3, a line a step, which go to show; its log lies in the data folder.
func Detach(ctx context.Context, dataDir string, args []string, show func(line string)) (string, error) {
	dataDir, err := filepath.Abs(dataDir)
	if err != nil {
		return "", err
	}
	path := sandbox.LogFile(dataDir, "up")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", folderError(dataDir, err)
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return "", folderError(dataDir, err)
	}
	defer log.Close() //nolint:errcheck // the child has its own
	read, write, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer read.Close()                              //nolint:errcheck // read only
	cmd := exec.Command(sandbox.Program(), args...) //nolint:gosec,noctx // this very program, which is to outlive us
	cmd.Args[0] = "endpointd"
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{write}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = write.Close() // the child has its own
	if err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) }) // it may have ended
	defer stop()
	lines := bufio.NewScanner(read)
	for lines.Scan() {
		if last, ready := strings.CutPrefix(lines.Text(), ProgressEnd); ready {
			return last, nil
		}
		show(lines.Text())
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if said := lastLine(path); said != "" {
		return "", errors.New(said)
	}
	return "", fmt.Errorf("it ended before all was ready: %w", errors.Join(err, lines.Err()))
}
