package ebpf

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
)

// How many entries the maps of the table begin with, and how many they may grow to. A bucket of a hash map is 16 bytes, and there are as many as
// entries may be; entries take memory only as they come.
const (
	firstFrontends = 1 << 12
	firstSlots     = 1 << 14
	lastFrontends  = 1 << 20
	lastSlots      = 1 << 22
)

// firstUsed is how many endpoints may be noted that clients on this node were led to. If there are more, the closer looks for sockets without notes.
const firstUsed = 1 << 14

// capacity is how many entries maps have.
type capacity struct{ frontends, slots, used uint32 }

// layoutVersion is to be raised when the meaning of keys or values changes, and not their sizes, which count by themselves.
const layoutVersion = 1

// A mapSet has the maps of the programs. frontends, slots and members are the table; the others are what happened to sockets, and are kept as long
// as their layout is.
type mapSet struct {
	frontends, slots, members     *ebpf.Map
	records, connections          *ebpf.Map
	affinities, requests, replies *ebpf.Map
	used                          *ebpf.Map
}

// holder is where a map is in a mapSet.
type holder struct {
	name    string
	at      **ebpf.Map
	isTable bool
	entries uint32 // at least
}

func (m *mapSet) holders(c capacity) []holder {
	// Of the free entries of such a map each CPU may hold 128 back.
	recent := max(1<<14, ceil(512*uint32(runtime.NumCPU())))
	return []holder{
		{name: programMapFrontends, at: &m.frontends, isTable: true, entries: c.frontends},
		{name: programMapSlots, at: &m.slots, isTable: true, entries: c.slots},
		{name: programMapMembers, at: &m.members, isTable: true, entries: c.slots},
		{name: programMapRecords, at: &m.records},
		{name: programMapConnections, at: &m.connections, entries: recent},
		{name: programMapAffinities, at: &m.affinities, entries: recent},
		{name: programMapRequests, at: &m.requests, entries: recent},
		{name: programMapReplies, at: &m.replies, entries: recent},
		{name: programMapUsed, at: &m.used, entries: c.used},
	}
}

// ceil is the next power of two.
func ceil(n uint32) uint32 {
	if n <= 1 {
		return 1
	}
	return 1 << bits.Len32(n-1)
}

// open finds the pinned maps of this layout, the largest of each, and makes and pins those that are missing.
func (m *mapSet) open(spec *ebpf.CollectionSpec, dir string, c capacity) error {
	names, err := pinned(dir)
	if err != nil {
		return fmt.Errorf("read pins: %w", err)
	}
	for _, p := range m.holders(c) {
		s := spec.Maps[p.name].Copy()
		if p.entries > 0 { // sockets' own storage has no number
			s.MaxEntries = max(p.entries, largest(names, pinPrefix(p.name, s)))
		}
		if *p.at, err = openMap(s, dir); err != nil {
			m.close()
			return err
		}
	}
	return nil
}

// grown has the same maps but those of the table, which are new, empty and can hold so much.
func (m *mapSet) grown(spec *ebpf.CollectionSpec, dir string, c capacity) (*mapSet, error) {
	n := &mapSet{}
	old := m.holders(capacity{})
	for i, p := range n.holders(c) {
		var err error
		if p.isTable {
			s := spec.Maps[p.name].Copy()
			s.MaxEntries = p.entries
			// What is pinned under that name is from a try that failed, or is in use because another map had to grow.
			if err = unpin(filepath.Join(dir, pinName(s))); err == nil {
				*p.at, err = openMap(s, dir)
			}
		} else {
			*p.at, err = (*old[i].at).Clone()
		}
		if err != nil {
			n.close()
			return nil, err
		}
	}
	return n, nil
}

// openMap opens a pinned map, or makes and pins one.
func openMap(s *ebpf.MapSpec, dir string) (*ebpf.Map, error) {
	path := filepath.Join(dir, pinName(s))
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		if err := s.Compatible(m); err != nil {
			return nil, errors.Join(fmt.Errorf("%s is no map of this program, remove it: %w", path, err), m.Close())
		}
		return m, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open pinned map: %w", err)
	}
	if m, err = ebpf.NewMap(s); err != nil {
		return nil, fmt.Errorf("make map %s for %d entries: %w", s.Name, s.MaxEntries, err)
	}
	if err := m.Pin(path); err != nil {
		return nil, errors.Join(fmt.Errorf("pin map %s: %w", path, err), m.Close())
	}
	return m, nil
}

// pinName has the layout and the size of a map in it, so that what is pinned under it can be used.
func pinName(s *ebpf.MapSpec) string {
	return pinPrefix(s.Name, s) + strconv.FormatUint(uint64(s.MaxEntries), 10)
}

func pinPrefix(name string, s *ebpf.MapSpec) string {
	h := fnv.New32a()
	_, _ = fmt.Fprint(h, layoutVersion, s.Type, s.KeySize, s.ValueSize, s.Flags)
	return fmt.Sprintf("%s%s-%08x-", mapPrefix, name, h.Sum32())
}

// largest number that follows a prefix, 0 if none does.
func largest(names []string, prefix string) uint32 {
	var found uint32
	for _, name := range names {
		if number, ok := strings.CutPrefix(name, prefix); ok {
			n, _ := strconv.ParseUint(number, 10, 32)
			found = max(found, uint32(n))
		}
	}
	return found
}

// byName is name → map.
func (m *mapSet) byName() map[string]*ebpf.Map {
	found := map[string]*ebpf.Map{}
	for _, p := range m.holders(capacity{}) {
		found[p.name] = *p.at
	}
	return found
}

// pins are the names under which the maps are pinned.
func (m *mapSet) pins(spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	found := map[string]*ebpf.Map{}
	for _, p := range m.holders(capacity{}) {
		s := spec.Maps[p.name].Copy()
		s.MaxEntries = (*p.at).MaxEntries()
		found[pinName(s)] = *p.at
	}
	return found
}

// repin pins again what somebody has unpinned, and says whether there was anything.
func (m *mapSet) repin(spec *ebpf.CollectionSpec, dir string) (bool, error) {
	repaired := false
	for name, object := range m.pins(spec) {
		again, err := repin(filepath.Join(dir, name), object)
		if err != nil {
			return repaired, err
		}
		repaired = repaired || again
	}
	return repaired, nil
}

// repin pins a map or a link if its pin is gone.
func repin(path string, object interface {
	Pin(path string) error
	Unpin() error
}) (bool, error) {
	_, err := os.Lstat(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	// The object believes that it is pinned there.
	if err := errors.Join(object.Unpin(), object.Pin(path)); err != nil {
		return false, fmt.Errorf("pin %s again: %w", path, err)
	}
	return true, nil
}

func (m *mapSet) close() {
	for _, p := range m.holders(capacity{}) {
		_ = (*p.at).Close() // nil is closed
	}
}

// fits says whether so much more can be written.
func (m *mapSet) fits(has size, w *writes) bool {
	return has.frontends+len(w.frontends.keys) <= int(m.frontends.MaxEntries()) &&
		has.slots+len(w.slots.keys) <= int(m.slots.MaxEntries()) &&
		has.slots+len(w.members.keys) <= int(m.members.MaxEntries())
}

// size is how many entries there are, or a little more.
type size struct{ frontends, slots int }

// capacities for a table of that size, so that it does not have to grow again soon.
func capacities(need size) (c capacity, err error) {
	if need.frontends > lastFrontends {
		return c, fmt.Errorf("%d frontends, and map %s can have %d", need.frontends, programMapFrontends, lastFrontends)
	}
	if need.slots > lastSlots {
		return c, fmt.Errorf("%d endpoints of pools, and map %s can have %d", need.slots, programMapSlots, lastSlots)
	}
	c.frontends = min(lastFrontends, ceil(uint32(need.frontends+need.frontends/2)))
	c.slots = min(lastSlots, ceil(uint32(need.slots+need.slots/2)))
	return c, nil
}
