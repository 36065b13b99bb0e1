package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// settleWait is how long a contender may take to bring slices and Endpoints to what they should be.
const settleWait = 3 * time.Minute

// A contender is one of those that keep slices and Endpoints.
type contender struct {
	name, kind string
	qps        float64
	burst      int
	inside     bool // in the server's own process
}

const (
	oursName    = "ours"
	peerName    = "upstream"
	limitedName = "upstream 20/s"
	insideName  = "ours inside"
)

// stage is a contender at work: its caches are full, the slices are right, and it waits.
type stage struct {
	server    *server
	load      *load
	seen      *observer
	process   *process // the contender's, or the server's own
	inside    bool
	profiling bool
}

// play starts a contender, has it bring slices and Endpoints to what they should be, calls act, and stops it.
func (b *bench) play(ctx context.Context, c contender, act func(*stage) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", c.name, err)
		}
	}()
	if err := b.server.as(ctx, !c.inside); err != nil {
		return err
	}
	seen, err := observe(ctx, b.server.watches)
	if err != nil {
		return err
	}
	defer seen.close()
	s := &stage{server: b.server, load: &b.load, seen: seen, process: b.server.process, inside: c.inside}
	if !c.inside {
		args := []string{childCommand, "-kind", c.kind, "-kubeconfig", b.server.kubeconfig(),
			"-qps", strconv.FormatFloat(c.qps, 'f', -1, 64), "-burst", strconv.Itoa(c.burst)}
		if b.profiles != "" && (c.name == oursName || c.name == peerName) {
			s.profiling = true
			args = append(args, "-cpuprofile", filepath.Join(b.profiles, c.kind))
		}
		s.process, err = start(c.name, filepath.Join(b.dir, c.kind+".log"), b.server.environment(), b.self, args...)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.process.stop()) }()
		if _, err := s.process.ready(ctx, readyWait); err != nil {
			return err
		}
	}
	right := func() bool { return seen.settled(b.load.pods) && seen.settledEndpoints(&b.load) }
	if err := seen.await(ctx, "slices and Endpoints of the pods there are", settleWait, right); err != nil {
		return err
	}
	if err := s.idle(ctx); err != nil {
		return err
	}
	return act(s)
}

// idle waits until the contender has nothing more to do. A server is never as idle as a controller: etcd ticks.
func (s *stage) idle(ctx context.Context) error {
	quiet := 500 * time.Microsecond
	if s.inside {
		quiet = 5 * time.Millisecond
	}
	return s.process.idle(ctx, quiet, settleWait)
}

// usage is CPU time.
type usage struct{ contender, server time.Duration }

func (s *stage) usage() (u usage, err error) {
	if u.contender, err = s.process.cpu(); err != nil {
		return u, err
	}
	u.server, err = s.server.process.cpu()
	return u, err
}

// profile begins or ends the contender's CPU profile, if one is wanted.
func (s *stage) profile(on bool) error {
	if !s.profiling {
		return nil
	}
	if on {
		return s.process.cmd.Process.Signal(syscall.SIGUSR1)
	}
	return s.process.cmd.Process.Signal(syscall.SIGUSR2)
}
