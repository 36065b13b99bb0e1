package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// bench is one run: the parts in the order that needs each load once.
type bench struct {
	*options
	self, binary string // programs
	dir          string // temporary
	began        time.Time
	report       *Report
	server       *server
	load         load
	own          Section // of the server itself
	lab          *place  // of the traffic parts, with what follows
	group        *cgroup
	fill         *filler
	labs, sites  int // ever made
	turned       int // of flippedService: the number of the last
}

func (b *bench) all(ctx context.Context) error {
	if slices.ContainsFunc(controllerParts(), b.wants) {
		if err := b.controllers(ctx); err != nil {
			return err
		}
	}
	if err := b.nodesParts(ctx); err != nil {
		return err
	}
	if err := b.trafficAll(ctx); err != nil {
		return err
	}
	return b.namesPart(ctx)
}

// controllers are the parts that compare ours with upstream's, on a server without nodes.
func (b *bench) controllers(ctx context.Context) (err error) {
	b.own = Section{Title: "the server with everything on, as it is shipped", Columns: []string{insideName}}
	defer func() {
		if len(b.own.Rows) > 0 {
			b.report.Sections = slices.Insert(b.report.Sections, 0, b.own)
		}
	}()
	if b.wants(partStartup) {
		if err := b.startup(ctx); err != nil {
			return err
		}
	}
	if b.server, err = newServer(b.binary, filepath.Join(b.dir, "server")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.server.stop()) }()
	if _, err := b.server.start(ctx, false); err != nil {
		return err
	}
	if b.wants(partStartup) {
		rss, err := b.rested(ctx)
		if err != nil {
			return err
		}
		b.own.Rows = append(b.own.Rows,
			serverFigure("resident memory, idle", "MB", megabytes(rss.now), "k3s server 535, kwok 300", 170),
			serverFigure("of it not pages of files", "MB", megabytes(rss.anonymous), "", 0))
	}
	if err := prepare(ctx, b.server.writes); err != nil {
		return err
	}
	for _, services := range b.services {
		if err := b.small(ctx, services); err != nil {
			return err
		}
	}
	if !b.wants(partBig) && !b.wants(partReplace) {
		return nil
	}
	if err := b.server.as(ctx, true); err != nil {
		return err
	}
	if err := b.load.merge(ctx, b.server.writes); err != nil {
		return err
	}
	if err := b.load.clear(ctx, b.server.writes); err != nil {
		return err
	}
	if b.wants(partBig) {
		if err := b.flips(ctx, fmt.Sprintf("readiness of a pod, one Service of %d pods", len(b.load.pods))); err != nil {
			return err
		}
	}
	if b.wants(partReplace) {
		return b.replaceAll(ctx)
	}
	return nil
}

// say tells on standard error what is under way.
func (b *bench) say(format string, args ...any) {
	if b.verbose {
		fmt.Fprintf(os.Stderr, "%4.0f s  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
	}
}

// contenders are those of a part. The limited one is there for reference and runs once.
func (b *bench) contenders() []contender {
	return []contender{
		{name: oursName, kind: "ours", qps: unlimited},
		{name: peerName, kind: "upstream", qps: unlimited},
		{name: limitedName, kind: "upstream", qps: upstreamQPS, burst: upstreamBurst},
		{name: insideName, kind: "ours", inside: true},
	}
}

// turns calls play for each contender in each of its rounds: ours, upstream, inside, ours, upstream, inside …
func (b *bench) turns(rounds int, play func(c contender, round int) error) error {
	for round := range rounds {
		for _, c := range b.contenders() {
			if c.name == limitedName && round < rounds-1 || len(b.only) > 0 && !slices.Contains(b.only, c.name) {
				continue
			}
			if err := play(c, round); err != nil {
				return err
			}
		}
	}
	return nil
}

// startup starts a server on a new folder, several times, and asks it something with kubectl.
func (b *bench) startup(ctx context.Context) error {
	var ready, answer, again []float64
	for i := range b.starts {
		s, err := newServer(b.binary, filepath.Join(b.dir, "start-"+strconv.Itoa(i)))
		if err != nil {
			return err
		}
		for _, figures := range []*[]float64{&answer, &again} { // on a new folder, and on the same again
			took, err := s.start(ctx, false)
			if err == nil {
				if figures == &answer {
					ready = append(ready, took.Seconds())
				}
				err = s.kubectl(ctx, "get", "svc")
			}
			if err != nil {
				return errors.Join(err, s.stop())
			}
			*figures = append(*figures, time.Since(s.process.started).Seconds())
			if err := s.stop(); err != nil {
				return err
			}
		}
	}
	b.say("startup: %s s", number(quantile(answer, 0.5)))
	b.own.Rows = append(b.own.Rows,
		serverFigure("exec → ready line, new data folder", "s", ready, "", 0),
		serverFigure("exec → first kubectl get svc answered", "s", answer, "kube-apiserver + etcd 1.9–2.3", 0.7),
		serverFigure("the same, existing data folder", "s", again, "", 0.7))
	return nil
}

// rested is the server's resident memory after a rest, which is not for something to happen but for the garbage
// collector and the kernel to have their time.
func (b *bench) rested(ctx context.Context) (memory, error) {
	if err := pause(ctx, b.settle); err != nil {
		return memory{}, err
	}
	return b.server.process.memory()
}

func megabytes(bytes int64) []float64 { return []float64{float64(bytes) / 1e6} }

// small brings the load to so many Services of ten pods, and has readiness flipped there.
func (b *bench) small(ctx context.Context, services int) error {
	last := services == b.services[len(b.services)-1]
	if err := b.server.as(ctx, false); err != nil {
		return err
	}
	began := time.Now()
	if err := b.load.grow(ctx, b.server.writes, services); err != nil {
		return err
	}
	b.say("load: %d Services, %d pods in %s s", services, len(b.load.pods), number(time.Since(began).Seconds()))
	if last && b.wants(partMemory) {
		if err := b.memory(ctx); err != nil {
			return err
		}
	}
	if !b.wants(partFlips) {
		return nil
	}
	return b.flips(ctx, fmt.Sprintf("readiness of a pod, %d Services of %d pods", services, podsPerService))
}

// memory reads the server's memory with the load, and after a restart.
func (b *bench) memory(ctx context.Context) error {
	inside := contender{name: insideName, kind: "ours", inside: true}
	for i, name := range []string{"after loading", "after a restart"} {
		if i > 0 {
			if err := b.server.stop(); err != nil {
				return err
			}
		}
		var rss memory
		err := b.play(ctx, inside, func(*stage) (err error) {
			rss, err = b.rested(ctx)
			return err
		})
		if err != nil {
			return err
		}
		peer, limit := "", 0.0
		if i > 0 {
			peer = "kube-apiserver 661 at 10k pods, 1k Services"
			limit = 406 // what the design's spike had, its upper figure
		}
		title := fmt.Sprintf("resident memory, %d pods, %d Services, %s", len(b.load.pods), b.load.services, name)
		b.own.Rows = append(b.own.Rows,
			serverFigure(title, "MB", megabytes(rss.now), peer, limit),
			serverFigure("of it not pages of files, "+name, "MB", megabytes(rss.anonymous), "", 0))
		b.say("%s: %s MB", title, number(megabytes(rss.now)[0]))
	}
	return nil
}

// flips has readiness flipped by every contender in turn. In one large Service it matters what a contender still has to do
// when the next flip comes, so that is measured at both paces.
func (b *bench) flips(ctx context.Context, title string) error {
	paces := []pace{whenIdle}
	titles := map[pace]string{whenIdle: title, whenSeen: title + ", the next flip as soon as the last is seen"}
	if b.load.big {
		paces = append(paces, whenSeen)
	}
	runs := map[pace]map[string][]*flipRun{whenIdle: {}, whenSeen: {}}
	err := b.turns(b.rounds, func(c contender, round int) error {
		samples := b.samples
		if b.load.big && c.kind == "upstream" {
			samples = b.peerSamples
		}
		return b.play(ctx, c, func(s *stage) error {
			for _, next := range paces {
				run, err := s.flip(ctx, uint64(round), samples, next)
				if err != nil {
					return err
				}
				runs[next][c.name] = append(runs[next][c.name], run)
				b.say("%s: %s: patch %s ms, slice %s ms, %s ms of CPU", titles[next], c.name, number(quantile(run.patch, 0.5)),
					number(quantile(run.slice, 0.5)), number(1000*run.cpu.Seconds()/float64(run.flips)))
			}
			return nil
		})
	})
	for _, next := range paces {
		if len(runs[next]) > 0 {
			b.report.Sections = append(b.report.Sections, flipSection(titles[next], columnsOf(runs[next]), runs[next], b.load.scale()))
		}
	}
	return err
}

func (b *bench) replaceAll(ctx context.Context) error {
	runs := map[string][]*replaceRun{}
	title := fmt.Sprintf("rolling replacement of the %d pods of one Service", len(b.load.pods))
	err := b.turns(b.replacements, func(c contender, _ int) error {
		if c.inside || c.name == limitedName {
			return nil // the former's CPU and memory are the server's, and here the API is slower than the latter's limit
		}
		if err := b.server.as(ctx, true); err != nil {
			return err
		}
		if err := b.load.clear(ctx, b.server.writes); err != nil {
			return err
		}
		return b.play(ctx, c, func(s *stage) error {
			run, err := s.replace(ctx)
			if err != nil {
				return err
			}
			runs[c.name] = append(runs[c.name], run)
			b.say("%s: %s: %s s, the API alone %s s; %d and %d writes, %s s of CPU", title, c.name, number(run.slices.Seconds()),
				number(run.api.Seconds()), run.written.slices, run.written.endpoints, number(run.cpu.Seconds()))
			return nil
		})
	})
	if len(runs) > 0 {
		b.report.Sections = append(b.report.Sections, replaceSection(title, columnsOf(runs), runs, b.load.scale()))
	}
	return err
}
