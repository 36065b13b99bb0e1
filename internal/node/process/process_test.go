package process_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/process"
)

const patience = 10 * time.Second

// newRuntime gives a Runtime whose pods end with the test.
func newRuntime(t *testing.T, o process.Options) *process.Runtime {
	t.Helper()
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "pods")
	}
	r, err := process.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		pods, err := r.Pods(ctx)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		for _, p := range pods {
			err = errors.Join(err, r.RemovePod(ctx, p.Sandbox.UID))
		}
		if err := errors.Join(err, r.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

func startPod(t *testing.T, r container.Runtime, s container.Sandbox) container.Pod {
	t.Helper()
	if s.UID == "" {
		s.UID = "uid-1"
	}
	if s.Name == "" {
		s.Namespace, s.Name, s.Hostname = "default", "web", "web"
	}
	p, err := r.StartPod(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// shell is a container that runs a script.
func shell(script string) container.Container {
	return container.Container{
		Pod: "uid-1", Name: "main", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin", "MARK=here"},
	}
}

func start(t *testing.T, r container.Runtime, c container.Container) container.Status {
	t.Helper()
	status, err := r.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// nextExit gives the status of the next container that exits.
func nextExit(t *testing.T, r container.Runtime) container.Status {
	t.Helper()
	return nextExitWithin(t, r, patience)
}

func nextExitWithin(t *testing.T, r container.Runtime, limit time.Duration) container.Status {
	t.Helper()
	e := nextEventWithin(t, r, limit)
	if e.Container == nil {
		t.Fatalf("the pod %s died", e.Pod)
	}
	return *e.Container
}

func nextEvent(t *testing.T, r container.Runtime) container.Event {
	t.Helper()
	return nextEventWithin(t, r, patience)
}

func nextEventWithin(t *testing.T, r container.Runtime, limit time.Duration) container.Event {
	t.Helper()
	select {
	case e := <-r.Events():
		return e
	case <-time.After(limit):
		t.Fatal("no event")
		return container.Event{}
	}
}

// output gives what a container wrote, without times and tags.
func output(t *testing.T, r container.Runtime, c container.Container) string {
	t.Helper()
	data, err := os.ReadFile(r.LogFile(c.Pod, c.Name, c.Attempt))
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(line, " ", 4)
		if len(fields) != 4 {
			t.Fatalf("no log entry: %q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, fields[0]); err != nil {
			t.Fatal(err)
		}
		if fields[2] == "P" {
			fields[3] = strings.TrimSuffix(fields[3], "\n")
		}
		text.WriteString(fields[3])
	}
	return text.String()
}

// run runs a container to its end and gives its exit and its output.
func run(t *testing.T, r container.Runtime, c container.Container) (container.Status, string) {
	t.Helper()
	start(t, r, c)
	status := nextExit(t, r)
	return status, output(t, r, c)
}

func TestExit(t *testing.T) {
	for _, test := range []struct {
		name, script string
		code, signal int
	}{
		{"zero", "exit 0", 0, 0},
		{"code", "exit 7", 7, 0},
		// The first process of a namespace cannot end itself by a signal, so a child does.
		{"signal of a child", "sh -c 'kill -TERM $$'; exit $?", 143, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRuntime(t, process.Options{})
			startPod(t, r, container.Sandbox{})
			status, _ := run(t, r, shell(test.script))
			if status.ExitCode != test.code || status.Signal != test.signal || status.State != container.Exited {
				t.Errorf("exit is %+v, want code %d and signal %d", status, test.code, test.signal)
			}
			if status.FinishedAt.Before(status.StartedAt) || status.ID != "uid-1/main/0" {
				t.Errorf("odd status: %+v", status)
			}
		})
	}
}

func TestSignal(t *testing.T) {
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	c := shell("trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done")
	start(t, r, c)
	awaitOutput(t, r, c, "ready\n")
	if err := r.Signal(t.Context(), "uid-1", "main", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := nextExit(t, r); status.ExitCode != 9 || status.Signal != 0 {
		t.Errorf("after SIGTERM: %+v, want the trap's code", status)
	}
	c.Attempt = 1
	start(t, r, c)
	if err := r.Signal(t.Context(), "uid-1", "main", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := nextExit(t, r); status.ExitCode != 137 || status.Signal != 9 {
		t.Errorf("after SIGKILL: %+v", status)
	}
	if err := r.Signal(t.Context(), "uid-1", "main", syscall.SIGTERM); err != nil {
		t.Errorf("signal to a container that exited: %v", err)
	}
}
