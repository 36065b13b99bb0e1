package model

import (
	"iter"

	"github.com/cilium/statedb/part"
)

// index is what a Snapshot is looked up in.
type index struct {
	input   Input // what it was built from
	byKey   part.Map[string, *Service]
	claims  claims
	changes history // keys of the Services that differ from one Snapshot to the next
}

func (x index) services() iter.Seq[*Service] {
	return func(yield func(*Service) bool) {
		for _, s := range x.byKey.All() {
			if !yield(s) {
				return
			}
		}
	}
}

func (x index) service(key ServiceKey) *Service {
	id, _ := keyOf(key.Namespace, key.Name)
	s, _ := x.byKey.Get(id)
	return s
}

func (x index) len() int { return x.byKey.Len() }

func (x index) owner(key FrontendKey) *Service {
	owner := x.claims.owner(key)
	if owner == nil {
		return nil
	}
	s, _ := x.byKey.Get(owner.id)
	return s
}

func (index) changed(now, was *Snapshot) iter.Seq[ServiceKey] {
	return func(yield func(ServiceKey) bool) {
		var old index
		if was != nil {
			old = was.index
		}
		touched, known := now.index.changes.since(old.changes)
		if !known {
			compareAll(now.index, old, yield)
			return
		}
		for id := range touched {
			before, _ := old.byKey.Get(id)
			after, _ := now.index.byKey.Get(id)
			if !equalServices(before, after) && !yield(either(before, after).Key) {
				return
			}
		}
	}
}

// compareAll is changed where neither is the other's ancestor.
func compareAll(now, was index, yield func(ServiceKey) bool) {
	for id, after := range now.byKey.All() {
		before, _ := was.byKey.Get(id)
		if !equalServices(before, after) && !yield(after.Key) {
			return
		}
	}
	for id, before := range was.byKey.All() {
		if _, ok := now.byKey.Get(id); !ok && !yield(before.Key) {
			return
		}
	}
}

func either(a, b *Service) *Service {
	if a != nil {
		return a
	}
	return b
}
