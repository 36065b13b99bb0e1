package slots

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/endpointd/endpointd/internal/model"
)

// ID is the same in every process. It's part of a cryptographic hash, so that nobody can name his Service such that another's endpoints
// become its own.
func ID(key model.PoolKey) PoolID {
	var flags byte
	if key.IPv6 {
		flags |= 1
	}
	if key.Local {
		flags |= 2
	}
	text := make([]byte, 0, 128)
	for _, part := range []string{key.Service.Namespace, key.Service.Name, key.Port} {
		text = append(append(text, part...), 0) // no part of a name has a zero byte
	}
	sum := sha256.Sum256(append(text, byte(key.Protocol), flags))
	return max(1, PoolID(binary.BigEndian.Uint64(sum[:8])))
}

// Plan is what changes the Table's kernel into what now says. was is the Snapshot after which the Table is; nil if that is not known, then the
// whole Table is compared with now.
func (t *Table) Plan(was, now *model.Snapshot) *Change {
	p := planning{table: t, change: &Change{hairpins: map[netip.Addr]int{}}, wanted: map[model.FrontendKey]*model.Frontend{}, touched: map[model.FrontendKey]struct{}{}}
	if was == nil {
		p.everything(now)
	} else {
		for key := range now.Changed(was) {
			p.service(was.Service(key), now.Service(key))
		}
		p.finishHairpins()
	}
	for key := range p.touched {
		p.frontend(key)
	}
	return p.change
}

// planning is one Plan on its way.
type planning struct {
	table   *Table
	change  *Change
	wanted  map[model.FrontendKey]*model.Frontend // frontend → of the new Snapshot, among the touched
	touched map[model.FrontendKey]struct{}        // frontends that may differ
}

// everything compares the whole Table with the Snapshot.
func (p *planning) everything(now *model.Snapshot) {
	known := map[PoolID]bool{}
	for s := range now.Services() {
		p.touch(s, true)
		for id, pool := range pools(s) {
			known[id] = true
			p.place(id, pool.Protocol, p.table.Pools[id], compare(p.table.Pools[id], pool.Endpoints))
			p.countHairpins(nil, pool)
		}
	}
	for id, held := range p.table.Pools {
		if !known[id] {
			p.place(id, 0, held, compare(held, nil))
		}
	}
	for key := range p.table.Frontends {
		p.touched[key] = struct{}{}
	}
	for key := range p.table.Sources { // also of frontends that are not there
		p.touched[key] = struct{}{}
	}
	for addr := range p.table.Hairpins {
		if p.change.hairpins[addr] == 0 {
			p.change.HairpinsGone = append(p.change.HairpinsGone, addr)
		}
	}
	for addr, count := range p.change.hairpins {
		if p.table.Hairpins[addr] == 0 {
			p.change.HairpinsAdded = append(p.change.HairpinsAdded, addr)
		}
		p.change.hairpins[addr] = count - p.table.Hairpins[addr]
	}
	for _, addr := range p.change.HairpinsGone {
		p.change.hairpins[addr] = -p.table.Hairpins[addr]
	}
}

// service plans for one Service that changed; was or now is nil if there was or is none.
func (p *planning) service(was, now *model.Service) {
	p.touch(was, false)
	p.touch(now, true)
	before, after := pools(was), pools(now)
	for id, pool := range after {
		old := before[id]
		if old == pool {
			continue
		}
		var had []*model.Endpoint
		if old != nil {
			had = old.Endpoints
		}
		gone, come := difference(had, pool.Endpoints)
		p.place(id, pool.Protocol, p.table.Pools[id], locate(p.table.Pools[id], gone, come))
		p.countHairpins(old, pool)
	}
	for id, pool := range before {
		if after[id] == nil {
			p.place(id, pool.Protocol, p.table.Pools[id], compare(p.table.Pools[id], nil))
			p.countHairpins(pool, nil)
		}
	}
}

// touch notes the frontends of a Service, which may be nil.
func (p *planning) touch(s *model.Service, wanted bool) {
	if s == nil {
		return
	}
	for _, port := range s.Ports {
		for i := range port.Frontends {
			key := port.Frontends[i].FrontendKey
			p.touched[key] = struct{}{}
			if wanted {
				p.wanted[key] = &port.Frontends[i]
			}
		}
	}
}

// frontend compares one frontend and its source ranges with the Table.
func (p *planning) frontend(key model.FrontendKey) {
	was := p.table.Frontends[key]
	now := Of(p.wanted[key])
	if was != now {
		p.change.Frontends = append(p.change.Frontends, FrontendChange{Key: key, Was: was, Now: now})
	}
	var ranges []netip.Prefix
	if want := p.wanted[key]; want != nil {
		ranges = want.SourceRanges
	}
	for _, r := range ranges {
		source := Source{Frontend: key, Range: r}
		if !p.table.has(source) {
			p.change.SourcesAdded = append(p.change.SourcesAdded, source)
		}
	}
	for r := range p.table.Sources[key] {
		if !slices.Contains(ranges, r) {
			p.change.SourcesRemoved = append(p.change.SourcesRemoved, Source{Frontend: key, Range: r})
		}
	}
}

// Of is how a frontend is kept in a kernel; of nil it is the zero value.
func Of(f *model.Frontend) Frontend {
	if f == nil {
		return Frontend{}
	}
	return Frontend{
		Present: true, Internal: target(f.Internal), External: target(f.External),
		KeepSource: f.KeepSource, Filtered: len(f.SourceRanges) > 0,
	}
}

func target(p *model.Pool) Target {
	t := Target{Pool: ID(p.PoolKey), Size: uint32(len(p.Endpoints)), Affinity: uint32(p.Affinity / time.Second)}
	if len(p.Endpoints) == 0 {
		t.Empty = p.Empty
	}
	return t
}

// pools of a Service, which may be nil, each once.
func pools(s *model.Service) map[PoolID]*model.Pool {
	if s == nil {
		return nil
	}
	found := make(map[PoolID]*model.Pool, len(s.Ports))
	var seen []*model.Pool
	for _, port := range s.Ports {
		for i := range port.Frontends {
			for _, pool := range []*model.Pool{port.Frontends[i].Internal, port.Frontends[i].External} {
				if !slices.Contains(seen, pool) {
					seen = append(seen, pool)
					found[ID(pool.PoolKey)] = pool
				}
			}
		}
	}
	return found
}

// countHairpins notes how many more or fewer slots lead to each address of this node.
func (p *planning) countHairpins(was, now *model.Pool) {
	if was != nil {
		for _, e := range was.Endpoints {
			if e.Local {
				p.change.hairpins[e.Addr()]--
			}
		}
	}
	if now != nil {
		for _, e := range now.Endpoints {
			if e.Local {
				p.change.hairpins[e.Addr()]++
			}
		}
	}
}

// finishHairpins finds the addresses that are led to for the first time, or no more.
func (p *planning) finishHairpins() {
	for addr, change := range p.change.hairpins {
		was := p.table.Hairpins[addr]
		switch {
		case change == 0:
			delete(p.change.hairpins, addr)
		case was == 0 && change > 0:
			p.change.HairpinsAdded = append(p.change.HairpinsAdded, addr)
		case was > 0 && was+change <= 0:
			p.change.HairpinsGone = append(p.change.HairpinsGone, addr)
		}
	}
}
