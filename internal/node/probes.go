package node

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/prober"
)

// restored is what an earlier life of the agent had found about a container that still runs. Its zero value is a new container.
type restored struct {
	known          bool
	started, ready bool
}

// probe begins to watch a container that runs, with its probes. The startup probe comes first, so that the others wait for it.
func (w *worker) probe(c *corev1.Container, s *containerState, before restored) {
	if isInit(w.pod, c.Name) && !sidecar(c) {
		return
	}
	if !isEphemeral(w.pod, c.Name) {
		w.standing.count(c.Name, s.current.Attempt)
	}
	for _, kind := range prober.Kinds() {
		p := probeOf(c, kind)
		if p == nil {
			continue
		}
		spec := prober.NewSpec(p)
		spec.Started = s.current.StartedAt
		switch {
		case before.known && kind == prober.Startup && before.started, before.known && kind == prober.Readiness && before.ready:
			spec.Initial = prober.Passed
		}
		probe, err := prober.FromSpec(p, c, w.probeAddr(), w.execProbe(c))
		if err != nil {
			w.event(corev1.EventTypeWarning, c.Name, "Unhealthy", "%s probe cannot be made: %v", kind, err)
			s.waiting = failure{} // the container runs; what it is not is ready
			continue              // the verdict stays what it is without a probe that passed
		}
		spec.Probe = probe
		w.listen(c, s, kind, &spec)
		if err := w.agent.options.Probes.Add(w.probeKey(c.Name, kind), spec); err != nil {
			w.log.Error("probe", "container", c.Name, "err", err)
		}
	}
}

// listen has the verdicts of a probe come to the worker.
func (w *worker) listen(c *corev1.Container, s *containerState, kind prober.Kind, spec *prober.Spec) {
	attempt, failing := s.current.Attempt, false
	name, threshold := c.Name, spec.FailureThreshold
	spec.OnResult = func(r prober.Result) {
		noticed := r == prober.Failed && w.standing.failed(name, attempt, kind)
		w.inbox.post(func() {
			w.standing.hear(noticed)
			if s.running() && s.current.Attempt == attempt {
				w.verdict(name, kind, r, failing)
				failing = r == prober.Failed
			}
		})
	}
	spec.OnFailure = func(message string, count int) {
		if count > threshold && count%threshold != 0 {
			return // it has been said
		}
		w.inbox.post(func() { w.event(corev1.EventTypeWarning, name, "Unhealthy", "%s", message) })
	}
	spec.OnWarning = func(message string) {
		w.inbox.post(func() { w.event(corev1.EventTypeWarning, name, "ProbeWarning", "%s", message) })
	}
}

// verdict acts on a probe that has made up its mind.
func (w *worker) verdict(name string, kind prober.Kind, r prober.Result, failed bool) {
	s, c := w.seen.state(name), lookup(w.pod, name)
	if c == nil || r == prober.Undecided {
		return
	}
	passed := r == prober.Passed
	switch kind {
	case prober.Readiness:
		s.ready = passed
		if passed && failed {
			w.event(corev1.EventTypeNormal, name, "Healthy", "Readiness probe succeeded again")
		}
		return
	case prober.Startup:
		s.startup = passed
	case prober.Liveness:
		if w.class == ClassExternal {
			s.startup = passed // nobody here can restart it: it is not ready until it is alive
		}
	}
	if passed || w.end != nil || w.class == ClassExternal {
		return
	}
	grace := time.Duration(prober.GracePeriod(probeOf(c, kind), int64(w.grace()/time.Second))) * time.Second
	w.stopContainer(name, time.Now(), grace, fmt.Sprintf("Container %s failed %s probe, will be restarted", name, strings.ToLower(string(kind))), false)
}

// unprobe ends the probes of a container that has ended.
func (w *worker) unprobe(c *corev1.Container) {
	if c != nil {
		w.standing.discount(c.Name)
		w.agent.options.Probes.RemoveContainer(string(w.uid), c.Name)
	}
}

func (w *worker) probeKey(name string, kind prober.Kind) prober.Key {
	return prober.Key{UID: string(w.uid), Container: name, Kind: kind}
}

func (w *worker) probeAddr() string {
	if len(w.seen.ips) == 0 {
		return ""
	}
	return w.seen.ips[0].String()
}

func (w *worker) execProbe(c *corev1.Container) prober.ExecFunc {
	if w.class == ClassExternal {
		return nil
	}
	return func(ctx context.Context, args []string) (int, string, error) {
		var out bytes.Buffer
		code, err := w.runtime.Exec(ctx, container.ExecOptions{Pod: string(w.uid), Container: c.Name, Args: args},
			container.Streams{Stdout: &limited{&out}, Stderr: &limited{&out}})
		return code, out.String(), err
	}
}

func probeOf(c *corev1.Container, kind prober.Kind) *corev1.Probe {
	switch kind {
	case prober.Startup:
		return c.StartupProbe
	case prober.Readiness:
		return c.ReadinessProbe
	case prober.Liveness:
		return c.LivenessProbe
	}
	return nil
}
