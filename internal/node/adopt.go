package node

import (
	"context"
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/node/container"
)

// adopt takes over what an earlier life of the agent left: the processes as they run, and from the API what only it knew.
func (w *worker) adopt(ctx context.Context, left *container.Pod) {
	known := w.pod
	if w.static {
		if m := w.agent.mirror(w.uid); m != nil {
			known = m
		}
	}
	if t := known.Status.StartTime; t != nil {
		w.seen.startTime = t.Time
	}
	before := w.remember(&known.Status)
	switch {
	case terminal(known):
		w.seen.ended = true
		w.recall(left)
	case w.class == ClassExternal:
		w.adoptExternal(ctx, before)
	case left == nil:
	case left.PID == 0:
		w.recall(left)
		w.seen.sandbox = true
		w.sandboxDied(ctx)
	default:
		w.recall(left)
		if err := w.adoptAddresses(left); err != nil {
			w.log.Warn("pod cannot be taken over, it is made anew", "err", err)
			w.markRunningKilled()
			w.forgetSandbox(ctx)
			return
		}
		w.seen.sandbox = true
		for _, status := range left.Containers {
			s, c := w.seen.state(status.Name), lookup(w.pod, status.Name)
			switch {
			case c == nil:
			case s.running():
				b := before[status.ID]
				s.startup = c.StartupProbe == nil || b.started
				s.ready = c.ReadinessProbe == nil || b.ready
				w.probe(c, s, b)
			default:
				s.current.Message = w.lastWords(c, s.current)
				w.backOff(c, s)
			}
		}
	}
}

// remember takes from the API's status what it says of containers, and returns what it says of their probes: container ID → verdicts.
func (w *worker) remember(known *corev1.PodStatus) map[string]restored {
	found := map[string]restored{}
	prefix := w.agent.facts.schemes(w.pod) + "://"
	for _, list := range [][]corev1.ContainerStatus{known.InitContainerStatuses, known.ContainerStatuses, known.EphemeralContainerStatuses} {
		for i := range list {
			status := &list[i]
			s := w.seen.state(status.Name)
			s.last = status.LastTerminationState.Terminated
			if status.ContainerID == "" {
				continue
			}
			s.attempts = int(status.RestartCount) + 1
			if status.State.Terminated != nil {
				s.last = status.State.Terminated
			}
			found[status.ContainerID[min(len(prefix), len(status.ContainerID)):]] = restored{
				known: true, started: status.Started != nil && *status.Started, ready: status.Ready,
			}
		}
	}
	return found
}

// recall takes the containers over as the runtime has them.
func (w *worker) recall(left *container.Pod) {
	if left == nil {
		return
	}
	for i := range left.Containers {
		status := left.Containers[i]
		s := w.seen.state(status.Name)
		if s.last != nil && s.attempts == status.Attempt+1 && status.State == container.Exited {
			s.last = nil // it is this very one
		}
		s.current, s.attempts = &status, max(s.attempts, status.Attempt+1)
	}
}

func (w *worker) adoptAddresses(left *container.Pod) error {
	if left.Sandbox.HostNetwork {
		w.seen.ips = w.agent.facts.hostIPs
		return nil
	}
	i := slices.IndexFunc(left.Containers, func(c container.Status) bool { return c.Labels[labelIPs] != "" })
	if i < 0 {
		return errors.New("nothing was started in it")
	}
	ips, err := parseAddrs(left.Containers[i].Labels[labelIPs])
	if err != nil {
		return err
	}
	w.seen.ips = ips
	return w.agent.options.Network.Adopt(string(w.uid), ips, hostPorts(w.pod))
}

// markRunningKilled notes that what runs is about to be killed with its sandbox.
func (w *worker) markRunningKilled() {
	for _, name := range w.names() {
		if s := w.seen.state(name); s.running() {
			gone := *s.current
			gone.State, gone.ExitCode, gone.Signal, gone.FinishedAt = container.Exited, 137, 9, time.Now()
			s.current = &gone
		}
	}
}

// adoptExternal goes on with a pod that runs elsewhere, if an earlier life of the agent had begun.
func (w *worker) adoptExternal(ctx context.Context, before map[string]restored) {
	if len(before) == 0 {
		return
	}
	w.seen.ips = w.externalAddresses()
	w.seen.sandbox = len(w.seen.ips) > 0
	for i := range w.pod.Status.ContainerStatuses {
		status := &w.pod.Status.ContainerStatuses[i]
		c, s := lookup(w.pod, status.Name), w.seen.state(status.Name)
		if c == nil || status.State.Running == nil {
			continue
		}
		again, err := w.runtime.Start(ctx, container.Container{Pod: string(w.uid), Name: c.Name, Attempt: s.attempts - 1})
		if err != nil {
			continue // it is started as a new one
		}
		again.StartedAt = status.State.Running.StartedAt.Time
		b := before[again.ID]
		s.current, s.startup, s.ready = &again, c.StartupProbe == nil || b.started, c.ReadinessProbe == nil || b.ready
		w.probe(c, s, b)
	}
}
