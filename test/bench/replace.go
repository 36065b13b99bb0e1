package main

import (
	"context"
	"time"
)

// replaceRun is one contender's rolling replacement of all pods.
type replaceRun struct {
	api            time.Duration // until the API had taken all writes of pods
	slices         time.Duration // until the slices led to exactly the new pods
	endpoints      time.Duration // until the Endpoints did, too
	written        counts
	cpu, serverCPU time.Duration
	memory         int64 // resident memory of the contender in bytes, before
	peak           int64 // and at its highest since the contender was started
	serverMemory   int64 // the server's, afterwards
	pods           int
}

// replace has all pods replaced and waits until the contender is done with it.
func (s *stage) replace(ctx context.Context) (*replaceRun, error) {
	run := &replaceRun{pods: len(s.load.pods)}
	resident, err := s.process.memory()
	if err != nil {
		return nil, err
	}
	run.memory = resident.now
	before, err := s.usage()
	if err != nil {
		return nil, err
	}
	if err := s.profile(true); err != nil {
		return nil, err
	}
	written := s.seen.written()
	began := time.Now()
	if err := s.load.replace(ctx, s.server.writes); err != nil {
		return nil, err
	}
	run.api = time.Since(began)
	if err := s.seen.await(ctx, "slices of exactly the new pods", settleWait, func() bool { return s.seen.settled(s.load.pods) }); err != nil {
		return nil, err
	}
	run.slices = time.Since(began)
	if err := s.seen.await(ctx, "Endpoints of the new pods", settleWait, func() bool { return s.seen.settledEndpoints(s.load) }); err != nil {
		return nil, err
	}
	run.endpoints = time.Since(began)
	if err := s.idle(ctx); err != nil {
		return nil, err
	}
	after, err := s.usage()
	if err != nil {
		return nil, err
	}
	run.written = s.seen.written().minus(written)
	run.cpu, run.serverCPU = after.contender-before.contender, after.server-before.server
	if err := s.profile(false); err != nil {
		return nil, err
	}
	if resident, err = s.process.memory(); err != nil {
		return nil, err
	}
	run.peak = resident.peak
	resident, err = s.server.process.memory()
	run.serverMemory = resident.now
	return run, err
}
