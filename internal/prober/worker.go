package prober

import (
	"context"
	"errors"
	"time"
)

// attempts is how often a probe that could not be made is tried at once; the kubelet's number.
const attempts = 3

// worker is one probe of one container. The mutex of its Prober guards what follows spec.
type worker struct {
	key  Key
	spec Spec

	timer   *time.Timer        // fires the next probe
	cancel  context.CancelFunc // of the probe that is under way, or was the last; nil before the first
	due     time.Time          // when the next probe is to start
	probed  bool
	stopped bool
	waiting bool // for the startup probe

	quick time.Time     // until then failures do not count; the zero time = they do
	gap   time.Duration // to the next quick probe

	verdict Result
	last    Result // what the last probe said by itself
	run     int    // how many in a row have said so
}

func newWorker(key Key, spec Spec) *worker {
	if spec.Started.IsZero() {
		spec.Started = time.Now()
	}
	w := &worker{key: key, spec: spec, due: spec.Started.Add(spec.InitialDelay), verdict: spec.Initial}
	if key.Kind == Liveness && spec.Quick > 0 && spec.InitialDelay == 0 {
		w.due = w.due.Add(spec.Period)
	}
	if w.verdict == Undecided {
		switch key.Kind {
		case Readiness:
			w.verdict = Failed
		case Liveness:
			w.verdict = Passed
		}
	}
	return w
}

// holds says whether the verdict is final for this container: it is about to be replaced, or has started.
func (w *worker) holds() bool {
	switch w.key.Kind {
	case Startup:
		return w.verdict != Undecided
	case Liveness:
		return w.verdict == Failed
	}
	return false
}

// stop gives the probe up; one under way ends early and is not heard any more.
func (w *worker) stop() {
	w.stopped = true
	if w.timer != nil {
		w.timer.Stop()
	}
	if w.cancel != nil {
		w.cancel()
	}
}

// probe makes the probe, again at once when it could not be made.
func (w *worker) probe(ctx context.Context) (err error) {
	for range attempts {
		err = w.once(ctx)
		if unknown := (*Unknown)(nil); !errors.As(err, &unknown) {
			break
		}
	}
	return err
}

func (w *worker) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.spec.Timeout)
	defer cancel()
	return w.spec.Probe(ctx)
}

// begin notes that a probe begins.
func (w *worker) begin(fresh bool) {
	if !w.probed && fresh && w.spec.Quick > 0 && w.spec.Initial == Undecided && w.key.Kind != Liveness {
		w.quick, w.gap = time.Now().Add(w.spec.Period), w.spec.Quick
	}
	w.probed = true
	if !w.quick.IsZero() && !time.Now().Before(w.quick) {
		w.quick = time.Time{}
	}
}

// again says whether a probe that said err is to be made again soon, as if it had not been made.
func (w *worker) again(err error) bool {
	if warning := (*Warning)(nil); err == nil || errors.As(err, &warning) {
		w.quick = time.Time{} // from now on each probe counts
	}
	if w.quick.IsZero() {
		return false
	}
	w.due = time.Now().Add(w.gap)
	if w.due.After(w.quick) {
		w.due = w.quick
	}
	w.gap *= 2
	return true
}

// judge counts what a probe said and returns the calls that are to be made, in order.
func (w *worker) judge(err error) (tell []func()) {
	if w.again(err) {
		return nil
	}
	said := Passed
	if err != nil {
		var warning *Warning
		var unknown *Unknown
		switch {
		case errors.As(err, &warning):
			tell = w.warn(warning)
		case errors.As(err, &unknown):
			// It says nothing about the container: neither the verdict nor the count moves.
			return w.fail(string(w.key.Kind)+" probe errored and resulted in unknown state: "+err.Error(), 0)
		default:
			said = Failed
		}
	}
	if said != w.last {
		w.last, w.run = said, 0
	}
	w.run++
	threshold := w.spec.SuccessThreshold
	if said == Failed {
		tell = w.fail(string(w.key.Kind)+" probe failed: "+err.Error(), w.run)
		threshold = w.spec.FailureThreshold
	}
	if w.run < threshold || said == w.verdict {
		return tell
	}
	w.verdict = said
	if f := w.spec.OnResult; f != nil {
		tell = append(tell, func() { f(said) })
	}
	return tell
}

func (w *worker) warn(warning *Warning) []func() {
	f := w.spec.OnWarning
	if f == nil {
		return nil
	}
	return []func(){func() { f(string(w.key.Kind) + " probe warning: " + warning.Message) }}
}

func (w *worker) fail(message string, count int) []func() {
	f := w.spec.OnFailure
	if f == nil {
		return nil
	}
	return []func(){func() { f(message, count) }}
}
