// Package slots is the shape in which both data planes keep a Snapshot in the kernel, and what has to change there.
//
// What it is: a [Table] of two flat maps. Frontends lead to a pool and its size, and each endpoint of a pool has a slot: a packet draws a number
// below the size and looks the slot up. So a packet costs the same with any number of Services, and an endpoint that comes or
// goes changes one or two slots and a frontend or two, whatever the size of the pool: the last slot moves to where the gap is.
//
// In: a Table, as it was read back from a kernel or as it was left by the last change, and two Snapshots. Out: [Table.Plan], the smallest
// [Change] that makes the kernel right.
//
// Invariants: Plan is pure and changes no Table; [Table.Apply] records a Change that the kernel took. The slots of a pool of n endpoints are
// 0 to n-1, no endpoint twice. In which order they are depends on what was there before, and means nothing.
//
// It refuses to know how a kernel keeps it. Policy is in model.
//
// How to test: go test ./internal/dataplane/slots, tables and random walks.
package slots

import (
	"net/netip"

	"github.com/endpointd/endpointd/internal/model"
)

// A PoolID stands for a [model.PoolKey] in the kernel: a hash of it, so that it is the same after a restart. Never 0.
type PoolID uint64

// A Target is where a frontend leads a kind of client. The zero value is none: it isn't in the kernel.
type Target struct {
	Pool PoolID
	// Size is the number of slots; with 0, Empty is what happens.
	Size     uint32
	Affinity uint32 // seconds of session affinity, 0 = none
	Empty    model.Verdict
}

// A Frontend is what the kernel has for a [model.FrontendKey]. The zero value is none.
type Frontend struct {
	Present            bool
	Internal, External Target
	KeepSource         bool // do not masquerade clients from outside
	Filtered           bool // only the ranges of [Table.Sources] may come
}

// A Slot is one place of a pool.
type Slot struct {
	Pool  PoolID
	Index uint32
}

// A Source is a range that may reach a frontend that is Filtered.
type Source struct {
	Frontend model.FrontendKey
	Range    netip.Prefix
}

// A Table is what a kernel holds. Make one with [New]; fill it with what was read back, or with [Table.Apply].
type Table struct {
	Frontends map[model.FrontendKey]Frontend
	Pools     map[PoolID][]netip.AddrPort // the slots of each pool; no pool is empty, and none has a zero slot unless a kernel lost it
	Sources   map[model.FrontendKey]map[netip.Prefix]struct{}
	// Hairpins counts, for each address of an endpoint on this node, the slots that lead to it: a packet from there to there is masqueraded. A
	// kernel has the addresses only: what is read back counts as 1 each.
	Hairpins map[netip.Addr]int
}

// AddSource notes that a range may reach a frontend.
func (t *Table) AddSource(s Source) {
	if t.Sources[s.Frontend] == nil {
		t.Sources[s.Frontend] = map[netip.Prefix]struct{}{}
	}
	t.Sources[s.Frontend][s.Range] = struct{}{}
}

func (t *Table) has(s Source) bool {
	_, ok := t.Sources[s.Frontend][s.Range]
	return ok
}

// A FrontendChange replaces what a frontend was. Was or Now is zero if there was or will be none.
type FrontendChange struct {
	Key      model.FrontendKey
	Was, Now Frontend
}

// A SlotChange replaces what is in a slot. Was or Now is zero if there was or will be none.
type SlotChange struct {
	Slot
	Protocol model.Protocol
	Was, Now netip.AddrPort
}

// A Change is what the kernel must be told. Its parts are in no order.
//
// In a kernel that cannot take it all at once, a client is never led to a slot that isn't there if slots with a Now are written first,
// then frontends, and slots without one deleted last.
type Change struct {
	Frontends      []FrontendChange
	Slots          []SlotChange
	SourcesAdded   []Source
	SourcesRemoved []Source
	HairpinsAdded  []netip.Addr
	HairpinsGone   []netip.Addr
	hairpins       map[netip.Addr]int // address → change of its count
}

// None says that there is nothing to do.
func (c *Change) None() bool {
	return len(c.Frontends)+len(c.Slots)+len(c.SourcesAdded)+len(c.SourcesRemoved)+len(c.HairpinsAdded)+len(c.HairpinsGone) == 0
}

// New is the Table of a kernel in which there is nothing.
func New() *Table {
	return &Table{
		Frontends: map[model.FrontendKey]Frontend{}, Pools: map[PoolID][]netip.AddrPort{},
		Sources: map[model.FrontendKey]map[netip.Prefix]struct{}{}, Hairpins: map[netip.Addr]int{},
	}
}
