package node

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// ending is a pod's way out: its endpoints are terminating; nothing new comes to it after the drain; preStop; the signal; the kill.
type ending struct {
	began   time.Time
	drain   time.Time // until when nobody is told, at the latest: data planes stop leading new connections here
	drained bool      // they have
}

// unwanted reports whether the pod is to go with its object. One that only failed stays to be looked at.
func (w *worker) unwanted() bool { return w.removed || w.pod.DeletionTimestamp != nil }

// stopping is a container's way out.
type stopping struct {
	withPod  bool      // the whole pod ends
	deadline time.Time // it is killed then
	least    time.Time // but not before
	hook     bool      // preStop runs
	told     bool      // it got the signal to end
	killed   bool
}

// minAfterHook is what a container gets after a preStop hook that used up the grace period, as in the kubelet.
const minAfterHook = 2 * time.Second

// forced reports whether the pod's object is gone before its processes, so that they are to end at once. Of a static pod only the manifest
// is gone.
func (w *worker) forced() bool { return w.removed && !w.static }

// beginEnd starts the way out.
func (w *worker) beginEnd(now time.Time) {
	w.end = &ending{began: now}
	uid := w.standing.end()
	known := w.reported
	if known == nil { // by an earlier life of the agent
		_, _, s := w.status()
		known = &s
	}
	limit := min(w.agent.options.DrainGrace, w.grace()/2)
	if !isReady(known) || w.forced() || limit <= 0 {
		return
	}
	traffic := w.agent.options.Traffic
	switch {
	case traffic == nil:
		w.end.drain = now.Add(limit)
	case uid != "":
		w.end.drain = now.Add(limit)
		w.drain(traffic, uid, limit)
	}
}

// drain waits for the data planes in a goroutine that the worker waits for.
func (w *worker) drain(traffic Traffic, uid string, limit time.Duration) {
	end := w.end
	ctx, cancel := context.WithTimeout(w.hooks, limit)
	w.work.Go(func() {
		defer cancel()
		traffic.Drain(ctx, uid)
		w.inbox.post(func() { end.drained = true })
	})
}

func isReady(s *corev1.PodStatus) bool {
	return slices.ContainsFunc(s.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// finish goes on with the way out: main containers first, then sidecars, the last one first (KEP-753), then everything else.
func (w *worker) finish(ctx context.Context, now time.Time) time.Time {
	deadline := w.end.began.Add(w.grace())
	if !w.end.drained && !w.forced() && now.Before(w.end.drain) && now.Before(deadline) {
		return soonest(w.end.drain, deadline)
	}
	inits, sidecars, mains := split(w.pod)
	for i := range w.pod.Spec.EphemeralContainers {
		mains = append(mains, w.pod.Spec.EphemeralContainers[i].Name)
	}
	first := slices.Concat(mains, inits)
	for _, name := range first {
		w.stopContainer(name, now, time.Until(deadline), "", true)
	}
	if !w.seen.anyRunning(first) {
		for _, name := range slices.Backward(sidecars) {
			if w.seen.state(name).running() {
				w.stopContainer(name, now, time.Until(deadline), "", true)
				break
			}
		}
	}
	for _, s := range w.seen.containers {
		if s.stop != nil && deadline.Before(s.stop.deadline) { // the grace period was shortened
			s.stop.deadline = latest(deadline, s.stop.least)
		}
	}
	if w.seen.anyRunning(slices.Concat(first, sidecars)) {
		return w.pushStops(ctx, now)
	}
	w.seen.ended = true
	if !w.unwanted() {
		w.end = nil
		return now // to settle
	}
	return w.clean(ctx, now)
}

// clean removes what the node holds of the pod, and then its object.
func (w *worker) clean(ctx context.Context, now time.Time) time.Time {
	if !w.cleaned {
		if err := w.removeAll(ctx); err != nil {
			w.log.Warn("pod not removed from the node, trying again", "err", err)
			return now.Add(time.Second)
		}
		w.cleaned = true
	}
	if w.static {
		w.deleted = true // the mirror is not ours
	}
	if !w.deleted && !w.removed {
		w.agent.statuses.remove(w, w.pod, status(w.pod, &w.seen, w.agent.facts, now))
	}
	return time.Time{}
}

func (w *worker) removeAll(ctx context.Context) error {
	if w.class == ClassExternal || w.runtime == nil {
		return nil
	}
	uid := string(w.uid)
	if err := w.runtime.RemovePod(ctx, uid); err != nil {
		return err
	}
	w.seen.sandbox = false
	return errors.Join(w.agent.options.Network.Remove(ctx, uid), w.agent.options.Specs.Remove(uid))
}

// releaseAddress gives the address of a pod that is over to others; its status keeps it, as the kubelet's does.
func (w *worker) releaseAddress(ctx context.Context) {
	if w.class == ClassExternal {
		return
	}
	if err := w.agent.options.Network.Remove(ctx, string(w.uid)); err != nil {
		w.log.Warn("address not given back", "err", err)
		return
	}
	w.seen.sandbox = false
}

// stopContainer begins a container's way out, once.
func (w *worker) stopContainer(name string, now time.Time, grace time.Duration, why string, withPod bool) {
	s, c := w.seen.state(name), lookup(w.pod, name)
	if !s.running() || s.stop != nil {
		return
	}
	s.stop = &stopping{withPod: withPod, deadline: now.Add(grace)}
	w.agent.options.Probes.Terminate(string(w.uid), name)
	if why == "" {
		why = "Stopping container " + name
	}
	w.event(corev1.EventTypeNormal, name, "Killing", "%s", why)
	if grace > 0 && c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		s.stop.hook = true
		w.preStop(c, s)
	}
}

// pushStops signals the containers that are being ended when it is time, and returns when the next one is due.
func (w *worker) pushStops(ctx context.Context, now time.Time) (wake time.Time) {
	for name, s := range w.seen.containers {
		if s.stop == nil || !s.running() {
			continue
		}
		switch {
		case s.stop.hook && now.Before(s.stop.deadline):
		case !s.stop.told && (now.Before(s.stop.deadline) || s.stop.hook):
			if s.stop.hook { // it took too long
				s.stop.hook = false
			}
			s.stop.told = true
			if c := lookup(w.pod, name); c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
				s.stop.least = now.Add(minAfterHook)
				s.stop.deadline = latest(s.stop.deadline, s.stop.least)
			}
			w.signal(ctx, name, stopSignal(lookup(w.pod, name)))
		case !now.Before(s.stop.deadline) && !s.stop.killed:
			s.stop.killed = true
			w.signal(ctx, name, syscall.SIGKILL)
		}
		if !s.stop.killed {
			wake = soonest(wake, s.stop.deadline)
		}
	}
	return wake
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func (w *worker) signal(ctx context.Context, name string, sig syscall.Signal) {
	if err := w.runtime.Signal(ctx, string(w.uid), name, sig); err != nil && ctx.Err() == nil {
		w.log.Warn("container not signalled", "container", name, "signal", sig.String(), "err", err)
	}
}

// stopSignal is SIGTERM or the container's own (KEP-4960).
func stopSignal(c *corev1.Container) syscall.Signal {
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		if sig := unix.SignalNum(string(*c.Lifecycle.StopSignal)); sig != 0 {
			return sig
		}
	}
	return syscall.SIGTERM
}
