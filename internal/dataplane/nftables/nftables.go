package nftables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/slots"
	"github.com/endpointd/endpointd/internal/model"
)

// DefaultTable is the name of the table, in family inet.
const DefaultTable = "endpointd-services"

// Options are those of a [Proxier].
type Options struct {
	// Table is the name of the table; "" is [DefaultTable]. A second one, with "-b" after it, takes turns with it when the shape changes.
	Table string
	// Adopted, if not nil, is told in the first Sync, once, before what is in force changes, what an earlier run left there as far as it is
	// known. It must neither keep nor change the Table. Without such a run it is not called.
	Adopted func(*slots.Table)
	// Untracked has TCP connections between pods pass conntrack by, as long as there are no tables in this network but those of this Proxier and Kin.
	// That is for where hardly anything between pods is translated, because eBPF has led the clients' sockets.
	Untracked bool
	Kin       []string
	// Logger may be nil.
	Logger *slog.Logger
}

// A Proxier keeps one table in one network namespace. See [dataplane.Proxier].
type Proxier struct {
	options Options
	log     *slog.Logger
	socket  *socket
	watch   *watch
	// full is the shape's outline, small is that for kernels without the expression socket, nil until it is needed; shape is the one in force.
	full, small, shape *shape

	name tableName       // of the table in force; "" if there is none, or if that's not known
	have *state          // what the kernel has; nil if that's not known
	last *model.Snapshot // after which have is; nil if have was read
	// synced is that of the last Sync that succeeded.
	synced  *model.Snapshot
	adopted bool // Options.Adopted was called
	alone   bool // nobody else has rules here, see lookAround
}

// New opens nftables of the network namespace of the calling thread. It changes nothing there.
func New(o Options) (*Proxier, error) {
	if o.Table == "" {
		o.Table = DefaultTable
	}
	p := &Proxier{options: o, log: o.Logger, full: staticShape(true).outline()}
	p.shape = p.full
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if p.socket, err = openSocket(); err != nil {
		if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, &dataplane.UnsupportedError{Feature: "nftables over netlink", MinKernel: minKernel, Why: err}
		}
		return nil, err
	}
	if _, err := p.generation(); err != nil {
		_ = p.socket.close()
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil, &dataplane.UnsupportedError{Feature: "nftables (nf_tables)", MinKernel: minKernel, Why: err}
		}
		return nil, err
	}
	if p.watch, err = newWatch(p.socket); err != nil {
		_ = p.socket.close()
		return nil, err
	}
	return p, nil
}

// Close lets go of the socket. The kernel forwards on.
func (p *Proxier) Close() error { return errors.Join(p.socket.close(), p.watch.close()) }

// Sync makes the kernel do what s says; see [dataplane.Proxier].
func (p *Proxier) Sync(ctx context.Context, s *model.Snapshot) error {
	_, err := p.sync(ctx, s)
	if err == nil {
		p.synced = s
	}
	return err
}

func (p *Proxier) sync(ctx context.Context, s *model.Snapshot) (wrote bool, err error) {
	if p.have != nil {
		wrote, err := p.update(s)
		if err == nil || ctx.Err() != nil {
			return wrote, err
		}
		// Somebody else was there: see what's left of it.
		p.log.Warn("the kernel refused a change; reading the table again", "component", "nftables", "err", err)
		p.forget()
	}
	if err := p.find(); err != nil {
		return false, err
	}
	if p.have != nil {
		return p.update(s)
	}
	old := p.name
	err = p.build(s, old, staticShape(true))
	if lacksSocket(err) {
		p.log.Info("this kernel is built without nftables' socket expression; some resets by invalid packets cannot be prevented", "component", "nftables")
		err = p.build(s, old, staticShape(false))
	}
	return true, err
}

// forget has the next Sync read the kernel.
func (p *Proxier) forget() { p.have, p.last = nil, nil }

// find looks for a table of an earlier run.
func (p *Proxier) find() error {
	p.forget()
	p.name = ""
	if err := p.watch.begin(); err != nil {
		return err
	}
	if _, err := p.lookAround(); err != nil {
		return err
	}
	first := tableName(p.options.Table)
	var left *slots.Table
	for _, name := range []tableName{first, p.otherName(first)} {
		o, err := p.observe(name)
		if err != nil {
			return err
		}
		switch {
		case !o.exists:
		case o.damage == "":
			p.name, p.have = name, o.state
			p.adopt(o.left)
			return p.removeOther(name)
		default:
			p.log.Info("an nftables table is replaced", "component", "nftables", "table", string(name), "why", o.damage)
			if hooked, err := p.hooked(name); err != nil {
				return err
			} else if hooked {
				p.name, left = name, o.left
			}
		}
	}
	p.adopt(left)
	return nil
}

// adopt tells of what an earlier run left in force; nil is nothing.
func (p *Proxier) adopt(left *slots.Table) {
	if left != nil && p.options.Adopted != nil && p.synced == nil && !p.adopted {
		p.adopted = true
		p.options.Adopted(left)
	}
}

// removeOther deletes what a run that ended while it built a table has left.
func (p *Proxier) removeOther(t tableName) error {
	other := p.otherName(t)
	switch err := p.askTable(other, func([]byte) {}); {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return err
	}
	return p.commit(other, other.removeTable())
}

// update changes what differs in a table that is in force.
func (p *Proxier) update(s *model.Snapshot) (wrote bool, err error) {
	c := plan(p.have, p.last, s, p.alone)
	if !c.none() {
		wrote = true
		w := p.writer(p.name)
		c.write(p.name, w)
		w.flush()
		if w.err != nil {
			p.forget()
			return true, p.explain(s, w.err)
		}
	}
	p.have.apply(c)
	p.last = s
	return wrote, nil
}

// lacksSocket says that a table could not be made because of the expression socket alone.
func lacksSocket(err error) bool {
	var r *refusal
	if !errors.As(err, &r) || !errors.Is(err, dataplane.ErrNotSupported) {
		return false
	}
	for _, name := range r.named {
		if !strings.HasPrefix(name, "add rule "+socketChain+" ") {
			return false
		}
	}
	return true
}

// build makes a table under the name that is not in force, puts it in force in one step when it has everything, and then deletes the other.
func (p *Proxier) build(s *model.Snapshot, old tableName, shape shape) error {
	name := tableName(p.options.Table)
	if old != "" {
		name = p.otherName(old)
	}
	have := newState()
	c := plan(have, nil, s, p.alone)
	w := p.writer(name)
	w.first(name.removeTable()...)
	w.first(name.newTable(shape.version))
	for set := range setCount {
		w.first(name.newSet(set))
	}
	var hooks []order
	for _, chain := range shape.chains {
		if chain.hook == nil {
			w.first(name.newChain(chain))
		} else {
			hooks = append(hooks, name.newChain(chain))
		}
	}
	for _, chain := range shape.chains {
		if chain.hook == nil {
			w.first(name.newRules(chain)...)
		} else {
			hooks = append(hooks, name.newRules(chain)...)
		}
	}
	w.flush() // the chains, before what leads to them
	for _, v := range shape.verdicts {
		w.replace(element{set: v.set, key: native32(v.class), leads: true, code: v.code, chain: v.chain}, false, true)
	}
	c.write(name, w)
	w.flush()
	w.max = maxBatch // what puts it in force is one batch
	w.first(hooks...)
	w.flush()
	// The old one stays until then: the new one's chains come before it, and a packet that has just passed them as they began to count is
	// still translated by the old.
	w.first(p.otherName(name).removeTable()...)
	w.flush()
	if w.err != nil {
		p.forget()
		return p.explain(s, w.err)
	}
	have.apply(c)
	p.name, p.have, p.last, p.shape = name, have, s, shape.outline()
	return nil
}

func (p *Proxier) writer(t tableName) *writer {
	return &writer{table: t, max: p.socket.max, send: func(orders []order) error { return p.commit(t, orders) }}
}

// commit sends one batch.
func (p *Proxier) commit(t tableName, orders []order) error {
	batch, at := encode(orders)
	complaints, err := p.socket.commit(batch, uint32(len(orders)))
	if err != nil {
		return fmt.Errorf("nftables table inet %s: %w", t, err)
	}
	if len(complaints) > 0 {
		return newRefusal(t, orders, batch, at, complaints)
	}
	return nil
}

// Verify compares the kernel with the Snapshot of the last Sync; see [dataplane.Proxier].
func (p *Proxier) Verify(ctx context.Context) (repaired bool, err error) {
	s := p.synced
	if s == nil {
		return false, nil
	}
	changed, err := p.lookAround()
	if err == nil && changed {
		_, err = p.sync(ctx, s)
	}
	if err != nil {
		return false, err
	}
	generation, err := p.generation()
	if err != nil || generation == p.watch.heard && !p.watch.touched {
		return false, err
	}
	first := tableName(p.options.Table)
	p.watch.hear(first, p.otherName(first))
	if generation == p.watch.heard && !p.watch.touched {
		return false, nil // it was about others' tables, or our own doing
	}
	if err := p.find(); err != nil {
		return false, err
	}
	return p.sync(ctx, s)
}

// Remove deletes the table; only Close may follow.
func (p *Proxier) Remove(context.Context) error {
	p.forget()
	first := tableName(p.options.Table)
	orders := append(first.removeTable(), p.otherName(first).removeTable()...)
	return p.commit(first, orders)
}

// explain adds to an error which Services it is about, as far as they can be told from what the kernel names.
func (p *Proxier) explain(s *model.Snapshot, err error) error {
	var r *refusal
	if !errors.As(err, &r) {
		return err
	}
	for i, e := range r.blamed[:min(len(r.blamed), maxNamed)] {
		if key, ok := ownerOf(s, e); ok && e.key != nil {
			r.named[i] += " of service " + key.String()
		}
	}
	return err
}

// ownerOf finds the Service of an element.
func ownerOf(s *model.Snapshot, e element) (model.ServiceKey, bool) {
	f := e.set.family()
	switch e.set.kind() {
	case frontends, sources:
		key, ok := frontendKeyOf(e.key, f)
		if source, isSource := sourceOf(e.key, f); e.set.kind() == sources {
			key, ok = source.Frontend, isSource
		}
		if ok {
			if owner := s.Owner(key); owner != nil {
				return owner.Key, true
			}
		}
	case poolSlots, stickyEndpoints:
		if len(e.key) < 8 {
			return model.ServiceKey{}, false
		}
		id, _ := number(e.key[:8], 8)
		for service := range s.Services() {
			for _, port := range service.Ports {
				for _, fe := range port.Frontends {
					if slots.ID(fe.Internal.PoolKey) == slots.PoolID(id) || slots.ID(fe.External.PoolKey) == slots.PoolID(id) {
						return service.Key, true
					}
				}
			}
		}
	default:
	}
	return model.ServiceKey{}, false
}
