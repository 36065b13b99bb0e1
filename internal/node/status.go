package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons and messages of conditions, in the kubelet's words (k8s.io/kubernetes pkg/kubelet/status): people and programs look for them.
const (
	reasonPodCompleted       = "PodCompleted"
	reasonPodFailed          = "PodFailed"
	reasonContainersUnready  = "ContainersNotReady"
	reasonUninitialized      = "ContainersNotInitialized"
	reasonGates              = "ReadinessGatesNotReady"
	reasonSandbox            = "SandboxNotReady"
	reasonCompleted          = "Completed"
	reasonError              = "Error"
	reasonOOMKilled          = "OOMKilled"
	reasonStartError         = "StartError"
	reasonCrashLoop          = "CrashLoopBackOff"
	reasonCreating           = "ContainerCreating"
	reasonInitializing       = "PodInitializing"
	reasonDeadline           = "DeadlineExceeded"
	reasonContainerConfigErr = "CreateContainerConfigError"
)

// facts are those of the node that every pod's status has.
type facts struct {
	hostIPs []netip.Addr // primary first
	schemes func(pod *corev1.Pod) string
}

// status is what the API is to show of a pod: a function of the newest known object, what is observed, and the time.
// Conditions of others, and the transition times of those that do not change, are taken over from the object.
func status(pod *corev1.Pod, o *observed, f facts, now time.Time) corev1.PodStatus {
	s := corev1.PodStatus{
		ObservedGeneration: pod.Generation,
		QOSClass:           pod.Status.QOSClass,
		NominatedNodeName:  pod.Status.NominatedNodeName,
		Resize:             pod.Status.Resize,
		HostIP:             f.hostIPs[0].String(),
	}
	for _, ip := range f.hostIPs {
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip.String()})
	}
	for _, ip := range o.ips {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	if len(o.ips) > 0 {
		s.PodIP = o.ips[0].String()
	}
	if !o.startTime.IsZero() {
		s.StartTime = new(seconds(o.startTime))
	}
	scheme := f.schemes(pod)
	for i := range pod.Spec.InitContainers {
		s.InitContainerStatuses = append(s.InitContainerStatuses, containerStatus(pod, &pod.Spec.InitContainers[i], o, scheme, now))
	}
	for i := range pod.Spec.Containers {
		s.ContainerStatuses = append(s.ContainerStatuses, containerStatus(pod, &pod.Spec.Containers[i], o, scheme, now))
	}
	for i := range pod.Spec.EphemeralContainers {
		c := (*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, containerStatus(pod, c, o, scheme, now))
	}
	s.Phase = phase(pod, o)
	if o.failure != nil {
		s.Reason, s.Message = o.failure.reason, o.failure.message
	} else if s.Phase == pod.Status.Phase {
		s.Reason, s.Message = pod.Status.Reason, pod.Status.Message
	}
	s.Conditions = conditions(pod, o, &s, now)
	return s
}

// seconds is a time as the API keeps it.
func seconds(t time.Time) metav1.Time { return metav1.NewTime(t).Rfc3339Copy() }

// phase follows the kubelet's getPhase: Pending until the first main container has run, then Running, and at the end Succeeded when every
// main container did.
func phase(pod *corev1.Pod, o *observed) corev1.PodPhase {
	if p := pod.Status.Phase; p == corev1.PodFailed || p == corev1.PodSucceeded {
		return p // there is no way back
	}
	_, _, mains := split(pod)
	if o.failure != nil && o.ended {
		return corev1.PodFailed
	}
	if !o.ended {
		for _, name := range mains {
			if s := o.state(name); s.current != nil || s.last != nil {
				return corev1.PodRunning
			}
		}
		return corev1.PodPending
	}
	for _, name := range mains {
		if s := o.state(name); !s.exited() || s.current.ExitCode != 0 {
			return corev1.PodFailed
		}
	}
	return corev1.PodSucceeded
}

func containerStatus(pod *corev1.Pod, c *corev1.Container, o *observed, scheme string, now time.Time) corev1.ContainerStatus {
	s := o.state(c.Name)
	init := isInit(pod, c.Name)
	status := corev1.ContainerStatus{
		Name: c.Name, Image: c.Image, ImageID: "", RestartCount: int32(max(s.attempts-1, 0)), //nolint:gosec // counts restarts
	}
	if s.last != nil {
		status.LastTerminationState.Terminated = s.last
	}
	if s.current != nil {
		status.ContainerID = scheme + "://" + s.current.ID
	}
	switch {
	case s.running():
		status.State.Running = &corev1.ContainerStateRunning{StartedAt: seconds(s.current.StartedAt)}
		status.Started = new(s.started())
		status.Ready = s.started() && s.ready && (s.stop == nil || s.stop.withPod)
		if init && !sidecar(c) {
			status.Ready = false
		}
	case s.exited() && (o.ended || !s.retryAt.After(now) || s.waiting.reason == ""):
		status.State.Terminated = terminated(s, scheme)
		status.Started = new(false)
		// A finished init container is ready, as in the kubelet.
		status.Ready = init && !sidecar(c) && s.current.ExitCode == 0
	case s.exited():
		status.State.Waiting = &corev1.ContainerStateWaiting{Reason: s.waiting.reason, Message: s.waiting.message}
		status.LastTerminationState.Terminated = terminated(s, scheme)
		status.Started = new(false)
	case s.waiting.reason != "":
		status.State.Waiting = &corev1.ContainerStateWaiting{Reason: s.waiting.reason, Message: s.waiting.message}
		status.Started = new(false)
	default:
		reason := reasonCreating
		if len(pod.Spec.InitContainers) > 0 {
			reason = reasonInitializing
		}
		status.State.Waiting = &corev1.ContainerStateWaiting{Reason: reason}
		status.Started = new(false)
	}
	return status
}

func terminated(c *containerState, scheme string) *corev1.ContainerStateTerminated {
	s := c.current
	t := &corev1.ContainerStateTerminated{
		ExitCode: int32(s.ExitCode), Signal: int32(s.Signal), Message: s.Message, //nolint:gosec // 0 to 255
		StartedAt: seconds(s.StartedAt), FinishedAt: seconds(s.FinishedAt), ContainerID: scheme + "://" + s.ID,
	}
	switch {
	case s.OOMKilled:
		t.Reason = reasonOOMKilled
	case c.failed:
		t.Reason = reasonStartError
	case s.ExitCode == 0:
		t.Reason = reasonCompleted
	default:
		t.Reason = reasonError
	}
	return t
}

// conditions are those of the kubelet, in its order, after those of others.
func conditions(pod *corev1.Pod, o *observed, s *corev1.PodStatus, now time.Time) []corev1.PodCondition {
	own := []corev1.PodCondition{
		sandboxCondition(o), initializedCondition(pod, s), {Type: corev1.PodReady}, containersCondition(pod, o, s), {Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
	}
	all := slices.Clone(pod.Status.Conditions)
	all = slices.DeleteFunc(all, func(c corev1.PodCondition) bool {
		return slices.ContainsFunc(own, func(o corev1.PodCondition) bool { return o.Type == c.Type })
	})
	own[2] = readyCondition(pod, own[3], all)
	for _, c := range own {
		c.ObservedGeneration = pod.Generation
		c.LastTransitionTime = seconds(now)
		if i := slices.IndexFunc(pod.Status.Conditions, func(old corev1.PodCondition) bool { return old.Type == c.Type }); i >= 0 {
			if old := pod.Status.Conditions[i]; old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
		}
		all = append(all, c)
	}
	return all
}

func sandboxCondition(o *observed) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue}
	if !o.sandbox || o.ended {
		c.Status = corev1.ConditionFalse
	}
	return c
}

func initializedCondition(pod *corev1.Pod, s *corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	if s.Phase == corev1.PodSucceeded {
		c.Reason = reasonPodCompleted
		return c
	}
	for i := range s.ContainerStatuses {
		if s.ContainerStatuses[i].ContainerID != "" {
			return c // it has been initialized before
		}
	}
	var incomplete []string
	for i := range s.InitContainerStatuses {
		spec, status := &pod.Spec.InitContainers[i], &s.InitContainerStatuses[i]
		done := status.Ready
		if sidecar(spec) {
			done = status.Started != nil && *status.Started
		}
		if !done {
			incomplete = append(incomplete, status.Name)
		}
	}
	if len(incomplete) > 0 {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, reasonUninitialized, fmt.Sprintf("containers with incomplete status: %s", incomplete)
	}
	return c
}

func containersCondition(pod *corev1.Pod, o *observed, s *corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.ContainersReady, Status: corev1.ConditionFalse}
	switch s.Phase {
	case corev1.PodSucceeded:
		c.Reason = reasonPodCompleted
		return c
	case corev1.PodFailed:
		c.Reason = reasonPodFailed
		return c
	case corev1.PodPending, corev1.PodRunning, corev1.PodUnknown:
	}
	if o.failure != nil { // it is being ended, and its endpoints go first
		c.Reason = reasonPodFailed
		return c
	}
	var unready []string
	for i := range s.InitContainerStatuses {
		if sidecar(&pod.Spec.InitContainers[i]) && !s.InitContainerStatuses[i].Ready {
			unready = append(unready, s.InitContainerStatuses[i].Name)
		}
	}
	for i := range s.ContainerStatuses {
		if !s.ContainerStatuses[i].Ready {
			unready = append(unready, s.ContainerStatuses[i].Name)
		}
	}
	if len(unready) > 0 {
		c.Reason, c.Message = reasonContainersUnready, fmt.Sprintf("containers with unready status: %s", unready)
		return c
	}
	c.Status = corev1.ConditionTrue
	return c
}

// readyCondition is ContainersReady and every readiness gate (KEP-580), which others write.
func readyCondition(pod *corev1.Pod, containers corev1.PodCondition, others []corev1.PodCondition) corev1.PodCondition {
	c := containers
	c.Type = corev1.PodReady
	if c.Status != corev1.ConditionTrue {
		return c
	}
	var missing []string
	for _, gate := range pod.Spec.ReadinessGates {
		i := slices.IndexFunc(others, func(o corev1.PodCondition) bool { return o.Type == gate.ConditionType })
		switch {
		case i < 0:
			missing = append(missing, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		case others[i].Status != corev1.ConditionTrue:
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, others[i].Status))
		}
	}
	if len(missing) > 0 {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, reasonGates, strings.Join(missing, ", ")
	}
	return c
}
