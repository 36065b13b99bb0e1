package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// fleetRun is one time that all pods were made.
type fleetRun struct {
	ready, shown                 time.Duration // until the last pod was Ready; until slices led to all
	each                         []float64     // milliseconds of each pod, from when it was first seen until it was seen Ready
	server, agents, shims, echos time.Duration // CPU
}

// podsPart makes the Deployment, some times, and then looks at what its pods cost.
func (b *bench) podsPart(ctx context.Context, f *fleet) error {
	var runs []*fleetRun
	var removed []float64
	for i := range b.fleets {
		if i > 0 {
			took, err := f.remove(ctx)
			if err != nil {
				return err
			}
			removed = append(removed, took.Seconds())
		}
		run, err := f.fill(ctx, b.pods)
		if err != nil {
			return err
		}
		runs = append(runs, run)
		b.say("%d pods: all Ready after %s s, in slices after %s s", b.pods, number(run.ready.Seconds()), number(run.shown.Seconds()))
	}
	t := nodeTable{title: fmt.Sprintf("a Deployment of %d pods with an HTTP readiness probe, %d nodes", b.pods, upNodes)}
	figure := func(name, unit string, of func(*fleetRun) float64) *nodeRow {
		var figures []float64
		for _, r := range runs {
			figures = append(figures, of(r))
		}
		return t.add(name, unit, figures, len(runs)*b.pods)
	}
	var all []float64
	for _, r := range runs {
		all = append(all, r.each...)
	}
	figure("created → all Ready", "s", func(r *fleetRun) float64 { return r.ready.Seconds() })
	figure("created → all in slices", "s", func(r *fleetRun) float64 { return r.shown.Seconds() })
	figure("pods Ready a second", "pods", func(r *fleetRun) float64 { return float64(b.pods) / r.ready.Seconds() })
	t.spread("a pod first seen → seen Ready", "ms", all)
	perPod := func(name string, of func(*fleetRun) time.Duration) {
		figure(name, "ms", func(r *fleetRun) float64 { return of(r).Seconds() * 1000 / float64(b.pods) })
	}
	perPod("server's CPU a pod", func(r *fleetRun) time.Duration { return r.server })
	perPod("agents' CPU a pod", func(r *fleetRun) time.Duration { return r.agents })
	perPod("the CPU of the pod's own process", func(r *fleetRun) time.Duration { return r.shims })
	perPod("the CPU of its echo server", func(r *fleetRun) time.Duration { return r.echos })
	if len(removed) > 0 {
		t.add("deleted → last pod gone", "s", removed, len(removed)*b.pods)
	}
	b.report.Sections = append(b.report.Sections, t.section())
	return b.atRest(ctx, f)
}

// fill makes the Deployment and waits for all pods.
func (f *fleet) fill(ctx context.Context, pods int) (*fleetRun, error) {
	ready := f.when("all pods Ready", func() bool { return f.allReady(pods) })
	shown := f.when("all pods in slices", func() bool { return len(f.ready) == pods })
	agents := slices.Collect(maps.Values(f.agents))
	run := &fleetRun{server: -cpuOf(f.server), agents: -cpuOf(agents...)}
	began := time.Now()
	if err := f.create(ctx, pods); err != nil {
		return nil, err
	}
	for _, w := range []struct {
		*wait
		took *time.Duration
	}{{ready, &run.ready}, {shown, &run.shown}} {
		at, err := f.seen(ctx, w.wait, fleetWait)
		if err != nil {
			return nil, err
		}
		*w.took = at.Sub(began)
	}
	run.server += cpuOf(f.server)
	run.agents += cpuOf(agents...)
	processes, err := podProcesses(f.agents)
	if err != nil {
		return nil, err
	}
	if len(processes) != pods {
		return nil, fmt.Errorf("%d pods have a process, want %d", len(processes), pods)
	}
	for _, p := range processes {
		run.shims += cpuOf(p.shim)
		run.echos += cpuOf(p.containers...)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pods {
		run.each = append(run.each, float64(p.readySince.Sub(p.firstSeen))/float64(time.Millisecond))
	}
	return run, nil
}

// restTime is how long CPU is watched of pods that only rest and are probed.
const restTime = 20 * time.Second

// atRest looks at the processes of nodes when nothing happens but probes.
func (b *bench) atRest(ctx context.Context, f *fleet) error {
	if err := pause(ctx, b.settle); err != nil {
		return err
	}
	processes, err := podProcesses(f.agents)
	if err != nil {
		return err
	}
	var shims, echos []int
	for _, p := range processes {
		shims, echos = append(shims, p.shim), append(echos, p.containers...)
	}
	agents := slices.Collect(maps.Values(f.agents))
	groups := [][]int{agents, shims, echos, {f.server}}
	before := make([]time.Duration, len(groups))
	for i, pids := range groups {
		before[i] = cpuOf(pids...)
	}
	began := time.Now()
	if err := pause(ctx, min(restTime, 2*b.settle)); err != nil {
		return err
	}
	took := time.Since(began)
	t := nodeTable{title: fmt.Sprintf("at rest: %d pods a node, each probed once a second, watched for %.0f s", b.pods/upNodes, took.Seconds())}
	for i, g := range []struct {
		name, cpu, rss string // what is published
		each           float64
		unit           string
		most           float64
	}{
		{name: "an agent", cpu: "K3s agent 3 % (docs.k3s.io/reference/resource-profiling)", rss: "K3s agent, kubelet and containerd in it, 275 MB (docs.k3s.io/reference/resource-profiling)", most: 60},
		{name: "a pod's own process", rss: "containerd-shim-runc-v2 10.0–11.3 MB a pod (containerd #7878)"},
		{name: "an echo server"},
		{name: "the server", rss: "K3s server with a workload, agent and etcd in it, 1606 MB (docs.k3s.io/reference/resource-profiling)"},
	} {
		pids := groups[i]
		used := (cpuOf(pids...) - before[i]).Seconds() / took.Seconds() / float64(len(pids)) * 100
		t.add(g.name+": CPU", "% of a core", []float64{used}, len(pids)).published(g.cpu)
		if err := t.footprints(g.name, pids, g.rss, g.most); err != nil {
			return err
		}
	}
	b.say("at rest: agents %s, a shim %s of a core", number(t.rows[0].Values[oursName].Value), number(t.rows[5].Values[oursName].Value))
	b.report.Sections = append(b.report.Sections, t.section())
	return nil
}

// footprints adds rows for the memory of some processes: the median, lowest and highest of them.
func (t *nodeTable) footprints(name string, pids []int, published string, most float64) error {
	var rss, anonymous, file, pss []float64
	for _, pid := range pids {
		m, err := footprintOf(pid)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		rss, anonymous = append(rss, float64(m.rss)/1e6), append(anonymous, float64(m.anonymous)/1e6)
		file, pss = append(file, float64(m.file)/1e6), append(pss, float64(m.pss)/1e6)
	}
	r := t.add(name+": resident memory", "MB", rss, len(pids)).published(published)
	if most > 0 {
		r.atMost(most)
	}
	t.add(name+": of it its own (RssAnon)", "MB", anonymous, len(pids))
	t.add(name+": of it pages of files (RssFile)", "MB", file, len(pids))
	t.add(name+": its share (PSS)", "MB", pss, len(pids))
	return nil
}

// pause waits, which is not for something to happen but for the machine to have its time.
func pause(ctx context.Context, d time.Duration) error {
	rest := time.NewTimer(d)
	defer rest.Stop()
	select {
	case <-rest.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
