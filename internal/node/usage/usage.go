// Package usage measures what a node and its containers use of CPU and memory, for /stats/summary and so for kubectl top.
//
// In: the runtime's containers, their cgroups, and /proc. Out: stream.Stats.
//
// A container's CPU time is its cgroup's where there is one (cpu.stat is there without any controller), else that of its
// processes: the first one's descendants and who else is in its session, with what their ended children used. Its memory is the
// cgroup's working set where there is a memory controller, else the anonymous and shared memory of its processes, where what
// several of them share counts for each. A pod uses what its containers do. The node's figures are those of the machine, also
// where several nodes share one.
//
// Invariants: nothing is done unless somebody asks, and an answer takes a few reads a container. Who cannot be measured, because it ended
// meanwhile, is left out; it is no error.
//
// What it refuses: containers that another runtime keeps (class external), file systems, networks. To test: go test ./internal/node/usage.
package usage

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/stream"
)

// Options are where to look. Node and Pods are required.
type Options struct {
	Node   string // its name
	Pods   func(context.Context) ([]container.Pod, error)
	Cgroup string // the folder of the pods' groups, as process.Options has it; "" = none
	Proc   string // "" = /proc
}

// Meter measures. Its methods may be called concurrently.
type Meter struct {
	o Options

	mu   sync.Mutex          // guards last
	last map[subject]reading // who → when it was last measured
}

// subject is whom a reading is of: a container's attempt; zero = the node.
type subject struct {
	pod, container string
	attempt        int
}

// reading is CPU time as a counter.
type reading struct {
	at  time.Time
	cpu time.Duration
}

// New does nothing yet.
func New(o Options) *Meter {
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	return &Meter{o: o}
}

// Stats measures now. NanoCores are the average since whoever asked before, of what is new since its start.
func (m *Meter) Stats(ctx context.Context) (stream.Stats, error) {
	pods, err := m.o.Pods(ctx)
	if err != nil {
		return stream.Stats{}, fmt.Errorf("pods of node %s: %w", m.o.Node, err)
	}
	readings := map[subject]reading{}
	out := stream.Stats{Node: m.o.Node}
	if out.NodeUsage, err = m.machine(); err != nil {
		return stream.Stats{}, fmt.Errorf("usage of node %s: %w", m.o.Node, err)
	}
	m.rate(readings, subject{}, &out.NodeUsage)
	var all processes // of the machine, looked for at the first need
	for i := range pods {
		pod := &pods[i]
		if pod.PID == 0 {
			continue
		}
		p := stream.PodStats{
			Namespace: pod.Sandbox.Namespace, Name: pod.Sandbox.Name, UID: pod.Sandbox.UID,
			Usage: stream.Usage{At: time.Now(), Since: pod.CreatedAt}, Containers: map[string]stream.Usage{},
		}
		for _, c := range pod.Containers {
			if c.State != container.Running {
				continue
			}
			u, ok := m.container(&c, &all)
			if !ok {
				continue
			}
			m.rate(readings, subject{c.Pod, c.Name, c.Attempt}, &u)
			p.Containers[c.Name] = u
			p.Usage.CPU += u.CPU
			p.Usage.NanoCores += u.NanoCores
			p.Usage.WorkingSet += u.WorkingSet
		}
		out.Pods = append(out.Pods, p)
	}
	m.mu.Lock()
	m.last = readings
	m.mu.Unlock()
	return out, ctx.Err()
}

// container measures one that runs.
func (m *Meter) container(c *container.Status, all *processes) (u stream.Usage, ok bool) {
	u = stream.Usage{At: time.Now(), Since: c.StartedAt}
	var members []int
	if m.o.Cgroup != "" {
		group := filepath.Join(m.o.Cgroup, c.Pod, "c-"+c.Name)
		if cpu, err := groupCPU(group); err == nil {
			u.CPU = cpu
			if u.WorkingSet, err = groupMemory(group); err == nil {
				return u, true
			}
			if members, err = groupMembers(group); err == nil {
				u.WorkingSet = m.memory(members)
				return u, true
			}
		}
	}
	if *all == nil {
		*all = readProcesses(m.o.Proc)
	}
	if members = all.of(c.PID); len(members) == 0 {
		return u, false
	}
	for _, pid := range members {
		u.CPU += (*all)[pid].cpu(pid)
	}
	u.WorkingSet = m.memory(members)
	return u, true
}

// rate notes a reading and fills in NanoCores.
func (m *Meter) rate(readings map[subject]reading, who subject, u *stream.Usage) {
	readings[who] = reading{u.At, u.CPU}
	m.mu.Lock()
	before, ok := m.last[who]
	m.mu.Unlock()
	if !ok || before.cpu > u.CPU {
		before = reading{at: u.Since}
	}
	if took := u.At.Sub(before.at); took > 0 {
		u.NanoCores = uint64(float64(u.CPU-before.cpu) / took.Seconds())
	}
}
