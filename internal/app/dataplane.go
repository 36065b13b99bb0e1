package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/conntrack"
	"github.com/endpointd/endpointd/internal/dataplane/ebpf"
	"github.com/endpointd/endpointd/internal/dataplane/healthcheck"
	"github.com/endpointd/endpointd/internal/dataplane/nftables"
	"github.com/endpointd/endpointd/internal/dataplane/rivals"
	"github.com/endpointd/endpointd/internal/dataplane/slots"
	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/node/podnet"
)

// DataPlane says how connections are led to endpoints. nftables is always there: it serves what eBPF leaves, which is for clients on the node.
type DataPlane string

// The values of DataPlane.
const (
	DataPlaneAuto     DataPlane = "auto" // eBPF where the kernel and this user's rights allow it
	DataPlaneEBPF     DataPlane = "ebpf"
	DataPlaneNFTables DataPlane = "nftables"
)

// planeOptions are those of a plane.
type planeOptions struct {
	kind   DataPlane
	cgroup string                    // folder of a cgroup file system of version 2, whose processes are eBPF's clients; "" = there is none
	pins   string                    // folder for what eBPF keeps
	netns  func() []string           // network namespaces of pods, for eBPF
	listen string                    // address of the server for load balancers and probes; "" = none
	failed func(healthcheck.Failure) // told when load balancers cannot ask for a Service's health; nil = nobody is
	log    *slog.Logger
}

// plane is what leads connections on this node.
type plane struct {
	o        planeOptions
	name     string // of the mechanisms
	ebpf     bool   // it is one of them
	proxiers []dataplane.Proxier
	tracker  *conntrack.Tracker
	runner   *dataplane.Runner
	health   *healthcheck.Proxy
	checks   *healthcheck.Server // of Services with a healthCheckNodePort
	names    *names              // for its metrics; nil = there is no DNS server

	mu     sync.Mutex // guards all below
	wanted *model.Snapshot
	since  time.Time // when the oldest Snapshot came that is not in force; zero = all are
	syncs  uint64
	took   time.Duration // of all syncs together, from Set to in force
}

// newPlane chooses the mechanisms. Nothing is done to the kernel before the first Snapshot.
func newPlane(ctx context.Context, o planeOptions) (*plane, error) {
	p := &plane{o: o, health: &healthcheck.Proxy{}}
	p.checks = healthcheck.New(healthcheck.Options{Healthy: p.health.Healthy, Failed: o.failed, Logger: o.log})
	if err := p.choose(ctx); err != nil {
		p.close()
		return nil, err
	}
	var err error
	if p.tracker, err = conntrack.New(conntrack.Options{Logger: o.log}); err != nil {
		p.close()
		return nil, err
	}
	p.runner = dataplane.NewRunner(dataplane.RunnerOptions{Proxiers: p.proxiers, Synced: p.synced, Logger: o.log})
	return p, nil
}

// choose makes the Proxiers, and says which and why.
func (p *plane) choose(ctx context.Context) error {
	why := "as asked for"
	p.name = "nftables"
	if p.o.kind != DataPlaneNFTables {
		sockets, err := p.sockets(ctx)
		switch {
		case err == nil:
			p.name, p.ebpf, p.proxiers = "ebpf and nftables", true, []dataplane.Proxier{sockets}
			if p.o.kind == DataPlaneAuto {
				why = "this machine has all that is needed"
			}
		case p.o.kind == DataPlaneEBPF:
			return fmt.Errorf("--data-plane ebpf: %w", onThisKernel(err))
		default:
			why = "no eBPF: " + onThisKernel(err).Error()
		}
	}
	tables, err := nftables.New(nftables.Options{Logger: p.o.log, Adopted: p.inherit, Untracked: p.ebpf, Kin: []string{podnet.Table}})
	if err != nil {
		return onThisKernel(err)
	}
	p.proxiers = slices.Insert(p.proxiers, 0, dataplane.Proxier(tables)) // what serves everybody is in force first
	if !p.ebpf {
		if err := ebpf.RemovePins(p.o.pins); err != nil {
			return fmt.Errorf("what an earlier run with eBPF left: %w", err)
		}
	}
	p.o.log.Info("data plane chosen", "data_plane", p.name, "why", why)
	return nil
}

// sockets makes the Proxier for clients on this node.
func (p *plane) sockets(ctx context.Context) (dataplane.Proxier, error) {
	if inUserNamespace() { // before a mount is refused, which would be named instead
		return nil, &dataplane.UnsupportedError{Feature: "eBPF in a user namespace, as of users other than root,"}
	}
	if p.o.cgroup == "" {
		return nil, &dataplane.UnsupportedError{Feature: "cgroup v2, which is not mounted or not writable here,"}
	}
	if err := ebpf.MountPins(p.o.pins); err != nil {
		return nil, err
	}
	o := ebpf.Options{Cgroups: []string{p.o.cgroup}, Pins: p.o.pins, Namespaces: p.o.netns, Logger: p.o.log}
	if err := ebpf.Supported(ctx, o); err != nil {
		return nil, err
	}
	sockets, err := ebpf.New(o)
	if err != nil {
		return nil, err // not a nil *Proxier in an interface
	}
	return sockets, nil
}

// inUserNamespace says whether root here is somebody else on the machine.
func inUserNamespace() bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(ids)), " ") != "0 0 4294967295"
}

// onThisKernel adds the kernel's version to what it lacks.
func onThisKernel(err error) error {
	var name unix.Utsname
	if !errors.Is(err, dataplane.ErrNotSupported) || unix.Uname(&name) != nil {
		return err
	}
	return fmt.Errorf("%w (this is Linux %s)", err, unix.ByteSliceToString(name.Release[:]))
}

// set is for who makes Snapshots.
func (p *plane) set(s *model.Snapshot) {
	p.tracker.Expect(s)
	p.health.Expect(s)
	p.want(s)
	p.runner.Set(s)
}

// want notes what should be in force.
func (p *plane) want(s *model.Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = s
	if p.since.IsZero() {
		p.since = time.Now()
	}
}

// synced is called when a Snapshot is in force.
func (p *plane) synced(was, now *model.Snapshot) {
	p.tracker.Applied(was, now)
	p.health.Applied(was, now)
	p.checks.Set(now)
	p.note(now)
}

// inherit has flows end that an earlier run led to Services that were deleted since. It is called before the first Snapshot is in force.
func (p *plane) inherit(left *slots.Table) {
	p.tracker.Inherit(func(yield func(model.FrontendKey, []netip.AddrPort) bool) {
		for key, f := range left.Frontends {
			for _, pool := range []slots.PoolID{f.Internal.Pool, f.External.Pool} {
				if to := left.Pools[pool]; len(to) > 0 && !yield(key, to) {
					return
				}
			}
		}
	})
}

// note notes what is in force.
func (p *plane) note(now *model.Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.syncs++
	p.took += time.Since(p.since)
	p.since = time.Time{}
	if p.wanted.Revision > now.Revision {
		p.since = time.Now()
	}
}

// run works until ctx ends; then it lets go of the kernel, which forwards on.
func (p *plane) run(ctx context.Context) error {
	defer p.close()
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() { _ = p.tracker.Run(ctx) }) // both return nil when ctx has ended
	work.Go(func() { _ = p.checks.Run(ctx) })
	work.Go(func() { p.noticeRivals(ctx) })
	return p.runner.Run(ctx)
}

// rivalsPeriod is between two looks for other programs that forward Services.
const rivalsPeriod = time.Minute

// noticeRivals names each of them once, when it is there, until ctx ends. Nothing of theirs is touched.
func (p *plane) noticeRivals(ctx context.Context) {
	tick := time.NewTicker(rivalsPeriod)
	defer tick.Stop()
	said := map[rivals.Rival]bool{}
	for {
		found, err := rivals.Find(ctx)
		if err != nil && ctx.Err() == nil {
			p.o.log.Debug("other programs that forward Services could not be looked for everywhere", "err", err)
		}
		now := map[rivals.Rival]bool{}
		for _, r := range found {
			if now[r] = true; !said[r] {
				p.o.log.Warn("another program forwards Services on this machine, and both lead connections now", "name", r.Name, "sign", r.Sign, "fix", r.Fix)
			}
		}
		said = now
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *plane) close() {
	for _, proxier := range p.proxiers {
		if err := proxier.Close(); err != nil {
			p.o.log.Warn("data plane not closed", "err", err)
		}
	}
	if p.tracker != nil {
		if err := p.tracker.Close(); err != nil {
			p.o.log.Warn("conntrack not closed", "err", err)
		}
	}
}

// inForce returns when the first Snapshot is in force, or why ctx ended.
func (p *plane) inForce(ctx context.Context) error { return p.runner.Wait(ctx, 0) }

// planeStatus is how a plane is, for people and programs.
type planeStatus struct {
	DataPlane string `json:"dataPlane"`
	// Revision is the newest that is known, Applied the one in force; 0 = none.
	Revision uint64 `json:"revision"`
	Applied  uint64 `json:"applied"`
	Services int    `json:"services"` // in Applied
	// LateSeconds is the age of the oldest Snapshot that is not in force; 0 if all are.
	LateSeconds float64 `json:"lateSeconds"`
	// Error is why the newest is not in force, if it was tried.
	Error string `json:"error,omitempty"`
	// Syncs is how many were in force by now; SyncSeconds the time that they took together.
	Syncs       uint64  `json:"syncs"`
	SyncSeconds float64 `json:"syncSeconds"`
}

func (p *plane) status() planeStatus {
	applied, err := p.runner.Applied()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := planeStatus{DataPlane: p.name, Syncs: p.syncs, SyncSeconds: p.took.Seconds()}
	if !p.since.IsZero() {
		s.LateSeconds = time.Since(p.since).Seconds()
	}
	if p.wanted != nil {
		s.Revision = p.wanted.Revision
	}
	if applied != nil {
		s.Applied, s.Services = applied.Revision, applied.Len()
	}
	if err != nil {
		s.Error = strings.TrimSpace(err.Error())
	}
	return s
}

// pinsFolder is where eBPF keeps what outlives the agent.
func pinsFolder(dataDir string) string { return filepath.Join(dataDir, "bpf") }
