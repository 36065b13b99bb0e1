package top

import (
	"math"
	"time"

	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// look is what an agent said once. It is not modified.
type look struct {
	at   time.Time // by this server's clock
	said time.Time // by the agent's, which the API's format cuts to seconds
	node sample
	pods map[podName][]podLook // more than one while one of the same name is being ended
}

type podName struct{ namespace, name string }

type podLook struct {
	uid        string
	containers map[string]sample
}

// sample is a counter of CPU time and the memory in use.
type sample struct {
	since  time.Time
	cpu    uint64 // ns
	memory uint64 // bytes
}

// read takes from a summary what is used here.
func read(s *statsapi.Summary, at time.Time) *look {
	l := &look{at: at, pods: make(map[podName][]podLook, len(s.Pods))}
	l.node, _ = sampleOf(s.Node.CPU, s.Node.Memory)
	if s.Node.CPU != nil {
		l.said = s.Node.CPU.Time.Time
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		pod := podLook{uid: p.PodRef.UID, containers: make(map[string]sample, len(p.Containers))}
		for j := range p.Containers {
			c := &p.Containers[j]
			if sample, ok := sampleOf(c.CPU, c.Memory); ok {
				sample.since = c.StartTime.Time
				pod.containers[c.Name] = sample
			}
		}
		name := podName{p.PodRef.Namespace, p.PodRef.Name}
		l.pods[name] = append(l.pods[name], pod)
	}
	return l
}

func sampleOf(cpu *statsapi.CPUStats, memory *statsapi.MemoryStats) (s sample, ok bool) {
	if cpu == nil || cpu.UsageCoreNanoSeconds == nil || memory == nil || memory.WorkingSetBytes == nil {
		return sample{}, false
	}
	return sample{cpu: *cpu.UsageCoreNanoSeconds, memory: *memory.WorkingSetBytes}, true
}

// pod finds one by its UID, or else by its name alone: a static pod has another UID in the API than on its node.
func (l *look) pod(name podName, uid string) (podLook, bool) {
	all := l.pods[name]
	for _, p := range all {
		if p.uid == uid {
			return p, true
		}
	}
	if len(all) == 0 {
		return podLook{}, false
	}
	return all[len(all)-1], true
}

// usage is what lies between two looks.
type usage struct{ base, last *look }

// use is an amount of CPU and memory.
type use struct {
	nanoCores uint64
	memory    uint64 // bytes
}

func (u *usage) window() time.Duration { return u.last.at.Sub(u.base.at) }

func (u *usage) node() use {
	return use{rate(u.last.node.cpu-min(u.base.node.cpu, u.last.node.cpu), u.window()), u.last.node.memory}
}

// pod gives the containers of a pod: name → use. Empty = nothing is known.
func (u *usage) pod(name podName, uid string) map[string]use {
	last, ok := u.last.pod(name, uid)
	if !ok {
		return nil
	}
	before, _ := u.base.pod(name, last.uid)
	found := make(map[string]use, len(last.containers))
	for container, now := range last.containers {
		var used uint64
		was, ok := before.containers[container]
		switch {
		case ok && before.uid == last.uid && was.since.Equal(now.since) && was.cpu <= now.cpu:
			used = now.cpu - was.cpu
		case now.since.Before(u.base.said.Add(-time.Second)) && !ok:
			continue // it ran before and was not seen: what it used since then is not known
		default:
			used = now.cpu // it started in between
		}
		found[container] = use{rate(used, u.window()), now.memory}
	}
	return found
}

func rate(nanoseconds uint64, window time.Duration) uint64 {
	if window <= 0 {
		return 0
	}
	return uint64(math.Round(float64(nanoseconds) / window.Seconds()))
}
