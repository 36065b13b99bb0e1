package ebpf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/slots"
	"github.com/endpointd/endpointd/internal/model"
)

// Options of a [Proxier].
type Options struct {
	// Cgroups are folders of a cgroup file system of version 2: processes in them and below are the clients. None should lie in another.
	Cgroups []string
	// Pins is a folder of a bpffs that nobody else uses, see [MountPins]. Two agents must not use the same one at the same time.
	Pins string
	// Namespaces lists paths of network namespaces in which sockets may have to be closed, besides the one in which [New] is called. It is called from
	// another goroutine; those that do not exist any more are skipped. May be nil.
	Namespaces func() []string
	// Compare is how often Verify reads all maps back, and not just looks whether they are still in use. 0 is a minute.
	Compare time.Duration
	// Logger is required.
	Logger *slog.Logger

	// first and pauses are for tests; 0 is the constant of that name, nil is defaultPauses.
	first  capacity
	pauses []time.Duration
}

// defaultCompare is when Options say nothing.
const defaultCompare = time.Minute

// A Proxier translates in calls of sockets.
type Proxier struct {
	options Options
	spec    *ebpf.CollectionSpec
	closer  *closer

	mu   sync.RWMutex // guards maps against being replaced while the closer reads
	maps *mapSet

	programs *programPrograms
	hooks    []hook // of the programs
	attached attached
	inForce  bool         // the hooks run the programs, as far as is known
	table    *slots.Table // what is in the maps; nil if that is not known
	has      size
	last     *model.Snapshot // of the last Sync that succeeded
	compared time.Time       // when all maps were read back
	written  int             // how many entries were ever written or deleted
}

var _ dataplane.Proxier = (*Proxier)(nil)

// New opens the maps that an earlier agent left, or makes new ones. Clients notice nothing of it before the first Sync, which loads the programs. It must be
// called in the node's network namespace. An error that is [dataplane.ErrNotSupported] says what the machine lacks; to be sure beforehand that
// all programs load and may be attached, ask [Supported].
func New(o Options) (*Proxier, error) {
	if o.Compare == 0 {
		o.Compare = defaultCompare
	}
	o.first.frontends = cmp.Or(o.first.frontends, firstFrontends)
	o.first.slots = cmp.Or(o.first.slots, firstSlots)
	o.first.used = cmp.Or(o.first.used, firstUsed)
	if o.pauses == nil {
		o.pauses = defaultPauses()
	}
	if err := foldersUsable(o); err != nil {
		return nil, err
	}
	cookie, err := netnsCookie()
	if err != nil {
		return nil, fmt.Errorf("ebpf: %w", err)
	}
	spec, err := loadProgram()
	if err == nil {
		err = spec.Variables[programVarNodeCookie].Set(cookie)
	}
	if err != nil {
		return nil, fmt.Errorf("ebpf: read the compiled programs: %w", err)
	}
	p := &Proxier{options: o, spec: spec, maps: &mapSet{}, attached: attached{dir: o.Pins, links: map[string]link.Link{}}}
	if err := p.maps.open(spec, o.Pins, o.first); err != nil {
		return nil, unsupported("BPF maps", err)
	}
	if err := probe(); err != nil {
		p.maps.close()
		return nil, unsupported("BPF programs at cgroups", err)
	}
	if p.closer, err = newCloser(o, p); err != nil {
		p.maps.close()
		return nil, fmt.Errorf("ebpf: %w", err)
	}
	return p, nil
}

// probe loads and forgets a program that lets everything pass, of the newest kind: who may not load programs, or has a kernel that is too old, learns
// it here. Loading ours takes longer, and is done once it is known how large the maps must be.
func probe() error {
	pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSock, AttachType: ebpf.AttachCgroupInetSockRelease, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		return err
	}
	return pass.Close()
}

// load loads the programs so that they use these maps.
func load(spec *ebpf.CollectionSpec, m *mapSet) (*programPrograms, []hook, error) {
	spec = spec.Copy()
	replace := m.byName()
	for name, replacement := range replace {
		spec.Maps[name].MaxEntries = replacement.MaxEntries()
	}
	programs := &programPrograms{}
	if err := spec.LoadAndAssign(programs, &ebpf.CollectionOptions{MapReplacements: replace}); err != nil {
		return nil, nil, err
	}
	all, err := hooks(programs)
	if err != nil {
		return nil, nil, errors.Join(err, programs.Close())
	}
	return programs, all, nil
}

// Sync implements [dataplane.Proxier].
func (p *Proxier) Sync(ctx context.Context, s *model.Snapshot) error {
	if p.table != nil && p.last == s {
		return nil
	}
	l, err := p.bring(ctx, s)
	if err != nil {
		p.table = nil // what is in the maps is read again
		return fmt.Errorf("ebpf: %w", err)
	}
	p.last = s
	p.closer.look(s, l)
	return nil
}

// bring brings maps and hooks to a Snapshot, and says what may have left sockets behind.
func (p *Proxier) bring(ctx context.Context, s *model.Snapshot) (l left, err error) {
	if err := p.forget(); err != nil {
		return l, err
	}
	if p.table == nil {
		l, err = p.adopt(ctx, s)
	} else {
		l, err = p.change(ctx, s)
	}
	if err == nil && p.programs == nil {
		if p.programs, p.hooks, err = load(p.spec, p.maps); err != nil {
			err = unsupported("BPF programs at cgroups", err)
		}
	}
	if err == nil && !p.inForce {
		_, err = p.attach()
	}
	return l, err
}

// adopt brings maps of which nothing is known to a Snapshot.
func (p *Proxier) adopt(ctx context.Context, s *model.Snapshot) (left, error) {
	c, err := p.maps.contents(ctx)
	if err != nil {
		return left{}, err
	}
	had := size{frontends: len(c.frontends), slots: max(len(c.slots), len(c.members))}
	table := adopt(c)
	table.Apply(table.Plan(nil, s))
	w := difference(c, table)
	if err := p.write(ctx, had, w, table); err != nil {
		return left{}, err
	}
	p.table, p.compared = table, time.Now()
	p.has = size{frontends: len(table.Frontends), slots: countSlots(table)}
	return p.everythingLeft(ctx, w)
}

// change brings the maps from the last Snapshot to another one.
func (p *Proxier) change(ctx context.Context, s *model.Snapshot) (left, error) {
	c := p.table.Plan(p.last, s)
	w := plan(c)
	p.table.Apply(c)
	if err := p.write(ctx, p.has, w, p.table); err != nil {
		return left{}, err
	}
	p.has.frontends = len(p.table.Frontends)
	for _, change := range c.Slots {
		if !change.Was.IsValid() {
			p.has.slots++
		}
		if !change.Now.IsValid() {
			p.has.slots--
		}
	}
	return whatLeft(w, p.last, s), nil
}

// write tells the maps. If they are too small, larger ones get the whole table.
func (p *Proxier) write(ctx context.Context, had size, w *writes, table *slots.Table) error {
	if w.count() == 0 {
		return nil
	}
	p.written += w.count()
	if p.maps.fits(had, w) {
		return p.maps.write(ctx, w)
	}
	return p.grow(ctx, table)
}

// grow makes larger maps for a table and has programs use them. Until the last moment the old ones are in use, and unchanged.
func (p *Proxier) grow(ctx context.Context, table *slots.Table) error {
	need := size{frontends: len(table.Frontends), slots: countSlots(table)}
	c, err := capacities(need)
	if err != nil {
		return err
	}
	c.frontends, c.slots = max(c.frontends, p.options.first.frontends), max(c.slots, p.options.first.slots)
	larger, err := p.maps.grown(p.spec, p.options.Pins, c)
	if err != nil {
		return err
	}
	if err := larger.write(ctx, difference(contents{}, table)); err != nil {
		larger.close()
		return err
	}
	programs, hooks, err := load(p.spec, larger)
	if err != nil {
		larger.close()
		return unsupported("BPF programs at cgroups", err)
	}
	p.mu.Lock()
	old := p.maps
	p.maps = larger
	p.mu.Unlock()
	old.close()
	if p.programs != nil {
		_ = p.programs.Close()
	}
	p.programs, p.hooks, p.inForce = programs, hooks, false
	p.options.Logger.Debug("maps have grown", "frontends", c.frontends, "slots", c.slots)
	return nil
}

func countSlots(t *slots.Table) int {
	n := 0
	for _, held := range t.Pools {
		n += len(held)
	}
	return n
}

// attach has all hooks run the programs, and removes what was replaced.
func (p *Proxier) attach() (changed bool, err error) {
	changed, err = p.attached.ensure(p.options.Cgroups, p.hooks)
	p.inForce = err == nil
	if err != nil || !changed {
		return changed, err
	}
	return true, p.attached.tidy(p.maps.pins(p.spec))
}

// Verify implements [dataplane.Proxier].
func (p *Proxier) Verify(ctx context.Context) (repaired bool, err error) {
	if p.table == nil {
		return false, nil // Sync reads everything
	}
	repaired, err = p.verify(ctx)
	if err != nil {
		return repaired, fmt.Errorf("ebpf: %w", err)
	}
	return repaired, nil
}

func (p *Proxier) verify(ctx context.Context) (bool, error) {
	if err := p.forget(); err != nil {
		return false, err
	}
	attached, err := p.attach()
	if err != nil {
		return attached, err
	}
	pinned, err := p.maps.repin(p.spec, p.options.Pins)
	repaired := attached || pinned
	if err != nil || time.Since(p.compared) < p.options.Compare {
		return repaired, err
	}
	p.compared = time.Now()
	c, err := p.maps.contents(ctx)
	if err != nil {
		return repaired, err
	}
	had := size{frontends: len(c.frontends), slots: max(len(c.slots), len(c.members))}
	w := difference(c, p.table)
	if w.count() > 0 {
		repaired = true
		if err = p.write(ctx, had, w, p.table); err == nil {
			_, err = p.attach() // if the maps have grown
		}
	}
	if err != nil {
		return repaired, err
	}
	l, err := p.everythingLeft(ctx, w)
	p.closer.look(p.last, l)
	return repaired, err
}

// Close implements [dataplane.Proxier].
func (p *Proxier) Close() error {
	p.closer.close()
	err := p.attached.close()
	if p.programs != nil {
		err = errors.Join(err, p.programs.Close())
	}
	p.maps.close()
	return err
}

// Remove implements [dataplane.Proxier].
func (p *Proxier) Remove(context.Context) error {
	p.table = nil
	if err := errors.Join(p.attached.close(), RemovePins(p.options.Pins)); err != nil {
		return fmt.Errorf("ebpf: %w", err)
	}
	return nil
}
