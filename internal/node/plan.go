package node

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The pauses of a container that keeps exiting, as the kubelet's: none before the first restart, then 10 s and twice as
// much each time up to 5 minutes, and none again after it ran for 10 minutes.
const (
	firstDelay = 10 * time.Second
	maxDelay   = 5 * time.Minute
	resetAfter = 10 * time.Minute
)

// decision is what to do next with the containers of a pod that is not being ended.
type decision struct {
	// start lists containers to start now, in this order.
	start []*corev1.Container
	// wake is when to decide again if nothing happens before; zero = never.
	wake time.Time
	// over: every container that counts has ended, and none will be started again.
	over bool
}

// plan decides which containers to start. It changes nothing.
func plan(pod *corev1.Pod, o *observed, now time.Time) decision {
	var d decision
	_, _, mains := split(pod)
	initialized := slices.ContainsFunc(mains, func(name string) bool { return o.state(name).current != nil })

	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		s := o.state(c.Name)
		switch {
		case sidecar(c):
			d.consider(pod, c, s, now)
			if !initialized && !s.started() {
				return d
			}
		case initialized || s.exited() && s.current.ExitCode == 0:
		case s.exited() && !restarts(pod, c, s.current.ExitCode):
			d.over = true
			return d
		default:
			d.consider(pod, c, s, now)
			return d
		}
	}

	live := false
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		s := o.state(c.Name)
		if !s.exited() || restarts(pod, c, s.current.ExitCode) {
			live = true
		}
		d.consider(pod, c, s, now)
		if s.hooking {
			break // the next one waits for this one's postStart hook, as in the kubelet
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		c := (*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		if s := o.state(c.Name); s.current == nil {
			d.consider(pod, c, s, now)
		}
	}
	if !live {
		d = decision{over: true}
	}
	return d
}

// consider adds c if it is to be started now, or the time when it will be.
func (d *decision) consider(pod *corev1.Pod, c *corev1.Container, s *containerState, now time.Time) {
	if s.running() || s.stop != nil || s.exited() && !restarts(pod, c, s.current.ExitCode) {
		return
	}
	if s.retryAt.After(now) {
		d.wakeAt(s.retryAt)
		return
	}
	d.start = append(d.start, c)
}

func (d *decision) wakeAt(t time.Time) {
	if d.wake.IsZero() || t.Before(d.wake) {
		d.wake = t
	}
}

// restarts reports whether a container that ended with this code is started again (core/v1 Container.restartPolicy and
// restartPolicyRules, KEP-5307, else the pod's restartPolicy).
func restarts(pod *corev1.Pod, c *corev1.Container, code int) bool {
	for _, rule := range c.RestartPolicyRules {
		if rule.Action == corev1.ContainerRestartRuleActionRestart && matchesCode(rule.ExitCodes, code) {
			return true
		}
	}
	if c.RestartPolicy != nil {
		return byPolicy(corev1.RestartPolicy(*c.RestartPolicy), code)
	}
	policy := pod.Spec.RestartPolicy
	if isInit(pod, c.Name) && policy == corev1.RestartPolicyAlways {
		policy = corev1.RestartPolicyOnFailure // an init container is done when it has succeeded
	}
	if policy == "" {
		policy = corev1.RestartPolicyAlways
	}
	return byPolicy(policy, code)
}

func byPolicy(policy corev1.RestartPolicy, code int) bool {
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return code != 0
	case corev1.RestartPolicyAlways:
		return true
	}
	return true
}

func matchesCode(rule *corev1.ContainerRestartRuleOnExitCodes, code int) bool {
	if rule == nil {
		return false
	}
	in := slices.Contains(rule.Values, int32(code)) //nolint:gosec // exit codes are 0 to 255
	switch rule.Operator {
	case corev1.ContainerRestartRuleOnExitCodesOpIn:
		return in
	case corev1.ContainerRestartRuleOnExitCodesOpNotIn:
		return !in
	}
	return false
}

func isInit(pod *corev1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name })
}

func isEphemeral(pod *corev1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return c.Name == name })
}

// pause sets when a container that has just exited may be started again.
func (s *containerState) pause() {
	if s.current.FinishedAt.Sub(s.current.StartedAt) >= resetAfter {
		s.delay = 0
	}
	s.retryAt = s.current.FinishedAt.Add(s.delay)
	s.delay = min(max(firstDelay, 2*s.delay), maxDelay)
}
