package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/podnet"
	"github.com/endpointd/endpointd/internal/node/podspec"
)

// ClassProcess and ClassExternal are the runtime classes: processes of this machine, and what runs elsewhere.
const (
	ClassProcess  = "process"
	ClassExternal = "external"
)

// AddressAnnotation gives the address of an external pod: one, or one of each family with the primary first, comma-separated.
const AddressAnnotation = "endpointd.io/address"

// Pauses between attempts to make a sandbox, and to start a container whose specification cannot be resolved.
const (
	firstRetry = 500 * time.Millisecond
	maxRetry   = 20 * time.Second
)

// startTimeout bounds a start, so that a runtime or an API that hangs holds up nothing but this attempt.
const startTimeout = 30 * time.Second

// startSandbox makes the pod's volumes, namespaces and addresses, or leaves nothing.
func (w *worker) startSandbox(ctx context.Context) error {
	if w.runtime == nil {
		return fmt.Errorf("runtime class %q is unknown on this node: set runtimeClassName to %s, or leave it out",
			w.class, strings.Join(w.agent.classes(), " or "))
	}
	if w.class == ClassExternal {
		if _, err := w.annotatedAddresses(); err != nil {
			return err
		}
		w.seen.ips = w.externalAddresses()
		w.seen.sandbox = true
		return nil
	}
	release, err := w.agent.slot(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := w.agent.options.Specs.Prepare(ctx, w.pod); err != nil {
		return err
	}
	s, err := w.agent.options.Specs.Sandbox(w.pod)
	if err != nil {
		return err
	}
	s.Labels = map[string]string{labelPod: encodePod(w.pod)}
	p, err := w.runtime.StartPod(ctx, s)
	if errors.Is(err, fs.ErrExist) { // half of an earlier attempt
		if err = w.runtime.RemovePod(ctx, string(w.uid)); err == nil {
			p, err = w.runtime.StartPod(ctx, s)
		}
	}
	if err != nil {
		return err
	}
	w.seen.ips = w.agent.facts.hostIPs
	if !w.pod.Spec.HostNetwork {
		if w.seen.ips, err = w.agent.options.Network.Add(ctx, string(w.uid), p.NetNS, hostPorts(w.pod)); err != nil {
			w.seen.ips = nil
			return errors.Join(err, w.runtime.RemovePod(context.WithoutCancel(ctx), string(w.uid)))
		}
	}
	w.seen.sandbox = true
	w.refreshAt = time.Now().Add(refreshPeriod)
	return nil
}

// sandboxFailed tells why, on the pod and on its containers, and sets when to try again.
func (w *worker) sandboxFailed(err error) {
	reason := "FailedCreatePodSandBox"
	var spec *podspec.Error
	if errors.As(err, &spec) {
		reason = spec.Reason
	}
	w.event(corev1.EventTypeWarning, "", reason, "%v", err)
	if reason == podspec.ReasonSysctl { // nothing will ever make it right
		w.seen.failure, w.seen.ended = &failure{reason, spec.Message}, true
		return
	}
	w.retry.failed(time.Now(), firstRetry, maxRetry)
	for _, name := range w.names() {
		if s := w.seen.state(name); s.current == nil {
			s.waiting = failure{reasonCreating, err.Error()}
		}
	}
}

// names are those of all containers that the pod begins with.
func (w *worker) names() []string {
	inits, sidecars, mains := split(w.pod)
	return slices.Concat(inits, sidecars, mains)
}

func hostPorts(pod *corev1.Pod) []podnet.HostPort {
	var ports []podnet.HostPort
	add := func(containers []corev1.Container) {
		for i := range containers {
			for _, p := range containers[i].Ports {
				if p.HostPort == 0 {
					continue
				}
				ip, _ := netip.ParseAddr(p.HostIP) // checked by the API; without one it is all addresses
				protocol := string(p.Protocol)
				if protocol == "" {
					protocol = string(corev1.ProtocolTCP)
				}
				ports = append(ports, podnet.HostPort{
					HostIP: ip, Port: uint16(p.HostPort), ContainerPort: uint16(p.ContainerPort), Protocol: protocol, //nolint:gosec // the API allows 1 to 65535
				})
			}
		}
	}
	add(pod.Spec.InitContainers)
	add(pod.Spec.Containers)
	return ports
}

// annotatedAddresses are those of the annotation, none without one.
func (w *worker) annotatedAddresses() ([]netip.Addr, error) {
	text, ok := w.pod.Annotations[AddressAnnotation]
	if !ok || text == "" {
		return nil, nil
	}
	addrs, err := parseAddrs(text)
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w: give an IP address, or one of each family separated by a comma", AddressAnnotation, err)
	}
	if len(addrs) > 2 || len(addrs) == 2 && addrs[0].Is4() == addrs[1].Is4() {
		return nil, fmt.Errorf("annotation %s: %q: give one IP address, or one of each family", AddressAnnotation, text)
	}
	return addrs, nil
}

// externalAddresses are the annotation's, which may change at any time, or the node's. A text that is no address changes nothing.
func (w *worker) externalAddresses() []netip.Addr {
	addrs, err := w.annotatedAddresses()
	switch {
	case err != nil && len(w.seen.ips) > 0:
		return w.seen.ips
	case len(addrs) == 0:
		return w.agent.facts.hostIPs
	}
	return addrs
}

// moveExternal follows an edit of the annotation: where the workload is now, it is probed anew, and not ready before.
func (w *worker) moveExternal() {
	was, now := w.seen.ips, w.externalAddresses()
	w.seen.ips = now
	if slices.Equal(was, now) {
		return
	}
	for _, name := range w.names() {
		s, c := w.seen.state(name), lookup(w.pod, name)
		if !s.running() {
			continue
		}
		w.unprobe(c)
		s.ready = c.ReadinessProbe == nil
		w.probe(c, s, restored{known: true, started: s.startup})
	}
}

// refreshPeriod is how often the volumes of ConfigMaps, Secrets and tokens are compared with their objects.
const refreshPeriod = 5 * time.Second

// refresh keeps volumes up to date, and returns when it is due again.
func (w *worker) refresh(ctx context.Context, now time.Time) time.Time {
	if w.class == ClassExternal || !hasLiveVolumes(w.pod) {
		return time.Time{}
	}
	if now.Before(w.refreshAt) {
		return w.refreshAt
	}
	w.refreshAt = now.Add(refreshPeriod)
	if _, err := w.agent.options.Specs.Refresh(ctx, w.pod); err != nil && ctx.Err() == nil {
		w.log.Debug("volumes not refreshed", "err", err) // the API is away, or an object is gone: what is there stays
	}
	return w.refreshAt
}

func hasLiveVolumes(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
	})
}

// startContainer starts the next attempt, and notes what came of it.
func (w *worker) startContainer(ctx context.Context, c *corev1.Container) {
	release, err := w.agent.slot(ctx)
	if err != nil {
		return
	}
	defer release()
	limited, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	s := w.seen.state(c.Name)
	spec, err := w.resolve(limited, c, s)
	if err != nil {
		w.notResolved(c, s, err)
		return
	}
	if s.exited() {
		s.last = terminated(s, w.agent.facts.schemes(w.pod))
	}
	spec.Attempt = s.attempts
	spec.Labels = map[string]string{labelIPs: joinAddrs(w.seen.ips)}
	status, err := w.runtime.Start(limited, spec)
	if err != nil && !errors.As(err, new(*container.StartError)) {
		// The sandbox is on its way out, or the agent: whichever it is, it will be seen.
		s.retries++
		s.retryAt = time.Now().Add(firstRetry)
		if ctx.Err() == nil {
			w.log.Warn("container not started", "container", c.Name, "err", err)
		}
		return
	}
	s.attempts++
	s.retries, s.waiting, s.hooking = 0, failure{}, false
	if err != nil {
		w.notStarted(c, s, spec, err)
		return
	}
	s.current, s.failed = &status, false
	s.startup, s.ready = c.StartupProbe == nil, c.ReadinessProbe == nil
	w.event(corev1.EventTypeNormal, c.Name, "Started", "Started container %s", c.Name)
	w.probe(c, s, restored{})
	w.postStart(c, s)
}

func (w *worker) resolve(ctx context.Context, c *corev1.Container, s *containerState) (container.Container, error) {
	if w.class == ClassExternal {
		return container.Container{Pod: string(w.uid), Name: c.Name}, nil
	}
	return w.agent.options.Specs.Container(ctx, w.pod, c, podspec.Facts{PodIPs: w.seen.ips, HostIPs: w.agent.facts.hostIPs, Attempt: s.attempts})
}

// notResolved is for what may be right next time: an image that is not in the table, a ConfigMap that is not there.
func (w *worker) notResolved(c *corev1.Container, s *containerState, err error) {
	s.waiting = failure{reasonContainerConfigErr, err.Error()}
	if spec, ok := errors.AsType[*podspec.Error](err); ok {
		s.waiting = failure{spec.Reason, spec.Message}
	}
	pause := min(firstRetry<<min(s.retries, 10), maxRetry)
	s.retries++
	s.retryAt = time.Now().Add(pause)
	w.event(corev1.EventTypeWarning, c.Name, "Failed", "Error: %s: %s", s.waiting.reason, s.waiting.message)
	if s.waiting.reason == podspec.ReasonImagePull && s.retries > 1 {
		s.waiting = failure{"ImagePullBackOff", fmt.Sprintf("Back-off pulling image %q: %s: %s", c.Image, s.waiting.reason, s.waiting.message)}
	}
}

// notStarted is for a program that could not be executed: an attempt that has ended at once.
func (w *worker) notStarted(c *corev1.Container, s *containerState, spec container.Container, err error) {
	var start *container.StartError
	errors.As(err, &start)
	now := time.Now()
	s.current = &container.Status{
		Pod: spec.Pod, Name: spec.Name, Attempt: spec.Attempt, ID: fmt.Sprintf("%s/%s/%d", spec.Pod, spec.Name, spec.Attempt),
		State: container.Exited, StartedAt: now, FinishedAt: now, ExitCode: start.Code, Message: start.Err.Error(),
	}
	s.failed = true
	w.event(corev1.EventTypeWarning, c.Name, "Failed", "Error: %v", err)
	w.backOff(c, s)
}

// backOff sets when a container that has exited is started again, and says so.
func (w *worker) backOff(c *corev1.Container, s *containerState) {
	if w.end != nil || !restarts(w.pod, c, s.current.ExitCode) {
		return
	}
	s.pause()
	if pause := time.Until(s.retryAt); pause > 0 {
		s.waiting = failure{reasonCrashLoop, fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
			pause.Round(time.Second), c.Name, w.pod.Name, w.pod.Namespace, w.uid)}
		w.event(corev1.EventTypeWarning, c.Name, "BackOff", "Back-off restarting failed container %s in pod %s_%s(%s)", c.Name, w.pod.Name, w.pod.Namespace, w.uid)
	}
}

// exited notes the end of a container.
func (w *worker) exited(status container.Status) {
	s := w.seen.state(status.Name)
	c := lookup(w.pod, status.Name)
	if c == nil || !s.running() || s.current.Attempt != status.Attempt {
		return
	}
	w.unprobe(c)
	status.Message = w.lastWords(c, &status)
	counted := s.ready
	s.current, s.stop, s.hooking, s.ready = &status, nil, false, false
	if status.ExitCode != 0 && w.end == nil {
		how := fmt.Sprintf("exited with code %d", status.ExitCode)
		switch {
		case status.OOMKilled:
			how = "was killed by the kernel: it used more memory than its limit"
		case status.Signal != 0:
			how = fmt.Sprintf("was ended by signal %d", status.Signal)
		}
		w.afterwards(func() { w.event(corev1.EventTypeWarning, c.Name, "Exited", "Container %s %s", c.Name, how) })
	}
	w.backOff(c, s)
	if counted && w.end == nil && restarts(w.pod, c, status.ExitCode) {
		w.report() // endpoints do not wait until it runs again
		s.retryAt = latest(s.retryAt, time.Now().Add(respite))
	}
}

// respite is how long everything else waits when a container that was ready has died, so that its endpoint leaves first: starting
// the next one takes a processor for as long.
const respite = 40 * time.Millisecond

// afterwards has f called when endpoints have had their respite.
func (w *worker) afterwards(f func()) {
	w.later = append(w.later, f)
	w.laterAt = time.Now().Add(respite)
}

// lastWords is the termination message (core/v1 Container.terminationMessagePolicy).
func (w *worker) lastWords(c *corev1.Container, status *container.Status) string {
	if w.class == ClassExternal {
		return ""
	}
	return w.agent.options.LastWords(w.pod, c, status, w.runtime.LogFile(string(w.uid), c.Name, status.Attempt))
}

// sandboxDied notes that everything of the pod is gone, at once. What is to run again gets a new sandbox, and a new address.
func (w *worker) sandboxDied(ctx context.Context) {
	if !w.seen.sandbox {
		return
	}
	now := time.Now()
	counted := false
	for _, name := range w.names() {
		s := w.seen.state(name)
		if !s.running() {
			continue
		}
		counted = counted || s.ready
		gone := *s.current
		gone.State, gone.FinishedAt, gone.ExitCode, gone.Signal, gone.PID = container.Exited, now, 137, 9, 0
		s.current, s.stop, s.hooking, s.ready = &gone, nil, false, false
		w.unprobe(lookup(w.pod, name))
	}
	w.seen.sandbox = false
	if w.end != nil || plan(w.pod, &w.seen, now).over {
		return
	}
	if counted {
		w.report() // endpoints do not wait until it is made anew
		w.retry.at = now.Add(respite)
	}
	w.afterwards(func() {
		w.event(corev1.EventTypeNormal, "", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	})
	w.forgetSandbox(ctx)
}

// forgetSandbox removes what is left of the sandbox, and has all containers begin again.
func (w *worker) forgetSandbox(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	if err := errors.Join(w.runtime.RemovePod(ctx, string(w.uid)), w.agent.options.Network.Remove(ctx, string(w.uid))); err != nil {
		w.log.Warn("dead sandbox not removed", "err", err)
	}
	w.seen.sandbox, w.seen.ips = false, nil
	for _, name := range w.names() {
		s, c := w.seen.state(name), lookup(w.pod, name)
		if s.current == nil || s.exited() && !isInit(w.pod, name) && !restarts(w.pod, c, s.current.ExitCode) {
			continue
		}
		s.last = terminated(s, w.agent.facts.schemes(w.pod))
		s.current, s.retryAt, s.waiting = nil, time.Time{}, failure{}
	}
}
