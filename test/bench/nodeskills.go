package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// podWait is how long one pod may take to leave or to come back.
const podWait = 30 * time.Second

// killPause lies between two deaths: what is measured is one, not a burst.
const killPause = 200 * time.Millisecond

// killRun is what was seen of pods that died, in milliseconds from the kill.
type killRun struct {
	status  []float64 // the pod's own object says that it is not ready
	left    []float64 // no slice leads to it
	back    []float64 // a slice leads to it again, or to what replaces it
	renewed int       // how many had another address then
	kills   int
	unseen  int // kills after which the pod was ready again before any slice showed that it was not
}

// killsPart kills containers, kills whole pods and deletes pods. No container dies twice: the second time it would wait for its back-off.
func (b *bench) killsPart(ctx context.Context, f *fleet) error {
	if err := f.size(ctx, b.pods); err != nil {
		return err
	}
	names, err := f.shuffled()
	if err != nil {
		return err
	}
	few := b.kills / 4
	containers, shims, deleted := &killRun{}, &killRun{}, &killRun{}
	for _, step := range []struct {
		run  *killRun
		pods []string
		kill func(context.Context, string, *killRun) error
	}{
		{containers, names[:b.kills], f.killContainer},
		{shims, names[b.kills : b.kills+few], f.killPod},
		{deleted, names[b.kills+few : b.kills+2*few], f.deleteOne},
	} {
		for _, name := range step.pods {
			select { // until what the one before has caused is over
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(killPause):
			}
			if err := step.kill(ctx, name, step.run); err != nil {
				return err
			}
		}
	}
	t := nodeTable{title: fmt.Sprintf("a pod dies, %d pods on %d nodes", b.pods, upNodes)}
	t.spread("kill -9 of a container → the pod's status seen", "ms", containers.status)
	_, p99 := t.spread("kill -9 of a container → its endpoint seen leaving the slice", "ms", containers.left)
	p99.published("the kubelet lists containers once a second to find the dead; up to 0.8 s of a report's time were that (kubernetes #45278)").atMost(20)
	t.add("kills that no slice showed before the container was ready again", "%", []float64{float64(containers.unseen) / float64(containers.kills) * 100}, containers.kills)
	t.spread("→ restarted and ready in the slice again", "ms", containers.back)
	_, p99 = t.spread("kill -9 of a whole pod → its endpoint seen leaving the slice", "ms", shims.left)
	p99.atMost(20)
	t.spread("→ back in the slice", "ms", shims.back)
	t.add("of them with a new address", "%", []float64{float64(shims.renewed) / float64(len(shims.left)) * 100}, len(shims.left))
	t.spread("DELETE of a pod sent → its endpoint seen not ready", "ms", deleted.left)
	_, p99 = t.spread("DELETE of a pod sent → its replacement in the slice", "ms", deleted.back)
	p99.published("what Kubernetes promises, p99 ≤ 5 s from a pod's creation until it has started, without pulling images " +
		"(kubernetes/community, sig-scalability/slos/pod_startup_latency.md)")
	b.say("kills: status %s ms, slice %s ms, p99 %s ms, back %s ms", number(quantile(containers.status, 0.5)),
		number(quantile(containers.left, 0.5)), number(quantile(containers.left, 0.99)), number(quantile(containers.back, 0.5)))
	b.report.Sections = append(b.report.Sections, t.section())
	return nil
}

// shuffled are the names of all pods in an order that says nothing of their nodes, the same in each run of the same names.
func (f *fleet) shuffled() ([]string, error) {
	processes, err := podProcesses(f.agents)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for name := range f.pods {
		if p := processes[name]; p == nil || len(p.containers) != 1 {
			return nil, fmt.Errorf("pod %s has not one container's process", name)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	random := rand.New(rand.NewPCG(1, 1))
	random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names, nil
}

func since(began, at time.Time) float64 { return float64(at.Sub(began)) / float64(time.Millisecond) }

// killContainer kills the container's process; the pod stays and starts another.
func (f *fleet) killContainer(ctx context.Context, name string, run *killRun) error {
	return f.kill(ctx, name, run, func(p *podProcess) int { return p.containers[0] })
}

// killPod kills the pod's own process; the kernel ends the rest of it, and the pod starts anew.
func (f *fleet) killPod(ctx context.Context, name string, run *killRun) error {
	return f.kill(ctx, name, run, func(p *podProcess) int { return p.shim })
}

func (f *fleet) kill(ctx context.Context, name string, run *killRun, which func(*podProcess) int) error {
	processes, err := podProcesses(f.agents)
	if err != nil {
		return err
	}
	p := processes[name]
	if p == nil || len(p.containers) != 1 {
		return fmt.Errorf("pod %s has not one container's process", name)
	}
	f.mu.Lock()
	address, restarts := f.ready[name], f.pods[name].restarts
	f.mu.Unlock()
	status := f.when("not ready: "+name, func() bool { return !f.pods[name].ready })
	left := f.when("not in a slice: "+name, func() bool { return f.ready[name] != address })
	restarted := f.when("restarted: "+name, func() bool { return f.pods[name].ready && f.pods[name].restarts > restarts })
	var again string
	out := false
	back := f.when("in a slice again: "+name, func() bool {
		again = f.ready[name]
		out = out || again != address
		return out && again != "" && f.pods[name].ready
	})
	began := time.Now()
	if err := unix.Kill(which(p), unix.SIGKILL); err != nil {
		return err
	}
	run.kills++
	if _, err := f.seen(ctx, restarted, podWait); err != nil {
		return fmt.Errorf("%w; %s", err, f.describe(name, which(p)))
	}
	at, err := f.seen(ctx, left, time.Second)
	if err != nil && ctx.Err() == nil {
		run.unseen++
		return nil
	}
	if err != nil {
		return err
	}
	run.left = append(run.left, since(began, at))
	if at, err = f.seen(ctx, status, podWait); err != nil {
		return err
	}
	run.status = append(run.status, since(began, at))
	if at, err = f.seen(ctx, back, podWait); err != nil {
		return err
	}
	run.back = append(run.back, since(began, at))
	if again != address { // written before the wait ended
		run.renewed++
	}
	return nil
}

// describe says how a pod is that did not do what it should after the kill of a process.
func (f *fleet) describe(name string, killed int) string {
	_, err := statFields(killed)
	processes, procErr := podProcesses(f.agents)
	f.mu.Lock()
	defer f.mu.Unlock()
	text := fmt.Sprintf("pod %+v at %q; process %d is gone: %v", f.pods[name], f.ready[name], killed, gone(err))
	if p := processes[name]; procErr == nil && p != nil {
		text += fmt.Sprintf("; now it has %d and containers %v", p.shim, p.containers)
	}
	return text
}

// deleteOne deletes a pod and waits for its replacement.
func (f *fleet) deleteOne(ctx context.Context, name string, run *killRun) error {
	f.mu.Lock()
	before := len(f.ready)
	f.mu.Unlock()
	left := f.when("not in a slice: "+name, func() bool { return f.ready[name] == "" })
	back := f.when("a replacement of "+name, func() bool { return f.ready[name] == "" && len(f.ready) == before })
	began := time.Now()
	if err := f.deletePod(ctx, name); err != nil {
		return err
	}
	at, err := f.seen(ctx, left, podWait)
	if err != nil {
		return fmt.Errorf("deleted: %w", err)
	}
	run.left = append(run.left, since(began, at))
	if at, err = f.seen(ctx, back, podWait); err != nil {
		return err
	}
	run.back = append(run.back, since(began, at))
	return f.settle(ctx, before)
}

// silentRun is one node's silence.
type silentRun struct{ notReady, left, replaced, returned, clean float64 }

// silentPods is how many pods a node has when it falls silent; the last one that did has none at first.
const silentPods = 30

// silentPart freezes the agent of the node with the most pods, again and again.
func (b *bench) silentPart(ctx context.Context, f *fleet) error {
	pods := min(silentPods*upNodes, b.pods)
	if err := f.size(ctx, pods); err != nil {
		return err
	}
	var runs []*silentRun
	for range b.silences {
		run, err := f.silence(ctx, pods)
		if err != nil {
			return err
		}
		b.say("silent: NotReady after %s s, endpoints left after %s s, replaced after %s s", number(run.notReady), number(run.left), number(run.replaced))
		runs = append(runs, run)
	}
	t := nodeTable{title: fmt.Sprintf("a node falls silent (SIGSTOP of its agent), %d pods on %d nodes", pods, upNodes)}
	figure := func(name string, of func(*silentRun) float64) *nodeRow {
		var figures []float64
		for _, r := range runs {
			figures = append(figures, of(r))
		}
		return t.add(name, "s", figures, len(runs))
	}
	figure("→ Node seen not Ready", func(r *silentRun) float64 { return r.notReady }).published(
		"Kubernetes 50 s, until 1.31 40 s (node-monitor-grace-period, kubernetes #126287)")
	figure("→ its endpoints not ready in slices, the last one", func(r *silentRun) float64 { return r.left })
	var left []float64
	for _, r := range runs {
		left = append(left, r.left)
	}
	t.add("the same, the slowest of all", "s", []float64{slices.Max(left)}, len(left)).atMost(3)
	figure("→ replacements ready in slices, the last one", func(r *silentRun) float64 { return r.replaced }).published(
		"Kubernetes 300 s later (kube-apiserver's default-unreachable-toleration-seconds)")
	figure("it returns (SIGCONT) → Node Ready", func(r *silentRun) float64 { return r.returned })
	figure("it returns → its replaced pods ended", func(r *silentRun) float64 { return r.clean })
	b.report.Sections = append(b.report.Sections, t.section())
	return nil
}

func (f *fleet) silence(ctx context.Context, pods int) (_ *silentRun, err error) {
	node, its := f.fullest()
	among := func() bool {
		return slices.ContainsFunc(its, func(pod string) bool { return f.ready[pod] != "" })
	}
	notReady := f.when(node+" not Ready", func() bool { return !f.nodes[node] })
	left := f.when("no endpoint of "+node, func() bool { return !among() })
	replaced := f.when("replacements", func() bool { return len(f.ready) == pods && !among() })
	began := time.Now()
	if err := unix.Kill(f.agents[node], unix.SIGSTOP); err != nil {
		return nil, err
	}
	frozen := true
	thaw := func() error { frozen = false; return unix.Kill(f.agents[node], unix.SIGCONT) }
	defer func() {
		if frozen {
			err = errors.Join(err, thaw())
		}
	}()
	run := &silentRun{}
	for _, w := range []struct {
		*wait
		took *float64
	}{{notReady, &run.notReady}, {left, &run.left}, {replaced, &run.replaced}} {
		at, err := f.seen(ctx, w.wait, fleetWait)
		if err != nil {
			return nil, err
		}
		*w.took = at.Sub(began).Seconds()
	}
	returned := f.when(node+" Ready", func() bool { return f.nodes[node] })
	clean := f.when("pods of "+node+" gone", func() bool {
		return !slices.ContainsFunc(its, func(pod string) bool { _, there := f.pods[pod]; return there })
	})
	began = time.Now()
	if err := thaw(); err != nil {
		return nil, err
	}
	at, err := f.seen(ctx, returned, fleetWait)
	if err != nil {
		return nil, err
	}
	run.returned = at.Sub(began).Seconds()
	if at, err = f.seen(ctx, clean, fleetWait); err != nil {
		return nil, err
	}
	run.clean = at.Sub(began).Seconds()
	return run, f.settle(ctx, pods)
}

// fullest is the node with the most pods, and these.
func (f *fleet) fullest() (node string, its []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	on := map[string][]string{}
	for name, p := range f.pods {
		on[p.node] = append(on[p.node], name)
	}
	for name, pods := range on {
		if len(pods) > len(its) || len(pods) == len(its) && name < node {
			node, its = name, pods
		}
	}
	return node, its
}
