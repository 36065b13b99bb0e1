package process_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/process"
	"github.com/endpointd/endpointd/internal/testkit"
)

// execute runs a command in the container main and gives its code and both its outputs.
func execute(t *testing.T, r container.Runtime, args ...string) (int, string) {
	t.Helper()
	var out buffer
	code, err := r.Exec(t.Context(), container.ExecOptions{Pod: "uid-1", Container: "main", Args: args},
		container.Streams{Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	return code, out.String()
}

// buffer may be written and read at once.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(data)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) await(t *testing.T, want string) {
	t.Helper()
	testkit.Await(t, patience, func() error {
		if got := b.String(); !strings.Contains(got, want) {
			return fmt.Errorf("got %q, want %q in it", got, want)
		}
		return nil
	})
}

func TestExec(t *testing.T) {
	for _, share := range []bool{false, true} {
		r := newRuntime(t, process.Options{})
		startPod(t, r, container.Sandbox{ShareProcessNamespace: share})
		dir, programs := rootfs(t)
		c := shell("sleep 100")
		c.Rootfs, c.Mounts, c.WorkingDir = dir, []container.Mount{programs}, "/work"
		status := start(t, r, c)
		if code, got := execute(t, r, "sh", "-c", "echo out; echo err >&2; exit 5"); code != 5 || !strings.Contains(got, "out\n") || !strings.Contains(got, "err\n") {
			t.Errorf("code %d, output %q", code, got)
		}
		for _, name := range []string{"mnt", "pid", "net", "ipc", "uts"} {
			_, got := execute(t, r, "readlink", "/proc/self/ns/"+name)
			if want := readlink(t, fmt.Sprintf("/proc/%d/ns/%s", status.PID, name)); strings.TrimSpace(got) != want {
				t.Errorf("namespace %s is %q, the container's %q", name, got, want)
			}
		}
		if _, got := execute(t, r, "sh", "-c", "pwd; echo $MARK; ls /"); got != "/work\nhere\nbin\ndev\nlib\nlib64\nproc\nsys\nusr\nwork\n" {
			t.Errorf("exec sees %q", got)
		}
		var out buffer
		code, err := r.Exec(t.Context(), container.ExecOptions{Pod: "uid-1", Container: "main", Args: []string{"sh", "-c", "wc -c; exit 1"}},
			container.Streams{Stdin: strings.NewReader(strings.Repeat("x", 300_000)), Stdout: &out})
		if err != nil || code != 1 || strings.TrimSpace(out.String()) != "300000" {
			t.Errorf("standard input: code %d, output %q, %v", code, out.String(), err)
		}
		_, err = r.Exec(t.Context(), container.ExecOptions{Pod: "uid-1", Container: "main", Args: []string{"no-such"}}, container.Streams{})
		var startErr *container.StartError
		if !errors.As(err, &startErr) || startErr.Code != 127 {
			t.Errorf("missing command: %v", err)
		}
		// What goes on in the background does not keep the caller.
		if code, _ := execute(t, r, "sh", "-c", "sleep 100 & exit 4"); code != 4 {
			t.Errorf("with a process in the background: code %d", code)
		}
		if _, err := r.Exec(t.Context(), container.ExecOptions{Pod: "uid-1", Container: "no", Args: []string{"true"}}, container.Streams{}); err == nil {
			t.Error("exec in a container that is not there")
		}
	}
}

func TestExecCancel(t *testing.T) {
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	start(t, r, shell("sleep 100"))
	for name, stdin := range map[string]io.Reader{"quiet": nil, "flood that nobody reads": endless{}} {
		ctx, cancel := context.WithCancel(t.Context())
		var out buffer
		done := make(chan error)
		go func() {
			_, err := r.Exec(ctx, container.ExecOptions{Pod: "uid-1", Container: "main", Args: []string{"sh", "-c", "echo on; exec sleep 4321"}},
				container.Streams{Stdin: stdin, Stdout: &out})
			done <- err
		}()
		out.await(t, "on")
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: exec that was cancelled: %v", name, err)
		}
		testkit.Await(t, patience, func() error {
			if n := processes(t, "sleep\x004321"); n != 0 {
				return fmt.Errorf("%s: the command runs on", name)
			}
			return nil
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestExecTerminal(t *testing.T) {
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	dir, programs := rootfs(t)
	c := shell("sleep 100")
	c.Rootfs, c.Mounts = dir, []container.Mount{programs}
	start(t, r, c)
	input, keys := io.Pipe()
	defer keys.Close() //nolint:errcheck // a pipe in memory
	sizes := make(chan container.Size, 1)
	sizes <- container.Size{Columns: 101, Rows: 33}
	var screen buffer
	done := make(chan int)
	go func() {
		code, err := r.Exec(t.Context(), container.ExecOptions{Pod: "uid-1", Container: "main", Args: []string{"sh"}, TTY: true},
			container.Streams{Stdin: input, Stdout: &screen, Resize: sizes})
		if err != nil {
			t.Error(err)
		}
		done <- code
	}()
	screen.await(t, "#")
	for _, step := range []struct{ keys, want string }{
		{"tty\r", "/dev/pts/0\r\n"}, {"stty size\r", "33 101\r\n"},
		// Said by the process that the key is for: its shell could still be about to start it.
		{"sh -c 'echo start-$((1+1)); exec sleep 100'\r", "start-2\r\n"}, {"\x03", "^C\r\n# "},
	} {
		if _, err := io.WriteString(keys, step.keys); err != nil {
			t.Fatal(err)
		}
		screen.await(t, step.want)
	}
	if _, err := io.WriteString(keys, "exit 6\r"); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 6 {
		t.Errorf("code %d; screen %q", code, screen.String())
	}
}

func TestAttach(t *testing.T) {
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	c := shell("while read -r line; do echo got $line; echo err $line >&2; done; echo end; exit 3")
	c.Stdin, c.StdinOnce = true, true
	start(t, r, c)
	input, keys := io.Pipe()
	var out, errs, second buffer
	done := make(chan error, 2)
	go func() {
		done <- r.Attach(t.Context(), "uid-1", "main", container.Streams{Stdin: input, Stdout: &out, Stderr: &errs})
	}()
	go func() { done <- r.Attach(t.Context(), "uid-1", "main", container.Streams{Stdout: &second}) }()
	// The second client may come after the first lines.
	testkit.Await(t, patience, func() error {
		if _, err := io.WriteString(keys, "one\n"); err != nil {
			return err
		}
		if !strings.Contains(second.String(), "got one\n") || !strings.Contains(errs.String(), "err one\n") {
			return errors.New("not attached yet")
		}
		return nil
	})
	if err := keys.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if !strings.HasSuffix(out.String(), "end\n") || !strings.HasSuffix(second.String(), "end\n") {
		t.Errorf("clients saw %q and %q", out.String(), second.String())
	}
	if status := nextExit(t, r); status.ExitCode != 3 {
		t.Errorf("exit is %+v", status)
	}
	if got := output(t, r, c); !strings.Contains(got, "end\n") {
		t.Errorf("log is %q", got)
	}
}

// TestAttachTerminal also has a client that leaves, after which another comes.
func TestAttachTerminal(t *testing.T) {
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	c := shell("exec sh -i")
	c.Stdin, c.TTY = true, true
	start(t, r, c)
	for i := range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		input, keys := io.Pipe()
		var screen buffer
		done := make(chan error)
		go func() {
			done <- r.Attach(ctx, "uid-1", "main", container.Streams{Stdin: input, Stdout: &screen})
		}()
		if _, err := fmt.Fprintf(keys, "echo $((%d+40)); tty\r", i); err != nil {
			t.Fatal(err)
		}
		screen.await(t, fmt.Sprintf("%d\r\n/dev/pts/", i+40))
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := keys.Close(); err != nil {
			t.Error(err)
		}
	}
	status, err := r.Pods(t.Context())
	if err != nil || status[0].Containers[0].State != container.Running {
		t.Errorf("after the clients left: %+v, %v", status, err)
	}
}

// TestStuckClient sees that a client that reads nothing does not stop the log for ever.
func TestStuckClient(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as the shim's patience")
	}
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	c := shell("read go; head -c 3000000 /dev/zero | tr '\\0' 'x' | fold -w 1000; echo over")
	c.Stdin = true
	start(t, r, c)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() {
		done <- r.Attach(ctx, "uid-1", "main", container.Streams{Stdin: strings.NewReader("go\n"), Stdout: blocked{ctx}})
	}()
	began := time.Now()
	if status := nextExitWithin(t, r, 3*patience); status.ExitCode != 0 {
		t.Errorf("exit is %+v", status)
	}
	t.Logf("the container waited %v for its client", time.Since(began))
	cancel()
	if err := <-done; err == nil {
		t.Error("the client that read nothing was not told")
	}
}

// blocked takes nothing until its context ends.
type blocked struct{ ctx context.Context }

func (b blocked) Write([]byte) (int, error) {
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}
