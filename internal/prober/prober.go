package prober

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Kind says what a probe is for. Its text is the one in the kubelet's events.
type Kind string

// The kinds.
const (
	Startup   Kind = "Startup"
	Readiness Kind = "Readiness"
	Liveness  Kind = "Liveness"
)

// Kinds returns the kinds in the order in which the probes of a container are to be added.
func Kinds() []Kind { return []Kind{Startup, Readiness, Liveness} }

// Result is a verdict on a container.
type Result int

// The verdicts.
const (
	Undecided Result = iota // only of startup probes, and in Spec.Initial
	Passed
	Failed
)

func (r Result) String() string { return [...]string{"undecided", "passed", "failed"}[r] }

// Key names a probe.
type Key struct {
	UID       string // of the pod
	Container string
	Kind      Kind
}

func (k Key) String() string {
	return fmt.Sprintf("pod %s, container %s, %s", k.UID, k.Container, k.Kind)
}

// Spec is a probe with its timing.
type Spec struct {
	Probe   Probe
	Started time.Time // when the container started; the zero time = now

	InitialDelay     time.Duration // from Started to the first probe
	Period           time.Duration // from the start of one probe to that of the next, if it has ended by then
	Timeout          time.Duration // of each probe
	Quick            time.Duration // see below
	SuccessThreshold int           // probes in a row that make the verdict Passed
	FailureThreshold int           // probes in a row that make the verdict Failed

	// With Quick, a readiness or startup probe that fails in the first Period of a new container is made again after
	// Quick, 2·Quick, 4·Quick and so on, and neither counted nor told, until one succeeds. A process that needs 15 ms before it listens is
	// ready after some 30 then, instead of after a Period. A liveness probe without InitialDelay begins after a Period: of such a process it
	// would fail, and with a threshold of 1 end it; the kubelet's first one comes with its first tick too. Zero = each probe counts,
	// from the first moment.

	// Initial is the verdict to begin with. Undecided = that of the kubelet: Failed for readiness, Passed for liveness, Undecided
	// for startup. An agent that restarts gives what its predecessor had found about this very container; a startup probe
	// that is Passed, or a liveness or startup probe that is Failed, is not made any more.
	Initial Result

	// OnResult is called for each change of the verdict, not for the first one; nil = nobody is interested.
	// The callbacks of one Key are never called concurrently. They delay only this probe, and may call the Prober.
	OnResult func(Result)
	// OnFailure is called for each probe that failed, before OnResult, with the message of the kubelet's event Unhealthy
	// and how many have failed in a row. Those that could not be made have count 0.
	OnFailure func(message string, count int)
	// OnWarning is called for each probe that succeeded with a remark, with the message of the kubelet's event ProbeWarning.
	OnWarning func(message string)
}

// check says what is wrong with the spec.
func (s *Spec) check() error {
	switch {
	case s.Probe == nil:
		return errors.New("it has no func")
	case s.Period <= 0 || s.Timeout <= 0:
		return errors.New("period and timeout must be positive")
	case s.SuccessThreshold < 1 || s.FailureThreshold < 1:
		return errors.New("thresholds must be 1 or more")
	case s.InitialDelay < 0:
		return errors.New("the initial delay must not be negative")
	}
	return nil
}

// grid is to what moments repeated probes are moved. Those of a moment share one wake-up of the process, which saves half
// of the cost of 1,000 probes a second. The first probe of a container is not moved, and a period is still a period.
const grid = 10 * time.Millisecond

// Prober makes the probes of all containers of a node. Its methods may be called concurrently.
type Prober struct {
	made time.Time // when we began; containers older than that were there before us

	mu      sync.Mutex      // guards everything below, and workers
	ctx     context.Context // of all probes; nil before Run
	stopped bool
	workers map[Key]*worker
	busy    map[Key]bool // probe → it, or a callback of it, or of what it replaced, is under way
	running sync.WaitGroup
}

// New returns a Prober. Nothing happens before Run.
func New() *Prober {
	return &Prober{made: time.Now(), workers: map[Key]*worker{}, busy: map[Key]bool{}}
}

// Run makes probes until ctx ends, and returns when the last one has ended. It is called once.
func (p *Prober) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	p.ctx = ctx
	for _, w := range p.workers {
		p.schedule(w)
	}
	p.mu.Unlock()

	<-ctx.Done()
	p.mu.Lock()
	p.stopped = true
	for _, w := range p.workers {
		w.stop()
	}
	p.mu.Unlock()
	p.running.Wait()
	return nil
}

// Add begins a probe. If there is one of this key already, the container is new: the old probe is given up, and forgotten.
// Of one container, the startup probe is added first, so that the others wait for it.
func (p *Prober) Add(key Key, spec Spec) error {
	if err := spec.check(); err != nil {
		return fmt.Errorf("add probe of %s: %w", key, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.workers[key]; old != nil {
		old.stop()
	}
	w := newWorker(key, spec)
	p.workers[key] = w
	if p.ctx != nil && !p.stopped {
		p.schedule(w)
		p.release(key)
	}
	return nil
}

// Remove ends the probes. A callback that is being called may still run for a moment; no other one follows.
func (p *Prober) Remove(keys ...Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range keys {
		if w := p.workers[key]; w != nil {
			w.stop()
			delete(p.workers, key)
		}
	}
	for _, key := range keys {
		p.release(key)
	}
}

// RemoveContainer ends all probes of a container.
func (p *Prober) RemoveContainer(uid, container string) {
	p.Remove(Key{uid, container, Readiness}, Key{uid, container, Liveness}, Key{uid, container, Startup})
}

// Terminate tells that the container is being ended on purpose: no liveness or startup probe is made any more, and their verdicts stay
// what they are. Readiness goes on as before, so that a server that drains can say so.
func (p *Prober) Terminate(uid, container string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, kind := range []Kind{Liveness, Startup} {
		if w := p.workers[Key{uid, container, kind}]; w != nil {
			w.stop()
		}
	}
}

// Verdict returns what is known now; false = there is no such probe.
func (p *Prober) Verdict(key Key) (Result, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.workers[key]
	if w == nil {
		return Undecided, false
	}
	return w.verdict, true
}

// schedule sets the timer of w for its next probe, unless something else will do that. p.mu is held.
func (p *Prober) schedule(w *worker) {
	if w.stopped || w.holds() || p.busy[w.key] || p.workers[w.key] != w {
		return
	}
	wait := time.Until(w.due)
	if !w.probed && w.spec.Started.Before(p.made) {
		// Containers that were there before us would all be probed at the same moment now, and ever after.
		wait = max(wait, rand.N(w.spec.Period))
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(wait, func() { p.fire(w) })
	} else {
		w.timer.Reset(wait)
	}
}

// gated says whether w has to wait for its container's startup probe. p.mu is held.
func (p *Prober) gated(w *worker) bool {
	if w.key.Kind == Startup {
		return false
	}
	startup := p.workers[Key{w.key.UID, w.key.Container, Startup}]
	return startup != nil && startup.verdict != Passed
}

// release lets probes go on that waited for a startup probe, if key is one, and wait no longer. p.mu is held.
func (p *Prober) release(key Key) {
	if key.Kind != Startup {
		return
	}
	for _, kind := range []Kind{Readiness, Liveness} {
		if w := p.workers[Key{key.UID, key.Container, kind}]; w != nil && w.waiting && !p.gated(w) {
			w.waiting = false
			p.schedule(w)
		}
	}
}

// fire makes one probe and tells what came of it. It runs on a timer's goroutine.
func (p *Prober) fire(w *worker) {
	p.mu.Lock()
	if p.stopped || w.stopped || p.busy[w.key] {
		p.mu.Unlock()
		return
	}
	if p.gated(w) {
		w.waiting = true
		p.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	w.cancel = cancel
	w.begin(!w.spec.Started.Before(p.made))
	w.due = p.next(w)
	p.busy[w.key] = true
	p.running.Add(1)
	p.mu.Unlock()
	defer p.running.Done()

	err := w.probe(ctx)
	cancel()

	p.mu.Lock()
	var tell []func()
	if p.interested(w) {
		tell = w.judge(err)
	}
	p.mu.Unlock()
	for _, f := range tell {
		p.mu.Lock()
		call := p.interested(w)
		p.mu.Unlock()
		if call {
			f()
		}
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.busy, w.key)
	if p.stopped {
		return
	}
	if next := p.workers[w.key]; next != nil {
		p.schedule(next)
	}
	p.release(w.key)
}

// next is when the probe after the one that begins now is due. p.mu is held.
func (p *Prober) next(w *worker) time.Time {
	begin := time.Now()
	if begin.Sub(w.due) < grid {
		begin = w.due // timers are a little late, which must not add up
	}
	due := begin.Add(w.spec.Period)
	return due.Add((grid - due.Sub(p.made)%grid) % grid)
}

// interested says whether what w finds still counts. A probe that ended because Run's context did has found nothing. p.mu is held.
func (p *Prober) interested(w *worker) bool {
	return p.ctx.Err() == nil && !w.stopped
}
