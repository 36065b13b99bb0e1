package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Changes are so far apart. kube-proxy by default leaves a second between two updates of the kernel, so it sees both sides of that.
const (
	slowPace = 2 * time.Second
	fastPace = 100 * time.Millisecond
)

// The pace of dials, and so what a figure of the part programming may be late by; each costs the two cores about 0.1 ms.
const dialPace = 400 * time.Microsecond

// lastChange is how long the last of some changes may take to be in force.
const lastChange = 2 * time.Minute

// flipTimes is of one change. All are moments of the monotonic clock.
type flipTimes struct {
	sent, answered, shown time.Duration // shown is when our own watch had it
	reached               time.Duration // when the first connection that came out there, or at a later one, was done
	own                   bool          // it was that endpoint, and not a later one that has overtaken it
}

// written is when the write was surely done, from what we can see of it.
func (t flipTimes) written() time.Duration { return min(t.answered, t.shown) }

// programRun is what one contender did in one round.
type programRun struct {
	flips  []flipTimes
	kernel []float64 // milliseconds in the kernel, of each batch to nf_tables; nil if they could not be seen
	cpu    time.Duration
	synced float64 // milliseconds of an update as kube-proxy counts them itself; 0 if it does not
}

// programming measures how soon changes are in force, with the load as it is.
func (b *bench) programming(ctx context.Context) error {
	return b.withSites(ctx, b.proxies(), func(sites []*site) error {
		for _, pace := range []struct {
			every time.Duration
			flips int
		}{{slowPace, b.slowFlips}, {fastPace, b.fastFlips}} {
			runs := map[string][]*programRun{}
			for range b.rounds {
				for _, s := range sites {
					run, err := b.program(ctx, s, pace.every, pace.flips)
					if err != nil {
						return fmt.Errorf("%s: %w", s.name, err)
					}
					runs[s.name] = append(runs[s.name], run)
					b.say("changes %v apart: %s: written → reached %s ms p50", pace.every, s.name, number(quantile(run.latencies(), 0.5)))
				}
			}
			title := fmt.Sprintf("a slice is written → the first new connection reaches the new endpoint, changes %v apart, %d Services", pace.every, b.fill.made.services)
			b.report.Sections = append(b.report.Sections, programSection(title, b.proxies(), runs))
		}
		return nil
	})
}

// program has one contender follow some changes.
func (b *bench) program(ctx context.Context, s *site, every time.Duration, flips int) (run *programRun, err error) {
	if err := errors.Join(s.pods(), s.sleep(false)); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.sleep(true)) }()
	seen, err := b.probe(ctx, s.here(), probeSpec{
		Targets: targetsOf(flippedService()), Who: true, Every: dialPace, Timeout: time.Second, Longest: time.Duration(flips)*every + 2*lastChange,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, seen.close()) }()
	watch, err := watchFlips(ctx, b.server.watches, b.fill.slice)
	if err != nil {
		return nil, err
	}
	defer watch.close()
	// What others have changed while it slept.
	at := flippedEndpoint(b.turned).String()
	if _, err := seen.until(ctx, lastChange, 0, func(s sight) bool { return s.where == at }); err != nil {
		return nil, fmt.Errorf("what was changed before: %w", err)
	}
	if err := s.idle(ctx, time.Minute); err != nil {
		return nil, err
	}
	run = &programRun{}
	synced, err := s.updates(ctx)
	if err != nil {
		return nil, err
	}
	kernel, err := traceKernel(s.agents)
	if err != nil {
		b.once("the time in the kernel alone was not measured: %v", err)
	}
	defer kernel.close()
	used, err := s.cpu()
	if err != nil {
		return nil, err
	}
	first, from := b.turned+1, len(seen.sights())
	if run.flips, err = b.flipEvery(ctx, every, flips); err != nil {
		return nil, err
	}
	last := flippedEndpoint(b.turned).String()
	if _, err := seen.until(ctx, lastChange, from, func(s sight) bool { return s.where == last }); err != nil {
		return nil, fmt.Errorf("the last change: %w", err)
	}
	if err := watch.fill(ctx, run.flips, first); err != nil {
		return nil, err
	}
	run.reach(first, seen.sights()[from:])
	if err := s.idle(ctx, time.Minute); err != nil {
		return nil, err
	}
	after, err := s.cpu()
	if err != nil {
		return nil, err
	}
	run.cpu = after - used
	if run.kernel, err = kernel.took(); err != nil {
		return nil, err
	}
	updates, err := s.updates(ctx)
	if n := updates.count - synced.count; n > 0 {
		run.synced = 1000 * (updates.seconds - synced.seconds) / n
	}
	return run, err
}

// flipEvery makes changes at a pace, whatever becomes of them.
func (b *bench) flipEvery(ctx context.Context, every time.Duration, flips int) ([]flipTimes, error) {
	times := make([]flipTimes, 0, flips)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for len(times) < flips {
		select { // first: what was before does not burden it
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		b.turned++
		sent, answered, err := b.fill.flip(ctx, b.turned)
		if err != nil {
			return nil, err
		}
		times = append(times, flipTimes{sent: sent, answered: answered})
	}
	return times, nil
}

// reach notes when each change was reached, of which first is the number of the first.
func (r *programRun) reach(first int, seen []sight) {
	number := map[string]int{} // address → index of its change
	for i := range r.flips {
		number[flippedEndpoint(first+i).String()] = i
	}
	next := 0
	for _, s := range seen {
		i, ok := number[s.where]
		if !ok {
			continue // nowhere, or where it was before
		}
		for ; next <= i; next++ {
			r.flips[next].reached, r.flips[next].own = s.done, next == i
		}
	}
}

// latencies are in milliseconds, from when it was written. What was in force before we could know that it is written took 0.
func (r *programRun) latencies() []float64 {
	return r.each(func(t flipTimes) time.Duration { return max(t.reached-t.written(), 0) })
}

func (r *programRun) each(of func(flipTimes) time.Duration) []float64 {
	var out []float64
	for _, t := range r.flips {
		out = append(out, milliseconds(of(t)))
	}
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// cpu is what the proxy and its children have used.
func (s *site) cpu() (time.Duration, error) { return s.agents.cpu() }

// updated is what kube-proxy counts of its updates.
type updated struct{ seconds, count float64 }

func (s *site) updates(ctx context.Context) (u updated, err error) {
	if s.name != kubeProxyName {
		return u, nil
	}
	if u.seconds, err = s.metric(ctx, "kubeproxy_sync_proxy_rules_duration_seconds_sum"); err != nil {
		return u, err
	}
	u.count, err = s.metric(ctx, "kubeproxy_sync_proxy_rules_duration_seconds_count")
	return u, err
}

func programSection(title string, columns []string, runs map[string][]*programRun) Section {
	s := Section{Title: title, Columns: columns}
	add := func(name, unit string, of func([]*programRun) Value) *Row {
		row := Row{Name: name, Unit: unit, Values: map[string]Value{}}
		for _, column := range columns {
			if v := of(runs[column]); v.Runs > 0 {
				row.Values[column] = v
			}
		}
		s.Rows = append(s.Rows, row)
		return &s.Rows[len(s.Rows)-1]
	}
	// pooled is a quantile over all samples, with that of each run as its spread.
	pooled := func(of func(*programRun) []float64, q float64) func([]*programRun) Value {
		return func(rs []*programRun) Value {
			var all, each []float64
			for _, r := range rs {
				if samples := of(r); len(samples) > 0 {
					all, each = append(all, samples...), append(each, quantile(samples, q))
				}
			}
			v := median(each, len(all))
			if len(all) > 0 {
				v.Value = quantile(all, q)
			}
			return v
		}
	}
	atMost := func(r *Row, limit float64) {
		r.under(kubeProxyName)
		r.oursAtMost(limit)
	}
	sent := func(r *programRun) []float64 {
		return r.each(func(t flipTimes) time.Duration { return t.reached - t.sent })
	}
	add("the write's own round trip p50", "ms", pooled(func(r *programRun) []float64 {
		return r.each(func(t flipTimes) time.Duration { return t.answered - t.sent })
	}, 0.5))
	atMost(add("written → reached p50", "ms", pooled((*programRun).latencies, 0.5)), 3)
	atMost(add("written → reached p99", "ms", pooled((*programRun).latencies, 0.99)), 10)
	add("sent → reached p50", "ms", pooled(sent, 0.5)).under(kubeProxyName)
	add("sent → reached p99", "ms", pooled(sent, 0.99)).under(kubeProxyName)
	add("overtaken before they were in force", "%", pooled(func(r *programRun) []float64 {
		overtaken := 0
		for _, t := range r.flips {
			if !t.own {
				overtaken++
			}
		}
		return []float64{100 * float64(overtaken) / float64(len(r.flips))}
	}, 0.5))
	for _, q := range []struct {
		name string
		q    float64
	}{{"p50", 0.5}, {"p99", 0.99}} {
		row := add("the kernel's nf_tables alone, a batch "+q.name, "ms", pooled(func(r *programRun) []float64 { return r.kernel }, q.q))
		row.Sparse = true
		row.under(kubeProxyName)
	}
	add("batches a change", "batches", pooled(func(r *programRun) []float64 {
		if r.kernel == nil {
			return nil
		}
		return []float64{float64(len(r.kernel)) / float64(len(r.flips))}
	}, 0.5)).Sparse = true
	add("an update, as kube-proxy counts it", "ms", pooled(func(r *programRun) []float64 {
		if r.synced == 0 {
			return nil
		}
		return []float64{r.synced}
	}, 0.5)).Sparse = true
	add("proxy's CPU a change, with its children", "ms", pooled(func(r *programRun) []float64 {
		return []float64{milliseconds(r.cpu) / float64(len(r.flips))}
	}, 0.5)).under(kubeProxyName)
	return s
}
