package node

import (
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/prober"
)

// standing is what Traffic was told of one pod, and whether the API may say otherwise. What is bad is noticed by whoever hears of it first
// (the runtime's events, the prober) and told at once, while the worker may be busy; the worker hears of it through its inbox and
// reports. Only an answer of the API takes it back, and only one that was asked for when nothing bad had been noticed that the worker had
// not heard of, and to which nothing bad was added since: that is what a ticket says.
type standing struct {
	traffic Traffic // nil = nobody wants to know, and all below is unused

	mu       sync.Mutex     // guards all below. It is held during Down, Up and Forget, so that they come in the order of what happened
	uid      string         // of the API's object; "" = there is none
	exposed  bool           // the API says that the pod is ready, or has been told so and may say it any time
	down     Fact           // what Traffic knows; zero = nothing, it is Up
	ending   bool           // the pod is on its way out, and never Up again
	counted  map[string]int // container → the attempt that runs, of those without which the pod cannot serve
	setbacks uint64         // how many bad things were noticed
	heard    uint64         // of how many of them the worker has heard
	worst    Fact           // the newest of those that the worker has not heard of
	asked    uint64         // the newest ticket that was given out
}

// count begins to watch a container that runs.
func (s *standing) count(name string, attempt int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counted == nil {
		s.counted = map[string]int{}
	}
	s.counted[name] = attempt
}

// discount ends it.
func (s *standing) discount(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.counted, name)
}

// exited notices the end of a container, and reports whether it counts: the worker is to call hear then.
func (s *standing) exited(name string, attempt int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if runs, ok := s.counted[name]; s.traffic == nil || !ok || runs != attempt {
		return false
	}
	delete(s.counted, name)
	s.notice(Dead)
	return true
}

// sandboxDied notices the end of all containers; see exited.
func (s *standing) sandboxDied() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.traffic == nil || len(s.counted) == 0 {
		return false
	}
	clear(s.counted)
	s.notice(Dead)
	return true
}

// failed notices a verdict; see exited. A pod that is on its way out is not killed for being dead, so that only its readiness counts.
func (s *standing) failed(name string, attempt int, kind prober.Kind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if runs, ok := s.counted[name]; s.traffic == nil || !ok || runs != attempt || s.ending && kind != prober.Readiness {
		return false
	}
	s.notice(NotReady)
	return true
}

// notice counts what is bad and tells it. s.mu is held.
func (s *standing) notice(why Fact) {
	s.setbacks++
	s.worst = why
	s.tell(why)
}

// tell tells what Traffic does not know. s.mu is held.
func (s *standing) tell(why Fact) {
	known := s.down == why || s.down == Dead || s.down != 0 && why == Draining
	if s.uid == "" || !s.exposed || known {
		return
	}
	s.down = why
	s.traffic.Down(s.uid, why)
}

// hear is for the worker, when it takes up what was noticed.
func (s *standing) hear(noticed bool) {
	if !noticed {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard++
}

// meet takes the API's object, nil if there is none. For another one everything begins anew: nobody has been led to it yet.
func (s *standing) meet(object *corev1.Pod) {
	if s.traffic == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.take(object)
}

func (s *standing) take(object *corev1.Pod) {
	uid := ""
	if object != nil {
		uid = string(object.UID)
	}
	if uid != s.uid {
		if s.exposed {
			s.traffic.Forget(s.uid)
		}
		s.uid, s.exposed, s.down = uid, false, 0
	}
	s.exposed = s.exposed || uid != "" && isReady(&object.Status)
}

// see takes what the worker is about to report: whether the pod is ready, and if not, why. If Traffic still knows better than what is to be
// reported now, the answer of the API to it has a ticket; if that answer is owed, it is to be asked for even if it changes nothing.
func (s *standing) see(object *corev1.Pod, ready bool, why Fact) (ticket uint64, owed bool) {
	if s.traffic == nil {
		return 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.take(object)
	s.exposed = s.exposed || ready && s.uid != ""
	switch {
	case !ready:
		s.setbacks++ // whatever is on its way to the API is out of date
		s.heard++
		s.tell(why)
	case s.heard != s.setbacks:
		s.tell(s.worst) // the worker does not know yet
	case s.down == Dead || s.down == NotReady:
		ticket = s.setbacks + 1
		owed = s.asked != ticket
		s.asked = ticket
	}
	return ticket, owed
}

// answered takes the object as the API has it after the write that a ticket was for.
func (s *standing) answered(ticket uint64, object *corev1.Pod) {
	if ticket == 0 || object == nil || !isReady(&object.Status) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ticket != s.setbacks+1 || string(object.UID) != s.uid || s.down == 0 || s.down == Draining {
		return
	}
	s.down = 0
	if s.ending {
		s.tell(Draining)
		return
	}
	s.traffic.Up(s.uid)
}

// end says that the pod is on its way out. It returns the UID to drain, "" if nobody is led there.
func (s *standing) end() string {
	if s.traffic == nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	s.tell(Draining)
	if !s.exposed {
		return ""
	}
	return s.uid
}

// forget says that nothing is left of the pod.
func (s *standing) forget() {
	if s.traffic == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(Dead)
	if s.exposed {
		s.traffic.Forget(s.uid)
	}
	s.exposed = false
}
