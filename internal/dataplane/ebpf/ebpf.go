package ebpf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cilium/ebpf"
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

	// firstFrontends and firstSlots are for tests; 0 is the constant of that name.
	firstFrontends, firstSlots uint32
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

// New loads the programs and opens the maps that an earlier agent left, or makes new ones. Clients notice nothing of it before the first Sync. It must be
// called in the node's network namespace. An error that is [dataplane.ErrNotSupported] says what the machine lacks.
func New(o Options) (*Proxier, error) {
	if o.Compare == 0 {
		o.Compare = defaultCompare
	}
	if o.firstFrontends == 0 {
		o.firstFrontends, o.firstSlots = firstFrontends, firstSlots
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
	if err := p.maps.open(spec, o.Pins, o.firstFrontends, o.firstSlots); err != nil {
		return nil, unsupported("BPF maps", err)
	}
	if p.programs, p.hooks, err = load(spec, p.maps); err != nil {
		p.maps.close()
		return nil, unsupported("BPF programs at cgroups", err)
	}
	if p.closer, err = newCloser(o, p); err != nil {
		_ = p.programs.Close()
		p.maps.close()
		return nil, fmt.Errorf("ebpf: %w", err)
	}
	return p, nil
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
	var err error
	var l left
	if p.table == nil {
		l = everythingLeft()
		err = p.adopt(ctx, s)
	} else {
		l, err = p.change(ctx, s)
	}
	if err == nil && !p.inForce {
		_, err = p.attach()
	}
	if err != nil {
		p.table = nil // what is in the maps is read again
		return fmt.Errorf("ebpf: %w", err)
	}
	p.last = s
	p.closer.look(s, l)
	return nil
}

// adopt brings maps of which nothing is known to a Snapshot.
func (p *Proxier) adopt(ctx context.Context, s *model.Snapshot) error {
	c, err := p.maps.contents(ctx)
	if err != nil {
		return err
	}
	had := size{frontends: len(c.frontends), slots: max(len(c.slots), len(c.members))}
	table := adopt(c)
	table.Apply(table.Plan(nil, s))
	w := difference(c, table)
	if err := p.write(ctx, had, w, table); err != nil {
		return err
	}
	p.table, p.compared = table, time.Now()
	p.has = size{frontends: len(table.Frontends), slots: countSlots(table)}
	return nil
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
	return whatLeft(c, p.last, s), nil
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
	frontends, slots, err := capacities(need)
	if err != nil {
		return err
	}
	frontends, slots = max(frontends, p.options.firstFrontends), max(slots, p.options.firstSlots)
	larger, err := p.maps.grown(p.spec, p.options.Pins, frontends, slots)
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
		return err
	}
	p.mu.Lock()
	old := p.maps
	p.maps = larger
	p.mu.Unlock()
	old.close()
	_ = p.programs.Close()
	p.programs, p.hooks, p.inForce = programs, hooks, false
	p.options.Logger.Debug("maps have grown", "frontends", frontends, "slots", slots)
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
	p.closer.look(p.last, everythingLeft())
	return repaired, err
}

// Close implements [dataplane.Proxier].
func (p *Proxier) Close() error {
	p.closer.close()
	err := errors.Join(p.attached.close(), p.programs.Close())
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

// isMember implements memory.
func (p *Proxier) isMember(key programMemberKey) (bool, error) {
	var value uint32
	found, err := p.lookup(func(m *mapSet) *ebpf.Map { return m.members }, &key, &value)
	return found, err
}

// connection implements memory.
func (p *Proxier) connection(cookie uint64) (c programConnection, err error) {
	_, err = p.lookup(func(m *mapSet) *ebpf.Map { return m.connections }, &cookie, &c)
	return c, err
}

func (p *Proxier) lookup(of func(*mapSet) *ebpf.Map, key, value any) (found bool, err error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	err = of(p.maps).Lookup(key, value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", of(p.maps), err)
	}
	return true, nil
}

// records implements memory.
func (p *Proxier) records(use func(fd int) error) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return use(p.maps.records.FD())
}
