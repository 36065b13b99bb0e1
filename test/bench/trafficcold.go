package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// coldRun is one start of a proxy.
type coldRun struct {
	took     time.Duration // exec → the last Service works
	late     bool          // it did not in that time
	cpu      time.Duration // until it was idle
	peak     int64         // of its resident memory, in bytes
	children int64         // the most that a child of its had
	settled  memory
}

// coldStart has each proxy start on a node where nothing is yet.
func (b *bench) coldStart(ctx context.Context, s shape) error {
	title := fmt.Sprintf("proxy started → the last Service works, %s Services × endpoints", s)
	return b.coldRuns(ctx, title, s, b.colds)
}

// footprint looks at the same, for the memory alone.
func (b *bench) footprint(ctx context.Context) error {
	title := fmt.Sprintf("a proxy's memory at rest, %d Services", b.fill.made.services)
	return b.coldRuns(ctx, title, shape{}, 1)
}

// coldRuns has them take turns. Without a shape it is about memory alone.
func (b *bench) coldRuns(ctx context.Context, title string, s shape, rounds int) error {
	runs := map[string][]*coldRun{}
	for range rounds {
		for _, name := range b.proxies() {
			run, err := b.cold(ctx, name)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			runs[name] = append(runs[name], run)
			b.say("%s: %s: %s s, %s MB", title, name, number(run.took.Seconds()), number(megabytes(run.settled.now)[0]))
		}
	}
	b.report.Sections = append(b.report.Sections, coldSection(title, b.proxies(), runs, s))
	return nil
}

func (b *bench) cold(ctx context.Context, name string) (run *coldRun, err error) {
	s, err := b.newSite(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	seen, err := s.watchStart(ctx, b.coldLimit)
	if err != nil {
		return nil, err
	}
	began, err := s.start()
	if err != nil {
		return nil, errors.Join(err, seen.close())
	}
	children := watchChildren(s.proxy.cmd.Process.Pid)
	works, err := s.started(ctx, seen, b.coldLimit)
	run = &coldRun{took: works - began}
	if errors.Is(err, errLate) {
		b.note("%s: %v", name, errLate)
		run.took, run.late, err = b.coldLimit, true, nil
	}
	if err != nil {
		children()
		return nil, err
	}
	if !run.late {
		if err := s.idle(ctx, b.coldLimit); err != nil {
			b.note("%v", err)
		}
	}
	if run.cpu, err = s.cpu(); err != nil {
		return nil, err
	}
	if err := pause(ctx, b.settle); err != nil {
		return nil, err
	}
	run.children = children()
	run.settled, err = s.proxy.memory()
	run.peak = run.settled.peak
	return run, err
}

// watchChildren looks at what children of a process take of memory, until the function that it returns is called, which gives the most.
func watchChildren(pid int) func() int64 {
	stop := make(chan struct{})
	var running sync.WaitGroup
	var most int64
	running.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
			for _, child := range childrenOfThreads(pid) {
				most = max(most, highWater(child))
			}
		}
	})
	return func() int64 {
		close(stop)
		running.Wait()
		return most
	}
}

// childrenOfThreads are the children of all threads of a process.
func childrenOfThreads(pid int) []int {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil // it is gone
	}
	var pids []int
	for _, t := range threads {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		if err != nil {
			continue
		}
		for word := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(word); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// highWater is the most resident memory that a process has had, in bytes; 0 when it is gone.
func highWater(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kB, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kB << 10
		}
	}
	return 0
}

// coldTarget is of the design, §4.
type coldTarget struct {
	shape
	seconds float64
}

func coldTargets() []coldTarget { return []coldTarget{{shape{10_000, 2}, 1}, {shape{5000, 50}, 10}} }

func coldSection(title string, columns []string, runs map[string][]*coldRun, load shape) Section {
	s := Section{Title: title, Columns: columns}
	add := func(name, unit string, of func(*coldRun) float64) *Row {
		row := Row{Name: name, Unit: unit, Values: map[string]Value{}}
		for _, column := range columns {
			var each []float64
			late := false
			for _, r := range runs[column] {
				each, late = append(each, of(r)), late || r.late
			}
			v := median(each, len(each))
			v.AtLeast = late && unit == "s"
			row.Values[column] = v
		}
		row.under(kubeProxyName)
		s.Rows = append(s.Rows, row)
		return &s.Rows[len(s.Rows)-1]
	}
	mb := func(of func(*coldRun) int64) func(*coldRun) float64 {
		return func(r *coldRun) float64 { return float64(of(r)) / 1e6 }
	}
	if load != (shape{}) {
		row := add("exec → the last Service works", "s", func(r *coldRun) float64 { return r.took.Seconds() })
		for _, target := range coldTargets() {
			if target.shape == load {
				row.oursAtMost(target.seconds)
			}
		}
		add("CPU until it was idle, with its children", "s", func(r *coldRun) float64 { return r.cpu.Seconds() })
		add("resident memory, peak", "MB", mb(func(r *coldRun) int64 { return r.peak }))
		add("the same of a child, peak", "MB", mb(func(r *coldRun) int64 { return r.children })).Ahead = Ahead{}
	}
	row := add("resident memory, settled", "MB", mb(func(r *coldRun) int64 { return r.settled.now }))
	if load == (shape{}) {
		row.oursAtMost(60)
	}
	add("of it not pages of files", "MB", mb(func(r *coldRun) int64 { return r.settled.anonymous }))
	return s
}
