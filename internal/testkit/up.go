package testkit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// UpOptions say how to start `endpointd up`. The zero value is two nodes, a new data folder and a free port.
type UpOptions struct {
	Binary  string        // default: Binary(t)
	DataDir string        // default: a new temporary folder
	Nodes   int           // default: 2; negative is none
	Args    []string      // more flags
	Env     []string      // more environment, as NAME=value
	Ready   time.Duration // longest wait for the ready line; default one minute
	// SysProcAttr is for another user, say; its Pdeathsig is set.
	SysProcAttr *syscall.SysProcAttr
}

// An UpProcess is a running `endpointd up`. Its methods are for the goroutine of the test.
type UpProcess struct {
	DataDir    string
	Kubeconfig string        // DataDir/admin.kubeconfig
	ReadyAfter time.Duration // exec → ready line
	PID        int           // of the host side

	t       testing.TB
	server  *ServerProcess // for kubectl: never started
	options UpOptions
	log     lockedBuffer
	child   *child // nil when stopped
}

// Up starts `endpointd up` and returns when it says that server and nodes are ready. It is ended, and what it may have left is
// removed, when the test ends; if the test has failed, the end of every log is shown.
func Up(t testing.TB, options UpOptions) *UpProcess {
	t.Helper()
	u := &UpProcess{t: t, options: options, DataDir: options.DataDir}
	if u.options.Binary == "" {
		u.options.Binary = Binary(t)
	}
	if u.options.Ready == 0 {
		u.options.Ready = time.Minute
	}
	switch {
	case u.options.Nodes == 0:
		u.options.Nodes = 2
	case u.options.Nodes < 0:
		u.options.Nodes = 0
	}
	home := t.TempDir()
	if u.DataDir == "" {
		u.DataDir = filepath.Join(home, "data")
	}
	u.Kubeconfig = filepath.Join(u.DataDir, "admin.kubeconfig")
	u.server = &ServerProcess{t: t, DataDir: u.DataDir, Kubeconfig: u.Kubeconfig, home: home, options: ServerOptions{Binary: u.options.Binary}}
	t.Cleanup(func() {
		if u.child != nil {
			_ = u.end(syscall.SIGTERM) // a test that cares about a clean end calls Stop
		}
		if t.Failed() {
			u.showLogs()
		}
		_, _ = u.Try("down", "--data-dir", u.DataDir)
	})
	u.Start()
	return u
}

func (u *UpProcess) showLogs() {
	u.t.Logf("output of endpointd up in %s:\n%s", u.DataDir, tail(u.log.String()))
	files, _ := filepath.Glob(filepath.Join(u.DataDir, "logs", "*.log")) // the pattern is right
	for _, file := range files {
		text, _ := exec.Command("tail", "-c", "8000", file).Output() // best effort: the test has failed already
		u.t.Logf("%s:\n%s", filepath.Base(file), text)
	}
}

// Start starts it again on the same folder, after Stop, Kill or Down.
func (u *UpProcess) Start() {
	u.t.Helper()
	args := append([]string{"up", "--data-dir", u.DataDir, "--nodes", strconv.Itoa(u.options.Nodes), "--listen", "127.0.0.1:0"}, u.options.Args...)
	cmd := exec.Command(u.options.Binary, args...)
	cmd.Env = append(environment(u.server.home), u.options.Env...)
	if u.options.SysProcAttr != nil {
		attr := *u.options.SysProcAttr // startChild sets more
		cmd.SysProcAttr = &attr
	}
	started := time.Now()
	c, err := startChild(cmd, &u.log)
	if err != nil {
		u.t.Fatalf("start endpointd up: %v", err)
	}
	u.child, u.PID = c, cmd.Process.Pid
	late := time.NewTimer(u.options.Ready)
	defer late.Stop()
	select {
	case <-c.ready:
		u.ReadyAfter = time.Since(started)
	case <-c.done:
		u.child = nil
		u.t.Fatalf("endpointd up ended before it was ready (%v):\n%s", c.cmd.ProcessState, tail(u.log.String()))
	case <-late.C:
		_ = u.end(syscall.SIGKILL)
		u.t.Fatalf("endpointd up: no line %q after %v:\n%s", readyPrefix, u.options.Ready, tail(u.log.String()))
	}
}

func (u *UpProcess) end(signal syscall.Signal) error {
	s := &ServerProcess{child: u.child}
	u.child = nil
	return s.end(signal)
}

// Stop ends it with SIGTERM. The test fails unless it ends in time and with exit code 0.
func (u *UpProcess) Stop() {
	u.t.Helper()
	if err := u.end(syscall.SIGTERM); err != nil {
		u.t.Errorf("stop endpointd up: %v", err)
	}
}

// Kill ends the host side with SIGKILL, as an out-of-memory killer would, and returns when it is gone.
func (u *UpProcess) Kill() {
	u.t.Helper()
	_ = u.end(syscall.SIGKILL) // its error is that it was killed
}

// Down runs `endpointd down` and waits for the process to end.
func (u *UpProcess) Down(args ...string) Output {
	u.t.Helper()
	out, err := u.Try(append([]string{"down", "--data-dir", u.DataDir}, args...)...)
	if err != nil {
		u.t.Fatal(err)
	}
	if c := u.child; c != nil {
		u.child = nil
		<-c.done
		if c.err != nil {
			u.t.Errorf("endpointd up after down: %v", c.err)
		}
	}
	return out
}

// Log returns what `up` has printed so far.
func (u *UpProcess) Log() string { return u.log.String() }

// Server is for helpers that want one: it has the folder, the kubeconfig and both kubectls, and can not be started or stopped.
func (u *UpProcess) Server() *ServerProcess { return u.server }

// Kubectl is `endpointd kubectl` against this API.
func (u *UpProcess) Kubectl() Kubectl { return u.server.BuiltinKubectl() }

// In returns a copy that reports to another test, such as a subtest.
func (u *UpProcess) In(t testing.TB) *UpProcess {
	server := &ServerProcess{t: t, DataDir: u.DataDir, Kubeconfig: u.Kubeconfig, home: u.server.home, options: u.server.options}
	return &UpProcess{DataDir: u.DataDir, Kubeconfig: u.Kubeconfig, ReadyAfter: u.ReadyAfter, PID: u.PID, t: t, server: server, options: u.options, child: u.child}
}

// Command is any subcommand of the program, not started yet.
func (u *UpProcess) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(u.options.Binary, args...)
	cmd.Env = append(environment(u.server.home), u.options.Env...)
	cmd.SysProcAttr = u.options.SysProcAttr
	return cmd
}

// Try runs a subcommand that may fail.
func (u *UpProcess) Try(args ...string) (Output, error) {
	cmd := u.Command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("endpointd %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return Output{Stdout: stdout.String(), Stderr: stderr.String()}, err
}

// ExecArgs are the arguments of `endpointd exec` for a command on a node, or, with "", in the outer network.
func (u *UpProcess) ExecArgs(node string, command ...string) []string {
	return append([]string{"exec", "--data-dir", u.DataDir, "--node", node, "--"}, command...)
}

// Exec runs a command on a node, or, with "", in the outer network, and returns what it printed. The test fails if it does.
func (u *UpProcess) Exec(node string, command ...string) string {
	u.t.Helper()
	out, err := u.Try(u.ExecArgs(node, command...)...)
	if err != nil {
		u.t.Fatal(err)
	}
	return out.Stdout
}

// UpStatus is what `endpointd status -o json` says.
type UpStatus struct {
	Server UpPart
	Nodes  []UpPart
}

// UpPart is the server or a node.
type UpPart struct {
	Name      string
	Ready     any // true or false of the server, "True", "False" or "Unknown" of a node
	PID       int
	Restarts  int
	Addresses []string
	Pods      int
}

// Status asks how things are.
func (u *UpProcess) Status() UpStatus {
	u.t.Helper()
	out, err := u.Try("status", "--data-dir", u.DataDir, "-o", "json")
	if err != nil {
		u.t.Fatal(err)
	}
	var s UpStatus
	if err := json.Unmarshal([]byte(out.Stdout), &s); err != nil {
		u.t.Fatalf("status: %v\n%s", err, out.Stdout)
	}
	s.Server.Name = "server"
	return s
}

// Part returns the server or a node by name.
func (u *UpProcess) Part(name string) UpPart {
	u.t.Helper()
	s := u.Status()
	for _, p := range append([]UpPart{s.Server}, s.Nodes...) {
		if p.Name == name {
			return p
		}
	}
	u.t.Fatalf("endpointd up has no part %q: %v", name, s)
	return UpPart{}
}

// Signal sends a signal to the process of a part, "server" or a node's name, and returns its pid.
func (u *UpProcess) Signal(part string, signal syscall.Signal) int {
	u.t.Helper()
	pid := u.Part(part).PID
	if pid == 0 {
		u.t.Fatalf("%s does not run", part)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		u.t.Fatalf("signal %s, pid %d: %v", part, pid, err)
	}
	return pid
}

// KillPart kills a part with SIGKILL and returns when it runs again, with another pid.
func (u *UpProcess) KillPart(part string) {
	u.t.Helper()
	before := u.Signal(part, syscall.SIGKILL)
	Await(u.t, 10*time.Second, func() error {
		if pid := u.Part(part).PID; pid == 0 || pid == before {
			return fmt.Errorf("%s does not run again", part)
		}
		return nil
	})
}
