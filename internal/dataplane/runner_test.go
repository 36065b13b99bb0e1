package dataplane_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/model"
)

// fake is a Proxier that remembers.
type fake struct {
	mu       sync.Mutex
	synced   []uint64
	failures int           // of the next Syncs
	takes    time.Duration // each Sync
	verified int
	damaged  bool
}

func (f *fake) Sync(ctx context.Context, s *model.Snapshot) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-time.After(f.takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	if f.failures > 0 {
		f.failures--
		return errors.New("the kernel said no")
	}
	f.synced = append(f.synced, s.Revision)
	return nil
}

func (f *fake) Verify(context.Context) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.verified++
	was := f.damaged
	f.damaged = false
	return was, nil
}

func (f *fake) Close() error                 { return nil }
func (f *fake) Remove(context.Context) error { return nil }

func (f *fake) revisions() []uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]uint64(nil), f.synced...)
}

// running is a Runner in the bubble of a test.
func running(t *testing.T, synced func(was, now *model.Snapshot), proxiers ...dataplane.Proxier) *dataplane.Runner {
	r := dataplane.NewRunner(dataplane.RunnerOptions{Proxiers: proxiers, Synced: synced, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestRunnerTakesTheLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fake{takes: 10 * time.Millisecond}
		r := running(t, nil, p)
		for revision := range uint64(5) {
			r.Set(&model.Snapshot{Revision: revision + 1})
		}
		synctest.Wait() // the first Sync has begun
		for revision := range uint64(5) {
			r.Set(&model.Snapshot{Revision: revision + 6})
		}
		r.Set(&model.Snapshot{Revision: 3}) // comes late
		if err := r.Wait(t.Context(), 10); err != nil {
			t.Fatal(err)
		}
		if got := p.revisions(); len(got) > 3 || got[len(got)-1] != 10 {
			t.Errorf("synced %v, want the newest and few others", got)
		}
		if s, err := r.Applied(); s.Revision != 10 || err != nil {
			t.Errorf("applied %d, %v; want 10", s.Revision, err)
		}
	})
}

func TestRunnerRepeatsWhatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, bad := &fake{}, &fake{failures: 3}
		var was, now []uint64
		r := running(t, func(before, after *model.Snapshot) {
			if before != nil {
				was = append(was, before.Revision)
			}
			now = append(now, after.Revision)
		}, bad, good)
		r.Set(&model.Snapshot{Revision: 1})
		synctest.Wait()
		if got := good.revisions(); len(got) != 1 {
			t.Errorf("the Proxier after the one that failed synced %v, want 1 all the same", got)
		}
		if s, err := r.Applied(); s != nil || err == nil {
			t.Errorf("applied %v, %v; want nothing, and why", s, err)
		}
		begin := time.Now()
		if err := r.Wait(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 200*time.Millisecond {
			t.Errorf("three repetitions took %v", took)
		}
		r.Set(&model.Snapshot{Revision: 2})
		if err := r.Wait(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(now) != 2 || len(was) != 1 || was[0] != 1 {
			t.Errorf("told of %v after %v, want 1 after nothing and 2 after 1", now, was)
		}
	})
}

func TestRunnerVerifies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fake{damaged: true}
		r := running(t, nil, p)
		<-time.After(3 * time.Second)
		if p.verified != 0 {
			t.Error("verified before there was anything in force")
		}
		r.Set(&model.Snapshot{Revision: 1})
		<-time.After(1500 * time.Millisecond)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.damaged || p.verified == 0 {
			t.Error("damage stays")
		}
	})
}

func TestRunnerWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := running(t, nil, &fake{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Wait(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want that time ran out", err)
		}
	})
}

func TestUnsupportedError(t *testing.T) {
	err := error(&dataplane.UnsupportedError{Feature: "cgroup/connect4 programs", MinKernel: "4.17", Why: errors.New("invalid argument")})
	want := "cgroup/connect4 programs not supported (Linux 4.17 and later have it): invalid argument"
	if err.Error() != want || !errors.Is(err, dataplane.ErrNotSupported) {
		t.Errorf("got %q, want %q", err, want)
	}
}
