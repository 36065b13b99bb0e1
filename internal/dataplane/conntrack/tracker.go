package conntrack

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/endpointd/endpointd/internal/model"
)

// Options are those of a [Tracker].
type Options struct {
	// Period is between two looks at the whole table; 0 = 30 s.
	Period time.Duration
	// Logger may be nil.
	Logger *slog.Logger
}

const (
	defaultPeriod = 30 * time.Second
	// graveTime is how long a frontend that is gone is remembered at least; no packet takes that long from nftables to the table.
	graveTime = 10 * time.Second
	// shareOfTime: after a pass that took a time, this many times as long nothing is done, so that changes without end cost a fifth of a core.
	shareOfTime = 4
	maxPause    = time.Second
	// synTime is how long SYNs may wait for a pass: a client sends its second one a second after the first (RFC 6298, section 2).
	synTime    = 500 * time.Millisecond
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// A Tracker keeps the kernel's table of flows to what is in force. Its methods may be called concurrently, but for Close.
type Tracker struct {
	options Options
	wake    chan struct{} // holds one token if something is owed that Run has not seen
	later   chan struct{} // the same for what can wait for synTime

	mu sync.Mutex // guards what follows
	judge
	current *model.Snapshot // the same as now
	owed
	inherited map[model.FrontendKey][]netip.AddrPort // until the first Snapshot
	frontends map[kind]int
	swept     bool // the whole table was seen once

	pass           sync.Mutex // held by who uses the sockets
	asking, ending *socket    // one dumps while the other deletes
}

// owed is what the kernel was not looked at for yet.
type owed struct {
	all  bool
	look map[model.FrontendKey]struct{}
}

// A Result says what a pass over the table did.
type Result struct {
	Seen    int // entries that the kernel sent
	Deleted int // those of them that it forgot
}

// New opens sockets in the network namespace of the calling thread. It needs CAP_NET_ADMIN there.
func New(o Options) (*Tracker, error) {
	if o.Period == 0 {
		o.Period = defaultPeriod
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	asking, err := open()
	if err != nil {
		return nil, err
	}
	ending, err := open()
	if err != nil {
		return nil, errors.Join(err, asking.close())
	}
	return &Tracker{
		options: o, wake: make(chan struct{}, 1), later: make(chan struct{}, 1), asking: asking, ending: ending,
		judge: judge{
			owned: map[model.FrontendKey]*model.Service{}, graves: map[model.FrontendKey]grave{}, others: map[netip.Addr]int{},
		},
		owed:      owed{look: map[model.FrontendKey]struct{}{}},
		frontends: map[kind]int{},
	}, nil
}

// Close closes the sockets. Nothing else may run, or be called later.
func (t *Tracker) Close() error { return errors.Join(t.asking.close(), t.ending.close()) }

// Inherit tells the Tracker before the first Snapshot is in force which frontends an earlier run left in the kernel, and where each of them led. Without
// it flows to NodePorts and external addresses of Services that were deleted meanwhile stay; ClusterIPs are known by their range.
func (t *Tracker) Inherit(frontends iter.Seq2[model.FrontendKey, []netip.AddrPort]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.inherited == nil {
		t.inherited = map[model.FrontendKey][]netip.AddrPort{}
	}
	for key, endpoints := range frontends {
		t.inherited[key] = append(t.inherited[key], endpoints...)
	}
}

// Expect says that the Snapshot may come into force from now on. Until it, or a later one, is [Tracker.Applied], flows that fit it are left alone too.
func (t *Tracker) Expect(next *model.Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current == nil || next.Revision > t.current.Revision {
		t.next = next
	}
}

// Applied says that a Snapshot is in force. It returns at once, and costs in proportion to what changed; [Tracker.Run], or Reconcile, does the
// rest. It fits the Synced of a dataplane.RunnerOptions.
func (t *Tracker) Applied(_, now *model.Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var was desired
	if t.current != nil {
		was = t.current
	}
	changed := now.Changed(t.current)
	if expected, ok := t.next.(*model.Snapshot); ok && expected.Revision <= now.Revision {
		t.next = nil
	}
	t.current = now
	t.applied(was, now, &now.Network, changed)
}

// applied does so for anything that is like a Snapshot, with t.mu held. Was is nil at first.
func (t *Tracker) applied(was, now desired, network *model.Network, changed iter.Seq[model.ServiceKey]) {
	t.now, t.network = now, network
	d := compare(was, now, changed)
	dug := time.Now()
	for key, endpoints := range d.graves {
		t.graves[key] = grave{endpoints: endpoints, dug: dug}
	}
	for _, key := range d.born {
		delete(t.graves, key)
	}
	for key, owner := range d.owned {
		if t.owned[key] = owner; owner == nil {
			delete(t.owned, key)
		}
	}
	add(t.frontends, d.frontends)
	add(t.others, d.others)
	if was == nil {
		t.owed = owed{all: true}
		for key, endpoints := range t.inherited {
			if now.Owner(key) == nil {
				t.graves[key] = grave{endpoints: endpoints, dug: dug}
			}
		}
		t.inherited = nil
	} else {
		t.owe(owed{look: d.look})
	}
	t.nudge(d)
}

// nudge has Run do what is owed.
func (t *Tracker) nudge(d *difference) {
	to := t.later
	if t.all || d.urgent() {
		to = t.wake
	} else if len(d.look) == 0 {
		return
	}
	select {
	case to <- struct{}{}:
	default: // one pass does both
	}
}

// add adds up counts and forgets those that are 0.
func add[K comparable](to, by map[K]int) {
	for key, n := range by {
		if to[key] += n; to[key] == 0 {
			delete(to, key)
		}
	}
}

// owe adds to what is owed, with t.mu held.
func (t *Tracker) owe(more owed) {
	t.all = t.all || more.all
	if t.look == nil {
		t.look = map[model.FrontendKey]struct{}{}
	}
	for key := range more.look {
		t.look[key] = struct{}{}
	}
}

// Run does what is owed, and looks at the whole table at first and after each period, until ctx ends; it returns nil then.
func (t *Tracker) Run(ctx context.Context) error {
	period := time.NewTicker(t.options.Period)
	defer period.Stop()
	var syns <-chan time.Time // not nil while SYNs wait
	pause := time.NewTimer(0)
	defer pause.Stop()
	var failures int
	for {
		select { // the pause first
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
		for wait := failures == 0; wait; {
			select {
			case <-ctx.Done():
				return nil
			case <-t.later:
				if syns == nil {
					syns = time.After(synTime)
				}
				continue
			case <-syns:
			case <-t.wake:
			case <-period.C:
				t.oweAll()
			}
			wait = false
		}
		syns = nil
		start := time.Now()
		result, err := t.Reconcile(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			t.options.Logger.Error("stale flows could not be deleted, trying again", "component", "conntrack", "err", err)
			pause.Reset(min(firstRetry<<min(failures, 10), lastRetry))
			failures++
			continue
		}
		failures = 0
		took := time.Since(start)
		if result.Deleted > 0 {
			t.options.Logger.Debug("stale flows deleted", "component", "conntrack", "deleted", result.Deleted, "seen", result.Seen, "took", took)
		}
		pause.Reset(min(shareOfTime*took, maxPause))
	}
}

func (t *Tracker) oweAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = t.now != nil
}

// Sweep compares the whole table with what is in force.
func (t *Tracker) Sweep(ctx context.Context) (Result, error) {
	t.oweAll()
	return t.Reconcile(ctx)
}

// Reconcile looks at the flows that may be wrong since it last succeeded, and deletes those that are. It does nothing if no change was such that there can
// be any. What an error left undone is done by the next call.
func (t *Tracker) Reconcile(ctx context.Context) (Result, error) {
	t.pass.Lock()
	defer t.pass.Unlock()
	t.mu.Lock()
	start, due := time.Now(), t.owed
	t.owed = owed{}
	questions := t.questions(due)
	t.mu.Unlock()

	var result Result
	doomed := &batch{socket: t.ending}
	err := func() error {
		for _, q := range questions {
			if err := t.ask(ctx, q, doomed, &result); err != nil {
				return err
			}
		}
		return nil
	}()
	// What was found is stale, whatever became of the rest.
	err = errors.Join(err, doomed.apply())
	result.Deleted = doomed.deleted
	if doomed.refused != nil {
		err = errors.Join(err, fmt.Errorf("the kernel keeps a conntrack entry: %w", doomed.refused))
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.owe(due)
		return result, err
	}
	if due.all {
		t.swept = true
		for key, g := range t.graves {
			if g.dug.Add(graveTime).Before(start) {
				delete(t.graves, key)
			}
		}
	}
	return result, nil
}

// dumpTries is how often a dump is begun that the kernel calls incomplete.
const dumpTries = 4

// ask passes over the flows of a question.
func (t *Tracker) ask(ctx context.Context, q question, doomed *batch, result *Result) error {
	for try := 1; ; try++ {
		err := t.asking.observe(q, func(f *flow) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			result.Seen++
			t.mu.Lock()
			lost := t.lost(f)
			t.mu.Unlock()
			if !lost {
				return nil
			}
			return doomed.add(f)
		})
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errInterrupted) && try < dumpTries:
		default:
			return fmt.Errorf("read the conntrack table, %s: %w; the kernel needs CONFIG_NF_CT_NETLINK (Linux 5.8 or newer), "+
				"the agent CAP_NET_ADMIN", q.describe(), err)
		}
	}
}
