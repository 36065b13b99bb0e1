package node

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/node/container"
)

// observed is what is known of one pod apart from its object.
type observed struct {
	sandbox    bool // the namespaces are there, and the addresses below belong to them
	ips        []netip.Addr
	startTime  time.Time                  // when the agent first saw the pod
	containers map[string]*containerState // name → state, of all kinds of containers
	failure    *failure                   // why the pod as a whole failed; nil = it did not
	ended      bool                       // all is over: nothing runs, and nothing will be started
}

// failure is a pod's status.reason and status.message.
type failure struct{ reason, message string }

// containerState is what is known of one container.
type containerState struct {
	current  *container.Status                // of the newest attempt in this sandbox; nil = none
	last     *corev1.ContainerStateTerminated // the attempt before
	attempts int                              // how often it was started; the next one's number
	waiting  failure                          // why the next attempt has not begun: a reason and a message for people
	failed   bool                             // current could not be started: it never ran
	startup  bool                             // the startup probe has succeeded, or there is none
	hooking  bool                             // postStart runs
	ready    bool                             // the readiness probe says so, or there is none

	retryAt time.Time     // not to be started before
	delay   time.Duration // the pause after the next exit; zero = none
	retries int           // how often in a row it could not even be tried
	stop    *stopping     // it is being ended; nil = it is not
}

func (s *containerState) running() bool {
	return s.current != nil && s.current.State == container.Running
}

// started is what the API calls so: the startup probe has succeeded and the postStart hook is over.
func (s *containerState) started() bool { return s.running() && s.startup && !s.hooking }

func (s *containerState) exited() bool {
	return s.current != nil && s.current.State == container.Exited
}

// state never returns nil.
func (o *observed) state(name string) *containerState {
	s, ok := o.containers[name]
	if !ok {
		s = &containerState{}
		o.containers[name] = s
	}
	return s
}

// anyRunning reports whether a container that matches runs.
func (o *observed) anyRunning(names []string) bool {
	for _, name := range names {
		if o.state(name).running() {
			return true
		}
	}
	return false
}

// sidecar reports whether an init container stays (KEP-753).
func sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// split lists a pod's containers by kind, in the order of the spec.
func split(pod *corev1.Pod) (inits, sidecars, mains []string) {
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; sidecar(c) {
			sidecars = append(sidecars, c.Name)
		} else {
			inits = append(inits, c.Name)
		}
	}
	for i := range pod.Spec.Containers {
		mains = append(mains, pod.Spec.Containers[i].Name)
	}
	return inits, sidecars, mains
}

// lookup finds a container of any kind.
func lookup(pod *corev1.Pod, name string) *corev1.Container {
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.Name == name {
			return c
		}
	}
	for i := range pod.Spec.Containers {
		if c := &pod.Spec.Containers[i]; c.Name == name {
			return c
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if c := &pod.Spec.EphemeralContainers[i]; c.Name == name {
			return (*corev1.Container)(&c.EphemeralContainerCommon)
		}
	}
	return nil
}
