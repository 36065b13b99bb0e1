package ebpf

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// batch is how many entries are read or written by one system call: then it is looked whether there is still need.
const batch = 8192

// read returns all entries of a map, but for those that the programs write meanwhile.
func read[K comparable, V any](ctx context.Context, m *ebpf.Map) (map[K]V, error) {
	found := map[K]V{}
	// A batch is of whole buckets, of which none is likely to have more than a few entries.
	size := int(min(batch, max(m.MaxEntries(), 64)))
	keys, values := make([]K, size), make([]V, size)
	var cursor ebpf.MapBatchCursor
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("read %s: %w", m, err)
		}
		for i := range n {
			found[keys[i]] = values[i]
		}
		if err != nil {
			return found, nil
		}
	}
}

// put writes the entries.
func put[K comparable, V any](ctx context.Context, m *ebpf.Map, e *entries[K, V]) error {
	for start := 0; start < len(e.keys); start += batch {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		end := min(start+batch, len(e.keys))
		if _, err := m.BatchUpdate(e.keys[start:end], e.values[start:end], nil); err != nil {
			return fmt.Errorf("write to %s: %w", m, err)
		}
	}
	return nil
}

// remove deletes keys; those that are not there are as they should be.
func remove[K comparable, V any](ctx context.Context, m *ebpf.Map, e *entries[K, V]) error {
	for left := e.gone; len(left) > 0; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := m.BatchDelete(left[:min(batch, len(left))], nil)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			n, err = n+1, nil
		}
		if err != nil {
			return fmt.Errorf("delete from %s: %w", m, err)
		}
		left = left[n:]
	}
	return nil
}

// write tells the maps, in the order that writes demand.
func (m *mapSet) write(ctx context.Context, w *writes) error {
	steps := []func() error{
		func() error { return put(ctx, m.members, &w.members) },
		func() error { return put(ctx, m.slots, &w.slots) },
		func() error { return put(ctx, m.frontends, &w.frontends) },
		func() error { return remove(ctx, m.frontends, &w.frontends) },
		func() error { return remove(ctx, m.slots, &w.slots) },
		func() error { return remove(ctx, m.members, &w.members) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// contents reads the table back.
func (m *mapSet) contents(ctx context.Context) (c contents, err error) {
	if c.frontends, err = read[programAddrPort, programFrontend](ctx, m.frontends); err != nil {
		return c, err
	}
	if c.slots, err = read[programSlotKey, programAddrPort](ctx, m.slots); err != nil {
		return c, err
	}
	c.members, err = read[programMemberKey, uint32](ctx, m.members)
	return c, err
}
