package sliceset

import (
	"cmp"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Op is what a Write does.
type Op string

// The three verbs of a plan.
const (
	Create Op = "create"
	Update Op = "update"
	Delete Op = "delete"
)

// Write is one request to the API. Object is complete for Create and Update
// (with the resourceVersion it was planned from); for Delete it is the slice as
// last seen.
type Write struct {
	Op     Op
	Object *discovery.EndpointSlice

	keys []Key // of Object.Endpoints, by position
}

// group is what the endpoints of one slice have in common.
type group struct {
	family discovery.AddressType
	ports  string
}

// draft is a slice that the plan changes or makes.
type draft struct {
	from      *slice // nil for a slice to be created
	family    discovery.AddressType
	ports     *PortSet // nil: as they are in from
	endpoints []discovery.Endpoint
	keys      []Key        // by position
	drop      map[int]bool // positions to be left out
	changed   bool
}

func (d *draft) len() int { return len(d.keys) - len(d.drop) }

func (d *draft) portsKey() string {
	if d.ports != nil {
		return d.ports.key
	}
	return d.from.ports
}

func (d *draft) group() group { return group{d.family, d.portsKey()} }

func (d *draft) remove(i int) {
	if d.drop == nil {
		d.drop = map[int]bool{}
	}
	d.drop[i] = true
	d.changed = true
}

func (d *draft) add(k Key, w *Want) {
	d.keys = append(d.keys, k)
	d.endpoints = append(d.endpoints, *w.Endpoint)
	d.changed = true
}

// planner is one run of Plan.
type planner struct {
	*Set
	drafts   map[*slice]*draft
	created  []*draft
	doomed   map[*slice]bool
	families map[discovery.AddressType]bool
}

// Plan gives the writes that make the slices what they should be, creations
// before updates before deletions, so that an endpoint that moves is never in
// no slice for longer than the requests take. triggerTime, if not zero, goes
// into the annotation endpoints.kubernetes.io/last-change-trigger-time of what
// is written, else the annotation is cleared (spec §3.2).
//
// Every write must be reported to Done before Plan is called again.
func (s *Set) Plan(triggerTime time.Time) []Write {
	if len(s.dirty) == 0 && len(s.suspect) == 0 && !s.anew {
		return nil
	}
	p := &planner{Set: s, drafts: map[*slice]*draft{}, doomed: map[*slice]bool{}, families: map[discovery.AddressType]bool{}}
	for _, f := range s.meta.Families {
		p.families[f] = true
	}
	p.examineSlices()
	p.fill(p.settle())
	p.keepOneEmpty()
	clear(s.dirty)
	clear(s.suspect)
	s.anew = false
	return p.writes(triggerTime)
}

// examineSlices dooms slices that must not exist and drafts the ones whose
// labels or content are not ours.
func (p *planner) examineSlices() {
	for name := range p.suspect {
		sl := p.observed[name]
		if sl == nil || sl.gone {
			continue
		}
		if !p.families[sl.obj.AddressType] || !ownedBy(sl.obj, &p.meta.Owner) {
			p.doomed[sl] = true
			p.markDirty(sl.keys)
			p.unhome(sl)
			continue
		}
		for i := range sl.keys {
			if !p.holds(sl, i) {
				p.draft(sl).remove(i)
			}
		}
		if !p.metaMatches(sl.obj) {
			p.draft(sl).changed = true
		}
	}
}

// settle brings every dirty endpoint that has a home up to date there, and
// returns those that have none, by the group they belong to.
func (p *planner) settle() map[group][]Key {
	homeless := map[group][]Key{}
	from := map[Key]string{} // endpoint → the slice that it leaves
	for k := range p.dirty {
		w := p.want[k]
		if w != nil && !p.families[k.Family] {
			continue
		}
		h, ok := p.home[k]
		switch {
		case !ok && w == nil:
		case !ok:
			g := group{k.Family, w.Ports.key}
			homeless[g] = append(homeless[g], k)
		case w == nil:
			p.draft(h.slice).remove(h.index)
		case h.slice.ports != w.Ports.key:
			p.draft(h.slice).remove(h.index)
			g := group{k.Family, w.Ports.key}
			homeless[g] = append(homeless[g], k)
			from[k] = h.slice.obj.Name
		case !EndpointEqual(&h.slice.obj.Endpoints[h.index], w.Endpoint):
			d := p.draft(h.slice)
			d.endpoints[h.index] = *w.Endpoint
			d.changed = true
		}
	}
	for _, keys := range homeless {
		// By the slice they leave, so that slices which change ports as a whole
		// keep their endpoints; by name, so that a plan is the same every time.
		slices.SortFunc(keys, func(a, b Key) int {
			return cmp.Or(cmp.Compare(from[a], from[b]), a.compare(b))
		})
	}
	return homeless
}

// fill places the homeless: into slices that are written anyway, the fullest
// first; then, where all that are left fit, into one more existing slice; else
// into slices that became empty or are new (KEP-752: one creation rather than
// several updates, no rebalancing).
func (p *planner) fill(homeless map[group][]Key) {
	groups := slices.SortedFunc(maps.Keys(homeless), func(a, b group) int {
		return cmp.Or(cmp.Compare(a.family, b.family), cmp.Compare(a.ports, b.ports))
	})
	full := p.meta.MaxEndpoints
	for _, g := range groups {
		keys := homeless[g]
		ports := p.want[keys[0]].Ports
		put := func(d *draft) {
			d.ports = cmp.Or(d.ports, ports)
			for len(keys) > 0 && d.len() < full {
				d.add(keys[0], p.want[keys[0]])
				keys = keys[1:]
			}
		}
		for _, d := range p.changedOf(g) {
			put(d)
		}
		for len(keys) > 0 {
			if sl := p.roomiest(g, len(keys)); sl != nil {
				put(p.draft(sl))
			} else if d := p.emptied(g.family); d != nil {
				d.ports = ports
				put(d)
			} else {
				d := &draft{family: g.family, ports: ports}
				p.created = append(p.created, d)
				put(d)
			}
		}
	}
}

// changedOf gives the drafts of the group that keep at least one endpoint, the
// fullest first.
func (p *planner) changedOf(g group) []*draft {
	var of []*draft
	for _, d := range p.drafts {
		if d.changed && d.len() > 0 && d.group() == g {
			of = append(of, d)
		}
	}
	slices.SortFunc(of, func(a, b *draft) int {
		return cmp.Or(cmp.Compare(b.len(), a.len()), cmp.Compare(a.from.obj.Name, b.from.obj.Name))
	})
	return of
}

// roomiest gives the unchanged slice of the group that will be closest to full
// when n endpoints are added, or nil if they fit in none.
func (p *planner) roomiest(g group, n int) *slice {
	var best *slice
	for _, sl := range p.observed {
		if sl.gone || p.doomed[sl] || p.drafts[sl] != nil || len(sl.keys) == 0 ||
			sl.obj.AddressType != g.family || sl.ports != g.ports || len(sl.keys)+n > p.meta.MaxEndpoints {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(len(best.keys), len(sl.keys)), cmp.Compare(sl.obj.Name, best.obj.Name)) < 0 {
			best = sl
		}
	}
	return best
}

// emptied gives a slice of the family that holds nothing and may be reused with
// any ports, or nil. Reusing is one write where deleting and creating is two.
func (p *planner) emptied(family discovery.AddressType) *draft {
	var best *slice
	for _, sl := range p.observed {
		if p.isEmpty(sl, family) && (best == nil || sl.obj.Name < best.obj.Name) {
			best = sl
		}
	}
	if best == nil {
		return nil
	}
	return p.draft(best)
}

// isEmpty says whether the slice will hold nothing, as far as it is planned.
func (p *planner) isEmpty(sl *slice, family discovery.AddressType) bool {
	if sl.gone || p.doomed[sl] || sl.obj.AddressType != family {
		return false
	}
	if d := p.drafts[sl]; d != nil {
		return d.len() == 0
	}
	return len(sl.keys) == 0
}

// keepOneEmpty dooms empty slices, except one in each family without endpoints
// where a placeholder is wanted, which is made if need be.
func (p *planner) keepOneEmpty() {
	for _, family := range p.meta.Families {
		var empty []*slice
		filled := slices.ContainsFunc(p.created, func(d *draft) bool { return d.family == family })
		for _, sl := range p.observed {
			switch {
			case p.isEmpty(sl, family):
				empty = append(empty, sl)
			case !sl.gone && !p.doomed[sl] && sl.obj.AddressType == family:
				filled = true
			}
		}
		slices.SortFunc(empty, func(a, b *slice) int { return cmp.Compare(a.obj.Name, b.obj.Name) })
		if p.meta.Placeholder && !filled {
			if len(empty) == 0 {
				p.created = append(p.created, &draft{family: family, ports: NewPortSet(nil)})
				continue
			}
			if keep := empty[0]; keep.ports != "" {
				d := p.draft(keep)
				d.ports, d.changed = NewPortSet(nil), true
			}
			empty = empty[1:]
		}
		for _, sl := range empty {
			p.doomed[sl] = true
		}
	}
}

func (p *planner) draft(sl *slice) *draft {
	d := p.drafts[sl]
	if d == nil {
		d = &draft{from: sl, family: sl.obj.AddressType,
			// Room for one more: the copy is written to and often appended to.
			endpoints: append(make([]discovery.Endpoint, 0, len(sl.keys)+1), sl.obj.Endpoints...),
			keys:      append(make([]Key, 0, len(sl.keys)+1), sl.keys...),
		}
		p.drafts[sl] = d
	}
	return d
}

func (p *planner) writes(triggerTime time.Time) []Write {
	var out []Write
	for _, d := range p.created {
		obj := &discovery.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: p.meta.Namespace, GenerateName: p.meta.GenerateName},
			AddressType: d.family,
		}
		out = append(out, p.write(Create, obj, d, triggerTime))
	}
	for sl, d := range p.drafts {
		if !d.changed || p.doomed[sl] {
			continue
		}
		obj := *sl.obj // shallow: every field that is written to is replaced below
		obj.ManagedFields = Untracked()
		out = append(out, p.write(Update, &obj, d, triggerTime))
	}
	for sl := range p.doomed {
		out = append(out, Write{Op: Delete, Object: sl.obj, keys: sl.keys})
	}
	slices.SortStableFunc(out, func(a, b Write) int {
		return cmp.Or(cmp.Compare(opOrder(a.Op), opOrder(b.Op)), cmp.Compare(a.Object.Name, b.Object.Name))
	})
	return out
}

func opOrder(op Op) int {
	return slices.Index([]Op{Create, Update, Delete}, op)
}

// Untracked is what managedFields of an update say so that the API server keeps
// no record of who wrote which field. These objects have one writer and nobody
// applies to them, and the record costs the server a walk over all endpoints, a
// millisecond for a hundred, at every write (KEP-555, "managedFields: [{}]").
func Untracked() []metav1.ManagedFieldsEntry { return []metav1.ManagedFieldsEntry{{}} }

// write completes obj, which it owns, from the draft and the Set's meta.
func (p *planner) write(op Op, obj *discovery.EndpointSlice, d *draft, triggerTime time.Time) Write {
	w := Write{Op: op, Object: obj, keys: d.keys}
	obj.Endpoints = d.endpoints
	if len(d.drop) > 0 {
		obj.Endpoints, w.keys = make([]discovery.Endpoint, 0, d.len()), make([]Key, 0, d.len())
		for i, k := range d.keys {
			if !d.drop[i] {
				obj.Endpoints, w.keys = append(obj.Endpoints, d.endpoints[i]), append(w.keys, k)
			}
		}
	}
	if d.ports != nil {
		obj.Ports = d.ports.ports
	}
	obj.Labels = maps.Clone(p.meta.Labels)
	obj.OwnerReferences = []metav1.OwnerReference{p.meta.Owner}
	if p.meta.Annotations != nil {
		obj.Annotations = maps.Clone(p.meta.Annotations)
	} else {
		obj.Annotations = maps.Clone(obj.Annotations)
	}
	delete(obj.Annotations, corev1.EndpointsLastChangeTriggerTime)
	if !triggerTime.IsZero() {
		if obj.Annotations == nil {
			obj.Annotations = map[string]string{}
		}
		obj.Annotations[corev1.EndpointsLastChangeTriggerTime] = triggerTime.UTC().Format(time.RFC3339Nano)
	}
	return w
}

func (p *planner) metaMatches(obj *discovery.EndpointSlice) bool {
	if !maps.Equal(obj.Labels, p.meta.Labels) {
		return false
	}
	if p.meta.Annotations == nil {
		return true
	}
	n := len(obj.Annotations)
	if _, ok := obj.Annotations[corev1.EndpointsLastChangeTriggerTime]; ok {
		n--
	}
	if n != len(p.meta.Annotations) {
		return false
	}
	for k, v := range p.meta.Annotations {
		if got, ok := obj.Annotations[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func ownedBy(obj *discovery.EndpointSlice, owner *metav1.OwnerReference) bool {
	return slices.ContainsFunc(obj.OwnerReferences, func(o metav1.OwnerReference) bool {
		return o.UID == owner.UID && o.Kind == owner.Kind && o.APIVersion == owner.APIVersion
	})
}
