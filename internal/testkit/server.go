package testkit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// readyPrefix begins the one line on standard output that says that the API answers.
	readyPrefix = "endpointd is ready:"
	// stopGrace is how long a server may take to end on SIGTERM.
	stopGrace = 20 * time.Second
	// shownLog is how many bytes at the end of the log a failing test shows.
	shownLog = 32 << 10
)

// ServerOptions say how to start `endpointd server`. The zero value is a server with embedded etcd, a new
// data folder and a free port.
type ServerOptions struct {
	Binary  string        // default: Binary(t)
	DataDir string        // default: a new temporary folder
	Listen  string        // host:port; default: a free port of 127.0.0.1
	Args    []string      // more flags, after --data-dir and --listen
	Env     []string      // more environment, as NAME=value
	Ready   time.Duration // longest wait for the ready line; default one minute
}

// A ServerProcess is a running `endpointd server`. Its methods are for the goroutine of the test.
type ServerProcess struct {
	DataDir    string
	Listen     string        // host:port
	Kubeconfig string        // DataDir/admin.kubeconfig
	ReadyAfter time.Duration // exec → ready line
	PID        int           // of the running process

	t       testing.TB
	home    string // HOME of the server and of kubectl
	options ServerOptions
	log     lockedBuffer // standard output and error of every start
	child   *child       // nil when stopped
}

// Server starts `endpointd server` and returns when it says that it is ready. It is stopped when the test
// ends; if the test has failed, the end of its log is shown.
func Server(t testing.TB, options ServerOptions) *ServerProcess {
	t.Helper()
	s := &ServerProcess{t: t, home: t.TempDir(), options: options, DataDir: options.DataDir, Listen: options.Listen}
	if s.options.Binary == "" {
		s.options.Binary = Binary(t)
	}
	if s.options.Ready == 0 {
		s.options.Ready = time.Minute
	}
	if s.DataDir == "" {
		s.DataDir = filepath.Join(s.home, "data")
	}
	if s.Listen == "" {
		s.Listen = freePort(t)
	}
	s.Kubeconfig = filepath.Join(s.DataDir, "admin.kubeconfig")
	t.Cleanup(func() {
		if s.child != nil {
			_ = s.end(syscall.SIGTERM) // a test that cares about a clean end calls Stop
		}
		if t.Failed() {
			t.Logf("log of endpointd server in %s:\n%s", s.DataDir, tail(s.log.String()))
		}
	})
	s.Start()
	return s
}

// Start starts a stopped server again, on the same folder and port.
func (s *ServerProcess) Start() {
	s.t.Helper()
	if err := s.start(); err != nil {
		s.t.Fatalf("start endpointd server: %v", err)
	}
}

// Stop ends the server with SIGTERM. The test fails unless it ends in time and with exit code 0.
func (s *ServerProcess) Stop() {
	s.t.Helper()
	if s.child == nil {
		s.t.Fatal("stop endpointd server: it does not run")
	}
	if err := s.end(syscall.SIGTERM); err != nil {
		s.t.Errorf("stop endpointd server: %v", err)
	}
}

// Kill ends the server with SIGKILL and returns when it is gone.
func (s *ServerProcess) Kill() {
	s.t.Helper()
	if s.child == nil {
		s.t.Fatal("kill endpointd server: it does not run")
	}
	_ = s.end(syscall.SIGKILL) // its error is that it was killed
}

// Log returns what the server has printed so far, over all its starts.
func (s *ServerProcess) Log() string { return s.log.String() }

// Done is closed when the process that runs now has ended, whoever ended it.
func (s *ServerProcess) Done() <-chan struct{} { return s.child.done }

// Ended waits for a server that ends by itself and returns how it did: nil is exit code 0. It may be started again.
func (s *ServerProcess) Ended() error {
	s.t.Helper()
	if s.child == nil {
		s.t.Fatal("wait for endpointd server: it does not run")
	}
	c := s.child
	s.child = nil
	<-c.done
	return c.err
}

func (s *ServerProcess) start() error {
	if s.child != nil {
		return errors.New("it runs already")
	}
	args := append([]string{"server", "--data-dir", s.DataDir, "--listen", s.Listen}, s.options.Args...)
	cmd := exec.Command(s.options.Binary, args...)
	cmd.Env = append(environment(s.home), s.options.Env...)
	started := time.Now()
	c, err := startChild(cmd, &s.log)
	if err != nil {
		return err
	}
	s.child, s.PID = c, cmd.Process.Pid
	late := time.NewTimer(s.options.Ready)
	defer late.Stop()
	select {
	case <-c.ready:
		s.ReadyAfter = time.Since(started)
		return nil
	case <-c.done:
		s.child = nil
		return fmt.Errorf("it ended before it was ready (%v):\n%s", c.cmd.ProcessState, tail(s.log.String()))
	case <-late.C:
		_ = s.end(syscall.SIGKILL)
		return fmt.Errorf("no line %q after %v:\n%s", readyPrefix, s.options.Ready, tail(s.log.String()))
	}
}

func (s *ServerProcess) end(signal os.Signal) error {
	c := s.child
	s.child = nil
	if err := c.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case <-c.done:
		return c.err
	case <-grace.C:
		_ = c.cmd.Process.Kill() // it may have ended just now
		<-c.done
		return fmt.Errorf("did not end within %v of %v, killed", stopGrace, signal)
	}
}

// A child is a started process whose standard output is watched for the ready line.
type child struct {
	cmd   *exec.Cmd
	ready chan struct{} // closed at the ready line
	done  chan struct{} // closed when the process is gone and its output read
	err   error         // how it ended; valid after done
}

// startChild starts cmd in a goroutine that stays on its thread until the process is gone: the kernel kills
// the child when that thread ends, so a test binary that dies (timeout, panic) leaves no server behind.
func startChild(cmd *exec.Cmd, log io.Writer) (*child, error) {
	c := &child{cmd: cmd, ready: make(chan struct{}), done: make(chan struct{})}
	cmd.Stderr = log
	cmd.Stdout = &readyWriter{to: log, ready: c.ready}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.WaitDelay = 5 * time.Second
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(c.done)
		}
	}()
	return c, <-started
}

// readyWriter passes everything on and closes ready at the end of the line that begins with readyPrefix.
type readyWriter struct {
	to    io.Writer
	ready chan struct{}
	line  []byte // the part of the current line that was written so far
	seen  bool
}

func (w *readyWriter) Write(p []byte) (int, error) {
	n, err := w.to.Write(p) // first: whoever waits for ready finds the line in the log
	for rest := p; !w.seen && len(rest) > 0; {
		advance, _, _ := bufio.ScanLines(rest, false)
		if advance == 0 {
			w.line = append(w.line, rest...)
			break
		}
		w.line = append(w.line, rest[:advance]...)
		rest = rest[advance:]
		if bytes.HasPrefix(w.line, []byte(readyPrefix)) {
			w.seen = true
			close(w.ready)
		}
		w.line = w.line[:0]
	}
	return n, err
}

// lockedBuffer is a bytes.Buffer that one goroutine may read while another writes.
type lockedBuffer struct {
	mu     sync.Mutex // guards buffer
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// environment is ours without what would lead a child to the user's own clusters and caches.
func environment(home string) []string {
	var env []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if name != "HOME" && name != "KUBECONFIG" && !strings.HasPrefix(name, "XDG_") {
			env = append(env, entry)
		}
	}
	return append(env, "HOME="+home)
}

// freePort returns a port of 127.0.0.1 that nobody uses. Somebody may take it before the caller does; ports
// come from a wide range, so that hardly happens.
func freePort(t testing.TB) string {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	return address
}

func tail(log string) string {
	if len(log) <= shownLog {
		return log
	}
	return "…" + log[len(log)-shownLog:]
}
