package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// sandbox is an `endpointd up` as a child of ours. A second one on the same folder finds what the first has left.
type sandbox struct {
	binary, dir string
	nodes       int
	process     *process // nil when it is down
}

// upReady is how the line begins that `up` prints last.
const upReady = "endpointd is ready"

func (s *sandbox) kubeconfig() string { return filepath.Join(s.dir, "admin.kubeconfig") }

// up returns how long it took from exec to the ready line.
func (s *sandbox) up(ctx context.Context) (time.Duration, error) {
	p, err := startUntil(upReady, "endpointd up", s.dir+".log", nil, s.binary, "up", "--nodes", strconv.Itoa(s.nodes), "--data-dir", s.dir,
		"--listen", "127.0.0.1:0", "--publish-node-ports=false", "--log-level", "warn")
	if err != nil {
		return 0, err
	}
	s.process = p
	at, err := p.ready(ctx, readyWait)
	if err != nil {
		return 0, errors.Join(err, s.down(ctx))
	}
	return at.Sub(p.started), nil
}

// down ends it, as a user would.
func (s *sandbox) down(ctx context.Context) error {
	if s.process == nil {
		return nil
	}
	p := s.process
	s.process = nil
	// What is measured ends although the measuring was interrupted.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	out, err := exec.CommandContext(ctx, s.binary, "down", "--data-dir", s.dir).CombinedOutput() //nolint:gosec // the program that is measured
	if err != nil {
		return errors.Join(fmt.Errorf("endpointd down: %w\n%s", err, out), p.stop())
	}
	select {
	case <-p.done:
		return p.log.Close()
	case <-ctx.Done():
		return errors.Join(errors.New("endpointd up runs on after down"), p.stop())
	}
}

// parts are the processes: "server" and each node's agent.
func (s *sandbox) parts(ctx context.Context) (map[string]int, error) {
	out, err := exec.CommandContext(ctx, s.binary, "status", "--data-dir", s.dir, "-o", "json").Output() //nolint:gosec // as above
	if err != nil {
		return nil, fmt.Errorf("endpointd status: %w", err)
	}
	type part struct {
		Name string `json:"name"`
		PID  int    `json:"pid"`
	}
	var status struct {
		Server part   `json:"server"`
		Nodes  []part `json:"nodes"`
	}
	if err := json.Unmarshal(out, &status); err != nil {
		return nil, fmt.Errorf("endpointd status: %w", err)
	}
	pids := map[string]int{serverPart: status.Server.PID}
	for _, n := range status.Nodes {
		pids[n.Name] = n.PID
	}
	for name, pid := range pids {
		if pid < 2 {
			return nil, fmt.Errorf("endpointd status: %s does not run", name)
		}
	}
	return pids, nil
}

const serverPart = "server"

// nodesParts measures nodes: how they start, their pods, and how endpoints follow when pods and nodes die.
func (b *bench) nodesParts(ctx context.Context) error {
	if b.wants(partUp) {
		if err := b.upAndDown(ctx); err != nil {
			return err
		}
	}
	if b.wants(partProbes) {
		if err := b.probes(ctx); err != nil {
			return err
		}
	}
	if !b.wants(partPods) && !b.wants(partKills) && !b.wants(partSilent) {
		return nil
	}
	return b.withFleet(ctx, func(f *fleet) error {
		for _, part := range []struct {
			name    string
			measure func(context.Context, *fleet) error
		}{{partPods, b.podsPart}, {partKills, b.killsPart}, {partSilent, b.silentPart}} {
			if !b.wants(part.name) {
				continue
			}
			if err := part.measure(ctx, f); err != nil {
				return fmt.Errorf("%s: %w", part.name, err)
			}
		}
		return nil
	})
}

// upAndDown starts three nodes on a new folder and on the same again, several times.
func (b *bench) upAndDown(ctx context.Context) error {
	var first, again, down []float64
	for i := range b.starts {
		s := &sandbox{binary: b.binary, dir: filepath.Join(b.dir, "up-"+strconv.Itoa(i)), nodes: upNodes}
		for _, figures := range []*[]float64{&first, &again} {
			took, err := s.up(ctx)
			if err != nil {
				return err
			}
			*figures = append(*figures, took.Seconds())
			began := time.Now()
			if err := s.down(ctx); err != nil {
				return err
			}
			down = append(down, time.Since(began).Seconds())
		}
	}
	b.say("up: %s s, again %s s; down %s s", number(quantile(first, 0.5)), number(quantile(again, 0.5)), number(quantile(down, 0.5)))
	t := nodeTable{title: fmt.Sprintf("endpointd up --nodes %d", upNodes)}
	t.add("exec → all ready, new data folder", "s", first, len(first)).published(
		"one node: kind 12.5–17.1 s (kind #2893); minikube with containerd in docker 20.6–23.9 s (minikube #17071)").atMost(2)
	t.add("the same, existing data folder", "s", again, len(again)).atMost(2)
	t.add("down, all gone", "s", down, len(down))
	b.report.Sections = append(b.report.Sections, t.section())
	return nil
}
