package prober

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// journal notes what happens, with the seconds since it was made.
type journal struct {
	mu    sync.Mutex
	begin time.Time
	lines []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf("%v ", time.Since(j.begin))+fmt.Sprintf(format, args...))
}

func (j *journal) want(t *testing.T, lines ...string) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	if !slices.Equal(j.lines, lines) {
		t.Errorf("journal:\n%q\nwant:\n%q", j.lines, lines)
	}
	j.lines = nil
}

// bubble runs body with a Prober that runs, in a bubble of its own.
func bubble(t *testing.T, body func(t *testing.T, p *Prober, j *journal)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := New()
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		synctest.Wait()
		body(t, p, &journal{begin: time.Now()})
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// pass waits until d has gone by, and until all is quiet.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// script is a probe that fails where the next byte of s is not '.', 'w' = with a warning, '?' = unknown; at the end the last byte counts.
func script(j *journal, name, s string) Probe {
	i := 0
	return func(context.Context) error {
		c := s[min(i, len(s)-1)]
		i++
		if name != "" {
			j.add("%s", name)
		}
		switch c {
		case '.':
			return nil
		case 'w':
			return &Warning{"hm"}
		case '?':
			return &Unknown{errors.New("no runtime")}
		}
		return &Failure{"no"}
	}
}

func spec(j *journal, name string, probe Probe) Spec {
	return Spec{
		Probe: probe, Period: 10 * time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3,
		OnResult:  func(r Result) { j.add("%s %s", name, r) },
		OnFailure: func(message string, count int) { j.add("%s (%d)", message, count) },
		OnWarning: func(message string) { j.add("%s", message) },
	}
}

func key(kind Kind) Key { return Key{"uid", "c", kind} }

func add(t *testing.T, p *Prober, k Key, s Spec) {
	t.Helper()
	if err := p.Add(k, s); err != nil {
		t.Fatal(err)
	}
}

func TestThresholds(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		s := spec(j, "ready", script(j, "", "..-.--.---..w"))
		s.SuccessThreshold, s.FailureThreshold = 2, 3
		add(t, p, key(Readiness), s)
		if r, ok := p.Verdict(key(Readiness)); r != Failed || !ok {
			t.Errorf("first verdict of readiness: %s %v, want failed", r, ok)
		}
		pass(125 * time.Second)
		j.want(t,
			"10s ready passed",
			"20s Readiness probe failed: no (1)",
			"40s Readiness probe failed: no (1)",
			"50s Readiness probe failed: no (2)",
			"1m10s Readiness probe failed: no (1)",
			"1m20s Readiness probe failed: no (2)",
			"1m30s Readiness probe failed: no (3)",
			"1m30s ready failed",
			"1m50s ready passed",
			"2m0s Readiness probe warning: hm",
		)
	})
}

func TestUnknownMovesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		s := spec(j, "alive", script(j, "", "-???-."))
		s.FailureThreshold = 2
		add(t, p, key(Liveness), s)
		if r, _ := p.Verdict(key(Liveness)); r != Passed {
			t.Errorf("first verdict of liveness: %s, want passed", r)
		}
		pass(25 * time.Second)
		j.want(t,
			"0s Liveness probe failed: no (1)",
			"10s Liveness probe errored and resulted in unknown state: no runtime (0)",
			"20s Liveness probe failed: no (2)",
			"20s alive failed",
		)
	})
}

func TestAnyErrorIsAFailure(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		s := spec(j, "ready", func(context.Context) error { return fmt.Errorf("wrapped: %w", errors.New("odd")) })
		add(t, p, key(Readiness), s)
		pass(time.Second)
		j.want(t, "0s Readiness probe failed: wrapped: odd (1)")
	})
}

func TestInitialDelayCountsFromTheContainersStart(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		s := spec(j, "ready", script(j, "probe", "."))
		s.Started, s.InitialDelay = time.Now(), 5*time.Second
		pass(2 * time.Second)
		add(t, p, key(Readiness), s)
		pass(14 * time.Second)
		j.want(t, "5s probe", "5s ready passed", "15s probe")
	})
}

func TestPeriodCountsFromProbeStartAndNeverOverlaps(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		takes := []time.Duration{4 * time.Second, 13 * time.Second, time.Second}
		s := spec(j, "alive", func(context.Context) error {
			d := takes[0]
			if len(takes) > 1 {
				takes = takes[1:]
			}
			j.add("begin")
			<-time.After(d)
			j.add("end")
			return nil
		})
		s.Timeout = time.Minute
		add(t, p, key(Liveness), s)
		pass(35 * time.Second)
		j.want(t, "0s begin", "4s end", "10s begin", "23s end", "23s begin", "24s end", "33s begin", "34s end")
	})
}

func TestRepeatedProbesShareWakeUpsAndDoNotDrift(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		pass(3*time.Second + 1234567*time.Nanosecond)
		late := spec(j, "", func(context.Context) error {
			j.add("probe")
			<-time.After(time.Millisecond)
			return nil
		})
		late.OnResult = nil
		add(t, p, key(Liveness), late)
		pass(31 * time.Second)
		j.want(t, "3.001234567s probe", "13.01s probe", "23.01s probe", "33.01s probe")
	})
}

func TestTimeoutEndsTheProbe(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		s := spec(j, "ready", func(ctx context.Context) error { <-ctx.Done(); return &Failure{ctx.Err().Error()} })
		s.Timeout = 2 * time.Second
		add(t, p, key(Readiness), s)
		pass(5 * time.Second)
		j.want(t, "2s Readiness probe failed: context deadline exceeded (1)")
	})
}

func TestStartupHoldsTheOthersUntilItPassed(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		started := spec(j, "started", script(j, "s", "--."))
		started.Period = 3 * time.Second
		add(t, p, key(Startup), started)
		ready := spec(j, "ready", script(j, "r", "."))
		ready.OnFailure = nil
		add(t, p, key(Readiness), ready)
		late := spec(j, "alive", script(j, "l", "."))
		late.InitialDelay = 8 * time.Second
		add(t, p, key(Liveness), late)
		other := spec(j, "other", script(j, "o", "."))
		synctest.Wait()
		j.want(t, "0s s", "0s Startup probe failed: no (1)")
		add(t, p, Key{"uid", "other", Readiness}, other)
		pass(2 * time.Second)
		j.want(t, "0s o", "0s other passed")
		if r, _ := p.Verdict(key(Startup)); r != Undecided {
			t.Errorf("startup: %s, want undecided", r)
		}
		p.Remove(Key{"uid", "other", Readiness})
		pass(5 * time.Second)
		j.want(t, "3s s", "3s Startup probe failed: no (2)", "6s s", "6s started passed", "6s r", "6s ready passed")
		pass(10 * time.Second)
		j.want(t, "8s l", "16s r") // the startup probe has done its work
	})
}

func TestAFailedContainerIsLeftAloneUntilItIsNew(t *testing.T) {
	for _, kind := range []Kind{Liveness, Startup} {
		t.Run(string(kind), func(t *testing.T) {
			bubble(t, func(t *testing.T, p *Prober, j *journal) {
				s := spec(j, "it", script(j, "", "-"))
				s.FailureThreshold, s.OnFailure = 2, nil
				add(t, p, key(kind), s)
				pass(time.Minute)
				j.want(t, "10s it failed")
				s.Started = time.Now()
				add(t, p, key(kind), s) // counts from the beginning
				pass(time.Minute)
				j.want(t, "1m10s it failed")
			})
		})
	}
}

func TestReadinessGoesOnAfterItFailed(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		s := spec(j, "ready", script(j, "", ".---."))
		s.OnFailure = nil
		add(t, p, key(Readiness), s)
		pass(45 * time.Second)
		j.want(t, "0s ready passed", "30s ready failed", "40s ready passed")
	})
}

func TestTerminateStopsAllButReadiness(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		add(t, p, key(Liveness), spec(j, "alive", script(j, "l", "-")))
		add(t, p, key(Readiness), spec(j, "ready", script(j, "", ".-")))
		pass(time.Second)
		j.mu.Lock()
		j.lines = nil
		j.mu.Unlock()
		p.Terminate("uid", "c")
		pass(31 * time.Second)
		j.want(t, "10s Readiness probe failed: no (1)", "20s Readiness probe failed: no (2)",
			"30s Readiness probe failed: no (3)", "30s ready failed")
		if r, ok := p.Verdict(key(Liveness)); r != Passed || !ok {
			t.Errorf("liveness after Terminate: %s %v, want the verdict of before", r, ok)
		}
	})
}

func TestTerminateBeforeStartupPassedKeepsReadinessWaiting(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		s := spec(j, "started", script(j, "", "-"))
		s.OnFailure = nil
		add(t, p, key(Startup), s)
		add(t, p, key(Readiness), spec(j, "ready", script(j, "r", ".")))
		p.Terminate("uid", "c")
		pass(time.Minute)
		j.want(t)
	})
}

func TestTakenOverVerdicts(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		old := time.Now().Add(-time.Hour)
		started := spec(j, "started", script(j, "s", "-"))
		started.Started, started.Initial = old, Passed
		add(t, p, key(Startup), started)
		ready := spec(j, "ready", script(j, "", "--."))
		ready.Started, ready.Initial, ready.OnFailure = old, Passed, nil
		add(t, p, key(Readiness), ready)
		lost := spec(j, "lost", script(j, "", "."))
		lost.Started, lost.Initial = old, Failed
		add(t, p, Key{"uid", "lost", Readiness}, lost)
		if r, _ := p.Verdict(key(Readiness)); r != Passed {
			t.Errorf("readiness: %s, want the one that was given", r)
		}
		pass(10 * time.Second) // the first probe comes at some moment of the first period
		if len(j.lines) != 1 {
			t.Errorf("after one period: %q, want one change, of the one that was not ready", j.lines)
		}
		pass(30 * time.Second)
		if len(j.lines) != 1 {
			t.Errorf("journal: %q, want no flap of what was ready", j.lines)
		}
	})
}

func TestOldContainersAreSpreadOverThePeriodNewOnesAreNot(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		const n = 200
		var mu sync.Mutex
		var at []time.Duration
		begin := time.Now()
		probe := func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Since(begin))
			return nil
		}
		for i := range n {
			s := spec(j, "", probe)
			s.Started, s.OnResult = begin.Add(-time.Hour), nil
			add(t, p, Key{"uid", fmt.Sprint(i), Liveness}, s)
		}
		pass(10*time.Second - 1)
		slices.Sort(at)
		if len(at) != n || at[n/4] > 5*time.Second || at[3*n/4] < 5*time.Second {
			t.Errorf("%d first probes within a period, quartiles %v and %v; want %d, spread", len(at), at[n/4], at[3*n/4], n)
		}
	})
}

func TestNothingIsHeardAfterRemove(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		ended := false
		s := spec(j, "ready", func(ctx context.Context) error { <-ctx.Done(); ended = true; return ctx.Err() })
		s.Timeout = time.Minute
		add(t, p, key(Readiness), s)
		pass(5 * time.Second)
		p.RemoveContainer("uid", "c")
		synctest.Wait()
		if !ended {
			t.Error("the probe that was under way goes on")
		}
		pass(time.Minute)
		j.want(t)
		if _, ok := p.Verdict(key(Readiness)); ok {
			t.Error("there still is a verdict")
		}
	})
}

func TestCallbacksOfOneKeyNeverOverlapAcrossAdd(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		s := spec(j, "", script(j, "", "."))
		s.OnResult = func(Result) { j.add("old begins"); <-time.After(5 * time.Second); j.add("old ends") }
		add(t, p, key(Readiness), s)
		pass(time.Second)
		for range 3 {
			s = spec(j, "new", script(j, "", "."))
			add(t, p, key(Readiness), s)
		}
		pass(10 * time.Second)
		j.want(t, "0s old begins", "5s old ends", "5s new passed")
	})
}

func TestCallbacksMayCallTheProber(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		s := spec(j, "", script(j, "", "-"))
		s.FailureThreshold = 1
		again := spec(j, "again", script(j, "", "."))
		s.OnResult = func(Result) {
			p.RemoveContainer("uid", "c")
			if err := p.Add(key(Readiness), again); err != nil {
				j.add("%v", err)
			}
		}
		add(t, p, key(Liveness), s)
		pass(time.Second)
		j.want(t, "0s Liveness probe failed: no (1)", "0s again passed")
	})
}

func TestAHangingTargetDelaysNobody(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		for i := range 500 {
			s := spec(j, "", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
			s.Timeout, s.OnFailure, s.OnResult = time.Hour, nil, nil
			add(t, p, Key{"hangs", fmt.Sprint(i), Readiness}, s)
		}
		add(t, p, key(Readiness), spec(j, "ready", script(j, "", ".")))
		pass(time.Second)
		j.want(t, "0s ready passed")
	})
}

func TestTheEndOfRunIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{begin: time.Now()}
		p := New()
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 10 {
			s := spec(j, "ready", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
			s.Timeout, s.FailureThreshold, s.Initial = time.Minute, 1, Passed
			add(t, p, Key{"uid", fmt.Sprint(i), Readiness}, s)
		}
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		pass(time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		j.want(t)
	})
}

func TestAddBeforeRunAndAfterItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{begin: time.Now()}
		p := New()
		add(t, p, key(Readiness), spec(j, "ready", script(j, "", ".")))
		pass(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
		add(t, p, key(Liveness), spec(j, "alive", script(j, "l", ".")))
		pass(time.Minute)
		j.want(t, "1s ready passed")
	})
}

func TestAddRefuses(t *testing.T) {
	ok := spec(&journal{}, "", func(context.Context) error { return nil })
	for name, spoil := range map[string]func(*Spec){
		"no probe": func(s *Spec) { s.Probe = nil },
		"period":   func(s *Spec) { s.Period = 0 },
		"timeout":  func(s *Spec) { s.Timeout = -1 },
		"success":  func(s *Spec) { s.SuccessThreshold = 0 },
		"failure":  func(s *Spec) { s.FailureThreshold = 0 },
		"delay":    func(s *Spec) { s.InitialDelay = -1 },
	} {
		s := ok
		spoil(&s)
		if err := New().Add(key(Readiness), s); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := New().Add(key(Readiness), ok); err != nil {
		t.Error(err)
	}
}
