package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/endpointd/endpointd/internal/testkit"
)

func start(t *testing.T, dir string) *Server {
	t.Helper()
	s, err := Start(t.Context(), Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func client(t *testing.T, s *Server) *clientv3.Client {
	t.Helper()
	c, err := Open(External{Servers: s.Endpoints()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestStartKeepsWritesOverRestart(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for name, dir := range map[string]string{
		"plain":         "etcd",
		"long":          strings.Repeat("a-rather-long-folder-name/", 8) + "etcd",
		"odd character": "with space, comma=and ümlaut%2F",
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), dir)
			for i := range 2 {
				s, err := Start(t.Context(), Options{Dir: dir})
				if err != nil {
					t.Fatal(err)
				}
				c, err := Open(External{Servers: s.Endpoints()})
				if err != nil {
					t.Fatal(err)
				}
				got, err := Store{c}.CreateOnce(t.Context(), "k", fmt.Append(nil, "start ", i))
				if err != nil || string(got) != "start 0" {
					t.Errorf("start %d: key k = %q, %v; want the value of the first start", i, got, err)
				}
				_ = c.Close()
				s.Close()
			}
		})
	}
}

// What etcd says at every start and stop is for debugging; between, its warnings count.
func TestLogLevels(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	s, err := Start(t.Context(), Options{Dir: filepath.Join(t.TempDir(), "etcd"), Logger: logger})
	check(t, err)
	s.Close()
	if log.Len() > 0 {
		t.Errorf("a start and a stop say:\n%s", &log)
	}
	var serving atomic.Bool
	serving.Store(true)
	l := newZap(logger, newFailure("/data"), &serving)
	l.Named("bbolt").Error("writing data failed")
	l.Warn("slow fdatasync", zap.Duration("took", time.Second), zap.Error(syscall.EIO))
	if got, want := log.String(), `level=WARN msg="slow fdatasync" component=etcd took=1s err="input/output error"`; !strings.Contains(got, want) || strings.Contains(got, "writing data") {
		t.Errorf("got %s want only %s", got, want)
	}
}

func TestOnlyTheOwnerCanReachIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	start(t, dir)
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("%s has mode %v, want 0700: the socket lies in it", dir, info.Mode().Perm())
	}
	if n := len(listeners(t)); n != 1 {
		t.Errorf("%d listeners, want 1: the client socket; got %v", n, listeners(t))
	}
}

// listeners are the addresses of all listening sockets of this process: unix paths, abstract names as @…, TCP as tcp.
func listeners(t *testing.T) []string {
	t.Helper()
	ours := map[string]bool{} // inode → is open here
	fds, err := filepath.Glob("/proc/self/fd/*")
	check(t, err)
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, "socket:[") {
			ours[strings.Trim(target, "socket:[]")] = true
		}
	}
	var out []string
	for file, inode := range map[string]int{"unix": 6, "tcp": 9, "tcp6": 9} {
		text, err := os.ReadFile("/proc/self/net/" + file)
		check(t, err)
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) <= inode || !ours[f[inode]] {
				continue
			}
			// SO_ACCEPTCON is a flag in field 4 of unix; 0A is LISTEN in field 4 of tcp.
			if file == "unix" && f[3] == "00010000" {
				out = append(out, f[len(f)-1])
			} else if file != "unix" && f[3] == "0A" {
				out = append(out, "tcp")
			}
		}
	}
	return out
}

func TestReadyQuickly(t *testing.T) {
	begin := time.Now()
	start(t, filepath.Join(t.TempDir(), "etcd"))
	took := time.Since(begin)
	t.Logf("ready after %v", took)
	// etcd's default election timeout alone is 1 s. The bound leaves room for a busy machine.
	if took > 700*time.Millisecond {
		t.Errorf("ready after %v", took)
	}
}

func TestStartErrorsSayWhatToDo(t *testing.T) {
	tests := map[string]struct {
		prepare func(t *testing.T, dir string)
		want    string
	}{
		"a file where the folder should be": {
			func(t *testing.T, dir string) { write(t, dir, "") },
			"not a directory: choose a folder with --data-dir",
		},
		"a database of garbage": {
			func(t *testing.T, dir string) {
				s := start(t, dir)
				s.Close()
				write(t, filepath.Join(dir, "member", "snap", "db"), strings.Repeat("garbage", 10_000))
			},
			"restore the folder from a backup, or move it away to start empty",
		},
		"a log of garbage": {
			func(t *testing.T, dir string) {
				s := start(t, dir)
				s.Close()
				logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
				if err != nil || len(logs) == 0 {
					t.Fatal("no log files", err)
				}
				write(t, logs[0], strings.Repeat("garbage", 10_000))
			},
			"restore the folder from a backup, or move it away to start empty",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "etcd")
			test.prepare(t, dir)
			s, err := Start(t.Context(), Options{Dir: dir})
			if err == nil {
				s.Close()
				t.Fatal("started")
			}
			text := err.Error()
			t.Log(text)
			if !strings.Contains(text, dir) || !strings.HasSuffix(text, test.want) || strings.Contains(text, "\n") {
				t.Errorf("got %q\nwant one line with %q that ends in %q", text, dir, test.want)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestExplain(t *testing.T) {
	tests := map[string]struct {
		err  error
		want string
	}{
		"full":      {syscall.ENOSPC, "free some space there"},
		"quota":     {syscall.EDQUOT, "free some space there"},
		"read-only": {syscall.EROFS, "make the folder writable"},
		"denied":    {&fs.PathError{Op: "open", Path: "f", Err: syscall.EACCES}, "make the folder writable"},
		"broken":    {syscall.EIO, "check it (dmesg)"},
		"other":     {errors.New("crc mismatch"), "restore the folder"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := explain("/data", test.err)
			if !errors.Is(err, test.err) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "/data") {
				t.Errorf("got %q, want %q in it", err, test.want)
			}
		})
	}
	if err := enough("/data", 10<<20, spaceNew); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "10 MB free, etcd needs 160 MB") {
		t.Errorf("10 MB free: %v", err)
	}
	if err := enough("/data", spaceNew, spaceNew); err != nil {
		t.Errorf("just enough: %v", err)
	}
}

// A Fatal of etcd must neither exit nor return: after it, nothing may be acknowledged.
func TestFatalParksAndReportsOnce(t *testing.T) {
	f := newFailure("/data")
	l := newZap(slog.New(slog.DiscardHandler), f, new(atomic.Bool))
	returned := make(chan struct{})
	for range 2 {
		go func() {
			l.Fatal("failed to save hard state", zap.Error(syscall.ENOSPC))
			close(returned)
		}()
	}
	select {
	case err := <-f.errc:
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "failed to save hard state") {
			t.Errorf("got %v", err)
		}
	case <-returned:
		t.Fatal("Fatal returned")
	}
	if !f.failed() {
		t.Error("failed() is false")
	}
	select {
	case err := <-f.errc:
		t.Errorf("a second error: %v", err)
	case <-returned:
		t.Error("Fatal returned")
	default:
	}
}

const fullDiskDir = "ENDPOINTD_TEST_FULL_DISK"

// TestFullDisk fills a real file system under a running etcd: a tmpfs in namespaces of its own, in a child process.
func TestFullDisk(t *testing.T) {
	if dir := os.Getenv(fullDiskDir); dir != "" {
		fillDisk(t, dir)
		return
	}
	testkit.Need(t, testkit.Mount())
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFullDisk$", "-test.v")
	cmd.Env = append(os.Environ(), fullDiskDir+"="+dir)
	cmd.SysProcAttr = testkit.AsRootOf(syscall.CLONE_NEWNS)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestFullDisk") {
		t.Fatalf("%v\n%s", err, out)
	}
}

func fillDisk(t *testing.T, dir string) {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=150m"); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Options{Dir: dir})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("150 MB disk: %v", err)
	}
	t.Log(err)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=170m"); err != nil {
		t.Fatal(err)
	}
	s := start(t, dir)
	c := client(t, s)
	value := strings.Repeat("x", 1<<20)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	go func() {
		for i := range 1000 {
			if _, err := c.Put(ctx, fmt.Sprint("k", i), value); err != nil {
				return
			}
		}
	}()
	select {
	case err := <-s.Err():
		t.Log(err)
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free some space") || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v", err)
		}
		closed := time.Now()
		s.Close()
		if took := time.Since(closed); took > time.Second {
			t.Errorf("Close took %v after a failure", took)
		}
	case <-ctx.Done():
		t.Error("a full disk went unnoticed")
	}
}
