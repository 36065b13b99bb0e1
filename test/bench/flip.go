package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// flipWait is how long a flip may take to be seen.
	flipWait = 30 * time.Second
	// warmUp is how many flips come before those that count.
	warmUp = 10
)

// flipRun is what one contender did in one round.
type flipRun struct {
	flips                   int
	patch, slice, endpoints []float64 // milliseconds from when the PATCH was sent
	written                 counts
	cpu, serverCPU          time.Duration
}

// A pace says when the next flip is sent.
type pace int

const (
	whenIdle pace = iota // the contender has nothing more to do about the last one
	whenSeen             // slice and Endpoints show the last one
)

// flip turns the readiness of random pods over and back, one flip after the other.
func (s *stage) flip(ctx context.Context, seed uint64, samples int, next pace) (*flipRun, error) {
	random := rand.New(rand.NewPCG(seed, 1)) // every contender of a round flips the same pods
	for range warmUp / 2 {
		if err := s.overAndBack(ctx, random, &flipRun{}, whenIdle); err != nil {
			return nil, fmt.Errorf("warm up: %w", err)
		}
	}
	if err := s.profile(true); err != nil {
		return nil, err
	}
	run := &flipRun{}
	before, err := s.usage()
	if err != nil {
		return nil, err
	}
	written := s.seen.written()
	for run.flips < samples {
		if err := s.overAndBack(ctx, random, run, next); err != nil {
			return nil, err
		}
	}
	if err := s.idle(ctx); err != nil {
		return nil, err
	}
	after, err := s.usage()
	if err != nil {
		return nil, err
	}
	run.written = s.seen.written().minus(written)
	run.cpu, run.serverCPU = after.contender-before.contender, after.server-before.server
	return run, s.profile(false)
}

// overAndBack is two flips of one pod: to not ready and to ready again.
func (s *stage) overAndBack(ctx context.Context, random *rand.Rand, run *flipRun, next pace) error {
	p := s.load.pods[random.IntN(len(s.load.pods))]
	// Of a Service of more than a thousand pods, Endpoints show the first thousand ready ones, in the order of their
	// addresses; a pod that is shown goes and comes back with its readiness, the others change nothing.
	_, shown := s.seen.expect(p.name, s.load.serviceOf(p), false)
	for _, ready := range []bool{false, true} {
		if err := s.one(ctx, p, ready, shown, run); err != nil {
			return fmt.Errorf("readiness of pod %s to %v: %w", p.name, ready, err)
		}
		if next == whenIdle {
			if err := s.idle(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *stage) one(ctx context.Context, p pod, ready, shown bool, run *flipRun) error {
	ctx, cancel := context.WithTimeout(ctx, flipWait)
	defer cancel()
	status := map[bool]string{false: "False", true: "True"}[ready]
	body := fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Ready","status":%q,"lastTransitionTime":%q}]}}`,
		status, time.Now().UTC().Format(time.RFC3339))
	want, _ := s.seen.expect(p.name, s.load.serviceOf(p), ready)
	sent := time.Now()
	_, err := s.server.writes.CoreV1().Pods(namespace).Patch(ctx, p.name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
	if err != nil {
		return err
	}
	answered := time.Now()
	since := func(at time.Time) float64 { return float64(at.Sub(sent)) / float64(time.Millisecond) }
	run.flips++
	run.patch = append(run.patch, since(answered))
	select {
	case at := <-want.slice:
		run.slice = append(run.slice, since(at))
	case <-ctx.Done():
		return fmt.Errorf("the slice does not follow: %w", ctx.Err())
	}
	if shown {
		select {
		case at := <-want.endpoints:
			run.endpoints = append(run.endpoints, since(at))
		case <-ctx.Done():
			return fmt.Errorf("the Endpoints do not follow: %w", ctx.Err())
		}
	}
	return nil
}
