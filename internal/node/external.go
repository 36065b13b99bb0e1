package node

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/endpointd/endpointd/internal/node/container"
)

// External is the runtime of what runs elsewhere: a virtual machine, a container, another host. It starts nothing and ends
// nothing; a container of it runs from the moment that it is asked for until it is told to end.
type External struct {
	events chan container.Event

	mu   sync.Mutex                             // guards runs
	runs map[string]map[string]container.Status // pod UID → container name → its status
}

// NewExternal returns the runtime.
func NewExternal() *External {
	return &External{events: make(chan container.Event, 16), runs: map[string]map[string]container.Status{}}
}

func externalID(pod, name string) string { return pod + "/" + name }

// StartPod implements container.Runtime: there is nothing to make.
func (*External) StartPod(_ context.Context, s container.Sandbox) (container.Pod, error) {
	return container.Pod{Sandbox: s, CreatedAt: time.Now()}, nil
}

// Pods implements container.Runtime: what runs elsewhere is known from the API alone.
func (*External) Pods(context.Context) ([]container.Pod, error) { return nil, nil }

// RemovePod implements container.Runtime.
func (e *External) RemovePod(_ context.Context, uid string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.runs, uid)
	return nil
}

// Start implements container.Runtime.
func (e *External) Start(_ context.Context, c container.Container) (container.Status, error) {
	s := container.Status{
		Pod: c.Pod, Name: c.Name, Attempt: c.Attempt, ID: externalID(c.Pod, c.Name), State: container.Running, StartedAt: time.Now(), Labels: c.Labels,
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.runs[c.Pod] == nil {
		e.runs[c.Pod] = map[string]container.Status{}
	}
	e.runs[c.Pod][c.Name] = s
	return s, nil
}

// Signal implements container.Runtime: any signal that ends a process ends our interest in it.
func (e *External) Signal(ctx context.Context, pod, name string, sig syscall.Signal) error {
	e.mu.Lock()
	s, ok := e.runs[pod][name]
	delete(e.runs[pod], name)
	e.mu.Unlock()
	if !ok {
		return nil
	}
	s.State, s.FinishedAt = container.Exited, time.Now()
	select {
	case e.events <- container.Event{Pod: pod, Container: &s}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s of pod %s: signal %s: %w", name, pod, sig, ctx.Err())
	}
}

// Events implements container.Runtime.
func (e *External) Events() <-chan container.Event { return e.events }

// Exec implements container.Runtime.
func (*External) Exec(_ context.Context, o container.ExecOptions, _ container.Streams) (int, error) {
	return 0, elsewhere(o.Container)
}

// Attach implements container.Runtime.
func (*External) Attach(_ context.Context, _, name string, _ container.Streams) error {
	return elsewhere(name)
}

func elsewhere(name string) error {
	return fmt.Errorf("container %s runs elsewhere (runtimeClassName %s): log in where it runs", name, ClassExternal)
}

// LogFile implements container.Runtime.
func (*External) LogFile(string, string, int) string { return "" }

// Close implements container.Runtime.
func (*External) Close() error { return nil }
