package top

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// Ask gets the summary of a node from its agent. It is called concurrently, once at a time for a node, and ends with its context.
type Ask func(ctx context.Context, node string) (*statsapi.Summary, error)

const (
	fresh = time.Second            // as long as an answer, or that there was none, is given again
	stale = time.Minute            // the longest time between two looks; what is older is forgotten
	pause = 200 * time.Millisecond // between the two looks when there was none before: 20 ticks of a node's CPU clock
	limit = 2 * time.Second        // for all that is asked of a node for one request
	width = 64                     // nodes asked at once
)

// meter asks agents and remembers what they said.
type meter struct {
	ask Ask
	log *slog.Logger

	mu     sync.Mutex             // guards nodes and forget
	nodes  map[string]*nodeMemory // name → what is known
	forget *time.Timer            // ends nodes when nobody has asked for long; nil before the first request
}

// nodeMemory is of one node. Who holds its turn may use the rest.
type nodeMemory struct {
	turn  chan struct{} // capacity 1
	last  *look         // nil = none
	tried time.Time     // when usage or err came to be
	usage *usage
	err   error
}

// usages asks nodes. Those that do not answer are not in what it returns: name → usage.
func (m *meter) usages(ctx context.Context, nodes []string) map[string]*usage {
	var mu sync.Mutex // guards found
	found := make(map[string]*usage, len(nodes))
	var asking sync.WaitGroup
	slots := make(chan struct{}, width)
	for _, name := range nodes {
		asking.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			u, err := m.usage(ctx, name)
			if err != nil {
				m.log.DebugContext(ctx, "no usage of a node, which is left out", "component", "apiserver", "node", name, "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			found[name] = u
		})
	}
	asking.Wait()
	return found
}

// usage is that of one node.
func (m *meter) usage(parent context.Context, name string) (*usage, error) {
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()
	n := m.memory(name)
	select {
	case n.turn <- struct{}{}:
		defer func() { <-n.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if !n.tried.IsZero() && time.Since(n.tried) < fresh {
		return n.usage, n.err
	}
	u, err := m.look(ctx, name, n)
	if parent.Err() == nil { // else it says nothing of the node
		n.usage, n.err, n.tried = u, err, time.Now()
	}
	return u, err
}

func (m *meter) look(ctx context.Context, name string, n *nodeMemory) (*usage, error) {
	if n.last == nil || time.Since(n.last.at) > stale {
		first, err := m.once(ctx, name)
		if err != nil {
			return nil, err
		}
		n.last = first
		wait := time.NewTimer(pause)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("usage of node %s: %w", name, ctx.Err())
		}
	}
	next, err := m.once(ctx, name)
	if err != nil {
		return nil, err
	}
	u := &usage{n.last, next}
	n.last = next
	return u, nil
}

func (m *meter) once(ctx context.Context, name string) (*look, error) {
	summary, err := m.ask(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("usage of node %s: %w", name, err)
	}
	return read(summary, time.Now()), nil
}

// memory finds or makes that of a node, and puts off its end.
func (m *meter) memory(name string) *nodeMemory {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.forget == nil {
		m.forget = time.AfterFunc(stale, m.clear)
	} else {
		m.forget.Reset(stale)
	}
	n := m.nodes[name]
	if n == nil {
		if m.nodes == nil {
			m.nodes = map[string]*nodeMemory{}
		}
		n = &nodeMemory{turn: make(chan struct{}, 1)}
		m.nodes[name] = n
	}
	return n
}

func (m *meter) clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nodes = nil
}

// close stops the timer.
func (m *meter) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.forget != nil {
		m.forget.Stop()
	}
	m.nodes = nil
}
