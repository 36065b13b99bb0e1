package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/endpointd/endpointd/internal/model"
)

// RunnerOptions are those of a [Runner].
type RunnerOptions struct {
	// Proxiers are brought to each Snapshot in this order. The Runner does not close them.
	Proxiers []Proxier
	// Synced is called after each Sync with which all Proxiers have now in force; was is what they had, nil at first. It must not block. May be nil.
	Synced func(was, now *model.Snapshot)
	Logger *slog.Logger
}

// Pauses of a Runner.
const (
	verifyPeriod = time.Second            // between two looks at what others may have done to the kernel
	firstRetry   = 20 * time.Millisecond  // after a Sync that failed; doubled each time
	lastRetry    = 5 * time.Second        //
	slowSync     = 100 * time.Millisecond // a Sync that takes longer is worth a line
)

// A Runner brings the newest Snapshot to its Proxiers: latest wins, a Sync that failed is repeated with the newest, revisions never go back. All its methods
// may be called concurrently.
type Runner struct {
	options RunnerOptions
	wake    chan struct{} // holds one token if there is a Snapshot that Run has not seen

	mu      sync.Mutex      // guards what follows
	latest  *model.Snapshot // nil until the first Set
	applied *model.Snapshot // in force in all Proxiers; nil until the first Sync
	failing error           // of the last Sync
	turned  chan struct{}   // closed when applied changes, and replaced
}

// NewRunner returns a Runner; it does nothing before Run.
func NewRunner(o RunnerOptions) *Runner {
	return &Runner{options: o, wake: make(chan struct{}, 1), turned: make(chan struct{})}
}

// Set says what should be in force, and returns at once. One that is older than what was Set before is ignored.
func (r *Runner) Set(s *model.Snapshot) {
	r.mu.Lock()
	if r.latest == nil || s.Revision > r.latest.Revision {
		r.latest = s
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default: // one look sees both
	}
}

// Applied is what all Proxiers have in force, nil before the first Sync; err is why the newest is not, if it was tried.
func (r *Runner) Applied() (s *model.Snapshot, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.applied, r.failing
}

// Wait returns nil when a Snapshot of that Revision or a later one is in force, or why ctx ended.
func (r *Runner) Wait(ctx context.Context, revision uint64) error {
	for {
		r.mu.Lock()
		applied, turned := r.applied, r.turned
		r.mu.Unlock()
		if applied != nil && applied.Revision >= revision {
			return nil
		}
		select {
		case <-turned:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Run works until ctx ends, and returns nil then. The kernel forwards on.
func (r *Runner) Run(ctx context.Context) error {
	verify := time.NewTicker(verifyPeriod)
	defer verify.Stop()
	retry := time.NewTimer(0)
	<-retry.C
	defer retry.Stop()
	pause := firstRetry
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-retry.C:
		case <-verify.C:
			r.verify(ctx)
			continue
		}
		if r.sync(ctx) {
			retry.Stop()
			pause = firstRetry
			continue
		}
		if ctx.Err() == nil {
			retry.Reset(pause)
			pause = min(2*pause, lastRetry)
		}
	}
}

// sync brings the newest Snapshot to all Proxiers, and says whether it is in force.
func (r *Runner) sync(ctx context.Context) bool {
	r.mu.Lock()
	was, now := r.applied, r.latest
	r.mu.Unlock()
	if now == nil || now == was {
		return true
	}
	start := time.Now()
	var failed []error
	for _, p := range r.options.Proxiers {
		// One that fails does not keep the others from what is right.
		if err := p.Sync(ctx, now); err != nil {
			failed = append(failed, err)
		}
	}
	err := errors.Join(failed...)
	if ctx.Err() != nil {
		return false
	}
	took := time.Since(start)
	switch {
	case err != nil:
		r.options.Logger.Error("data plane keeps what it had, trying again", "revision", now.Revision, "err", err)
	case was == nil:
		r.options.Logger.Info("data plane in force", "revision", now.Revision, "services", now.Len(), "took", took)
	case took > slowSync:
		r.options.Logger.Info("data plane was slow", "revision", now.Revision, "took", took)
	}

	r.mu.Lock()
	r.failing = err
	if err == nil {
		r.applied = now
		close(r.turned)
		r.turned = make(chan struct{})
	}
	r.mu.Unlock()
	if err == nil && r.options.Synced != nil {
		r.options.Synced(was, now)
	}
	return err == nil
}

// verify has the Proxiers put right what others did to the kernel.
func (r *Runner) verify(ctx context.Context) {
	if s, _ := r.Applied(); s == nil {
		return
	}
	for _, p := range r.options.Proxiers {
		repaired, err := p.Verify(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			r.options.Logger.Error("data plane could not be compared with what it should be", "err", err)
		case repaired:
			r.options.Logger.Warn("data plane was changed by somebody else, and is put right")
		}
	}
}
