// Package sliceset keeps the EndpointSlices that one writer owns for one
// Service at what they should be, with the fewest writes.
//
// What flows in: what the slices should hold ([Set.Want], [Set.SetMeta]) and
// what they were last seen to hold ([Set.Observe], [Set.ObserveDelete]). What
// flows out: the writes that make the second equal the first ([Set.Plan]);
// [Apply] sends them and the results come back through [Set.Done].
//
// Invariants: planning is pure (no clock, no I/O) and its cost follows what
// changed since the last plan, not the number of endpoints. An endpoint that
// only changes stays in its slice, so a readiness flip is one write whatever
// the size of the Service. Slices are not rebalanced. Nobody else's slices are
// ever touched: the caller only feeds the ones it owns. Objects handed in or
// out are never modified afterwards.
//
// Of two versions of a slice the one with the higher resourceVersion wins,
// whether it came from a watch or as the answer to a write. So the echo of an
// own write is recognised, a stale cache does no harm, and no expectations have
// to be tracked. (Built-in kinds have comparable resource versions, KEP-5504.)
//
// It refuses to know what an endpoint is made from (Pods, Endpoints objects);
// that is its callers' subject. Tests: a table of write counts and a random
// walk compared with a from-scratch oracle, in this folder.
package sliceset

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DefaultMaxEndpoints is how many endpoints a slice is filled up to, the same
// default as the EndpointSlice controller of Kubernetes has (KEP-752).
const DefaultMaxEndpoints = 100

// Key names an endpoint within a Set. Name is the caller's: the pod's name, or
// the address where nothing else identifies it. It must be stable over changes
// of the endpoint's content, so that the endpoint keeps its place.
type Key struct {
	Family discovery.AddressType
	Name   string
}

func (k Key) compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Family, o.Family), cmp.Compare(k.Name, o.Name))
}

// PortSet is a list of ports that slices are grouped by: endpoints in one slice
// share their ports. Immutable; two with the same ports in any order are of the
// same group.
type PortSet struct {
	key   string
	ports []discovery.EndpointPort
}

// NewPortSet takes ownership of ports.
func NewPortSet(ports []discovery.EndpointPort) *PortSet {
	return &PortSet{key: PortsKey(ports), ports: ports}
}

// Key is equal for port sets that hold the same ports, and only for those.
func (p *PortSet) Key() string { return p.key }

// Ports must not be modified.
func (p *PortSet) Ports() []discovery.EndpointPort { return p.ports }

// PortsKey is the Key of the ports of an observed slice.
func PortsKey(ports []discovery.EndpointPort) string {
	parts := make([]string, len(ports))
	for i, p := range ports {
		var b strings.Builder
		b.WriteString(value(p.Name))
		b.WriteByte('\x00')
		b.WriteString(string(value(p.Protocol)))
		b.WriteByte('\x00')
		if p.Port != nil {
			b.WriteString(strconv.Itoa(int(*p.Port)))
		}
		b.WriteByte('\x00')
		if p.AppProtocol != nil {
			b.WriteByte('=')
			b.WriteString(*p.AppProtocol)
		}
		parts[i] = b.String()
	}
	slices.Sort(parts)
	return strings.Join(parts, "\x01")
}

// Want is what one endpoint should be. Immutable once handed in.
type Want struct {
	Ports    *PortSet
	Endpoint *discovery.Endpoint
}

// Meta is what all slices of the Set have in common.
type Meta struct {
	Namespace    string
	GenerateName string
	// Labels is the complete set; anything else on a slice is removed.
	Labels map[string]string
	// Annotations is the complete set, or nil to leave annotations alone. The
	// trigger time is never part of it.
	Annotations map[string]string
	// Owner is the controller reference of every slice. A slice without it
	// belongs to an earlier object of the same name and is deleted.
	Owner metav1.OwnerReference
	// Families are the address types to serve; slices of others are deleted.
	Families []discovery.AddressType
	// Placeholder keeps one empty slice in each family that has no endpoint, so
	// that consumers can tell "none" from "not reconciled yet".
	Placeholder bool
	// MaxEndpoints is how many endpoints a slice is filled up to; 0 means
	// DefaultMaxEndpoints.
	MaxEndpoints int
}

// Set is one Service's slices. It is not safe for concurrent use.
type Set struct {
	nameOf func(*discovery.EndpointSlice, *discovery.Endpoint) string

	meta     Meta
	want     map[Key]*Want       // what should be
	observed map[string]*slice   // slice name → newest version known
	home     map[Key]place       // where an endpoint was last seen
	dirty    map[Key]struct{}    // endpoints whose home may not hold what is wanted
	suspect  map[string]struct{} // slices to compare with meta and to search for strangers
	anew     bool                // every family is to be looked at, even if nothing is dirty
}

// slice is the newest version known of one EndpointSlice.
type slice struct {
	obj   *discovery.EndpointSlice
	keys  []Key  // of obj.Endpoints, by position; the zero Key where nameOf gave none
	ports string // key of obj.Ports
	gone  bool   // deleted by us; kept until the watch confirms it, so that older events do not revive it
}

type place struct {
	slice *slice
	index int
}

// New makes an empty Set. nameOf gives the Key name of an endpoint found in an
// observed slice, "" for one that the caller could not have written.
func New(nameOf func(*discovery.EndpointSlice, *discovery.Endpoint) string) *Set {
	return &Set{
		nameOf:   nameOf,
		want:     map[Key]*Want{},
		observed: map[string]*slice{},
		home:     map[Key]place{},
		dirty:    map[Key]struct{}{},
		suspect:  map[string]struct{}{},
		anew:     true,
	}
}

// SetMeta replaces what the slices have in common.
func (s *Set) SetMeta(m Meta) {
	if m.MaxEndpoints == 0 {
		m.MaxEndpoints = DefaultMaxEndpoints
	}
	if metaEqual(&s.meta, &m) {
		return
	}
	if !slices.Equal(s.meta.Families, m.Families) {
		for k := range s.want {
			s.dirty[k] = struct{}{}
		}
	}
	s.meta = m
	s.anew = true
	for name := range s.observed {
		s.suspect[name] = struct{}{}
	}
}

// Want says what the endpoint k should be; nil means that it should not exist.
func (s *Set) Want(k Key, w *Want) {
	old := s.want[k]
	switch {
	case w == nil && old == nil:
		return
	case w == nil:
		delete(s.want, k)
	case old != nil && old.Ports.key == w.Ports.key && EndpointEqual(old.Endpoint, w.Endpoint):
		return
	default:
		s.want[k] = w
	}
	s.dirty[k] = struct{}{}
}

// Wanted gives what was last handed to Want, or nil.
func (s *Set) Wanted(k Key) *Want { return s.want[k] }

// Keys are those of all endpoints wanted, in no order.
func (s *Set) Keys() []Key { return slices.Collect(maps.Keys(s.want)) }

// Len is the number of endpoints wanted, over all families.
func (s *Set) Len() int { return len(s.want) }

// Slices is the number of slices that exist as far as is known.
func (s *Set) Slices() int {
	n := 0
	for _, sl := range s.observed {
		if !sl.gone {
			n++
		}
	}
	return n
}

// Observe takes in a slice that the caller owns, as a watch or a list showed
// it, and reports whether it was news. The Set keeps the object.
func (s *Set) Observe(obj *discovery.EndpointSlice) bool {
	if cur := s.observed[obj.Name]; cur != nil {
		switch a, b := revision(obj), revision(cur.obj); {
		case a < b:
			return false
		case a == b:
			if !cur.gone {
				cur.obj = obj // one object in memory instead of the watch's and the answer's
			}
			return false
		}
		s.evict(cur)
	}
	sl := s.install(obj, nil)
	for _, k := range sl.keys {
		if k != (Key{}) {
			s.dirty[k] = struct{}{}
		}
	}
	s.suspect[obj.Name] = struct{}{}
	return true
}

// ObserveDelete takes in that a slice is gone and reports whether it was news.
func (s *Set) ObserveDelete(name string) bool {
	cur := s.observed[name]
	if cur == nil {
		return false
	}
	news := !cur.gone
	s.evict(cur)
	delete(s.observed, name)
	delete(s.suspect, name)
	s.anew = s.anew || news
	return news
}

// Forget takes out a slice that the caller stopped owning (its managed-by label
// was taken away). Its endpoints will be placed elsewhere.
func (s *Set) Forget(name string) bool { return s.ObserveDelete(name) }

// Done takes in the result of one planned write. On success got is the object
// as the API stored it (nil for a delete). On failure everything that the write
// was for is planned again.
func (s *Set) Done(w Write, got *discovery.EndpointSlice, err error) {
	name := w.Object.Name
	switch {
	case err == nil && w.Op == Delete, apierrors.IsNotFound(err) && w.Op != Create:
		if cur := s.observed[name]; cur != nil {
			s.evict(cur)
			cur.gone = true
			cur.keys = nil
		}
		if err != nil {
			s.anew = true
			s.markDirty(w.keys)
		}
	case err != nil:
		s.anew = true
		s.markDirty(w.keys)
		if cur := s.observed[name]; cur != nil && !cur.gone {
			s.markDirty(cur.keys)
			s.suspect[name] = struct{}{}
		}
	default:
		if cur := s.observed[got.Name]; cur != nil {
			if Newer(cur.obj, got) {
				return // the watch was faster and saw a later version
			}
			s.unhome(cur)
		}
		if len(w.keys) == len(got.Endpoints) {
			s.install(got, w.keys)
			return
		}
		// Something between us and the store rewrote it.
		s.markDirty(w.keys)
		s.markDirty(s.install(got, nil).keys)
		s.suspect[got.Name] = struct{}{}
	}
}

func (s *Set) markDirty(keys []Key) {
	for _, k := range keys {
		if k != (Key{}) {
			s.dirty[k] = struct{}{}
		}
	}
}

// install makes obj the known version of its slice. keys may be given where
// they are known already.
func (s *Set) install(obj *discovery.EndpointSlice, keys []Key) *slice {
	sl := &slice{obj: obj, keys: keys, ports: PortsKey(obj.Ports)}
	if keys == nil {
		sl.keys = make([]Key, len(obj.Endpoints))
		for i := range obj.Endpoints {
			if name := s.nameOf(obj, &obj.Endpoints[i]); name != "" {
				sl.keys[i] = Key{Family: obj.AddressType, Name: name}
			}
		}
	}
	s.observed[obj.Name] = sl
	for i, k := range sl.keys {
		if k == (Key{}) {
			continue
		}
		if _, taken := s.home[k]; taken && keys == nil {
			continue // the same endpoint twice: the first keeps it, here it is a stranger
		}
		s.home[k] = place{slice: sl, index: i}
	}
	return sl
}

// holds says whether the endpoint at index i of sl is where it should be looked
// for; if not it is a stranger or a duplicate.
func (s *Set) holds(sl *slice, i int) bool {
	k := sl.keys[i]
	return k != (Key{}) && s.home[k] == place{slice: sl, index: i}
}

// unhome forgets where the endpoints of sl are.
func (s *Set) unhome(sl *slice) {
	for i, k := range sl.keys {
		if s.holds(sl, i) {
			delete(s.home, k)
		}
	}
}

// evict forgets a version of a slice; its endpoints are looked at again.
func (s *Set) evict(sl *slice) {
	s.unhome(sl)
	s.markDirty(sl.keys)
}

// Newer reports whether a is a later version of an object than b.
func Newer(a, b metav1.Object) bool {
	return revision(a) > revision(b)
}

// revision orders the versions of one object.
func revision(obj metav1.Object) uint64 {
	n, _ := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	return n
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// ServiceOwner is the controller reference from a slice to its Service.
func ServiceOwner(svc *corev1.Service) metav1.OwnerReference {
	return *metav1.NewControllerRef(svc, corev1.SchemeGroupVersion.WithKind("Service"))
}
