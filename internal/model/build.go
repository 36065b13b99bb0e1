package model

import (
	"slices"

	"github.com/cilium/statedb/part"
)

// Build makes what the node should do out of all that it knows. It is pure: what comes out is the same with any was but for its Revision, one above
// was's. A nil was is one without anything.
//
// was only spares work: if it was built from an Input that in was made from, the cost is in proportion to what changed in between.
// A Service that did not change is the same pointer, and if nothing did, was itself is returned.
func Build(in Input, was *Snapshot) *Snapshot {
	var old Snapshot
	if was != nil {
		old = *was
	}
	b := building{in: in, old: old.index, network: &in.network, was: &old.Network}
	claims := b.claim()
	b.resolve(claims)
	if was != nil && len(b.changes) == 0 && in.network.equal(&old.Network) {
		return was
	}
	now := &Snapshot{Revision: old.Revision + 1, Network: in.network}
	now.index = index{input: in, byKey: b.commit(), claims: claims, changes: old.index.changes}
	if was == nil {
		now.index.changes = now.index.changes.with("") // no Service, but the first of all changes, to know this chain by
	}
	for _, c := range b.changes {
		now.index.changes = now.index.changes.with(c.id)
	}
	return now
}

// building is one Build on its way.
type building struct {
	in      Input
	old     index
	network *Network
	was     *Network

	touched map[string]struct{} // keys of the Services to resolve
	changes []serviceChange
}

// serviceChange is a Service that came, changed, or (nil) went.
type serviceChange struct {
	id  string
	now *Service
}

// claim finds out what to resolve, and gives every frontend its owner.
func (b *building) claim() claims {
	touched, known := b.in.log.since(b.old.input.log)
	b.touched = touched
	if !known {
		b.touchDifferent()
	}
	b.touchNetwork()
	if len(b.touched) == 0 {
		return b.old.claims
	}
	oldNetwork := b.was
	moved := !slices.Equal(b.was.NodePortAddrs, b.network.NodePortAddrs)
	ids := sortedKeys(b.touched) // because claiming touches more
	change := b.old.claims.change(b.touched)
	claimed := false
	for _, id := range ids {
		old, _ := b.old.input.services.Get(id)
		now, _ := b.in.services.Get(id)
		if old == now && !moved {
			continue
		}
		claimed = true
		change.replace(old, oldNetwork, now, b.network)
	}
	if !claimed {
		return b.old.claims
	}
	return change.done()
}

func sortedKeys(set map[string]struct{}) []string {
	keys := make([]string, 0, len(set))
	for key := range set {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// touchDifferent compares everything, where no record says what changed.
func (b *building) touchDifferent() {
	facts := b.in.down.Len() > 0 || b.old.input.down.Len() > 0
	for id, now := range b.in.services.All() {
		was, _ := b.old.input.services.Get(id)
		mine, _ := b.in.ofService.Get(id)
		theirs, _ := b.old.input.ofService.Get(id)
		if was != now || facts || !slices.Equal(mine, theirs) {
			b.touched[id] = struct{}{}
		}
	}
	for id := range b.old.input.services.All() {
		if _, ok := b.in.services.Get(id); !ok {
			b.touched[id] = struct{}{}
		}
	}
}

// touchNetwork finds the Services for which it matters what the node knows of itself.
func (b *building) touchNetwork() {
	renamed := b.was.Node != b.network.Node
	zoned := b.was.Zone != b.network.Zone
	moved := !slices.Equal(b.was.NodePortAddrs, b.network.NodePortAddrs)
	if !renamed && !zoned && !moved {
		return
	}
	for id, s := range b.in.services.All() {
		var concerned bool
		if renamed || zoned {
			list, _ := b.in.ofService.Get(id)
			concerned = slices.ContainsFunc(list, func(s *slice) bool { return renamed || s.hinted })
		}
		if concerned || moved && len(s.nodePorts(b.network))+len(s.nodePorts(b.was)) > 0 {
			b.touched[id] = struct{}{}
		}
	}
}

// resolve makes the touched Services anew, and keeps those of which nothing has changed.
func (b *building) resolve(claims claims) {
	for _, id := range sortedKeys(b.touched) {
		was, _ := b.old.byKey.Get(id)
		s, ok := b.in.services.Get(id)
		if !ok {
			if was != nil {
				b.changes = append(b.changes, serviceChange{id, nil})
			}
			continue
		}
		r := resolving{service: s, in: &b.in, network: b.network, claims: claims, was: was}
		now := r.resolve()
		if !equalServices(was, now) {
			keepPools(was, now)
			b.changes = append(b.changes, serviceChange{id, now})
		}
	}
}

func (b *building) commit() part.Map[string, *Service] {
	if len(b.changes) == 0 {
		return b.old.byKey
	}
	txn := b.old.byKey.Txn()
	for _, c := range b.changes {
		if c.now == nil {
			txn.Delete(c.id)
		} else {
			txn.Set(c.id, c.now)
		}
	}
	return txn.Commit()
}

// keepPools uses the Pools of the Service as it was where they have the same endpoints, so that who compares need not look into them.
func keepPools(was, now *Service) {
	if was == nil {
		return
	}
	had := map[PoolKey]*Pool{}
	for _, port := range was.Ports {
		for i := range port.Frontends {
			f := &port.Frontends[i]
			had[f.Internal.PoolKey], had[f.External.PoolKey] = f.Internal, f.External
		}
	}
	keep := func(pool **Pool) {
		old := had[(*pool).PoolKey]
		if old != nil && old.Empty == (*pool).Empty && old.Affinity == (*pool).Affinity && slices.Equal(old.Endpoints, (*pool).Endpoints) {
			*pool = old
		}
	}
	for _, port := range now.Ports {
		for i := range port.Frontends {
			keep(&port.Frontends[i].Internal)
			keep(&port.Frontends[i].External)
		}
	}
}
