package app

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/endpointd/endpointd/internal/pages"
)

// Starting, and every burst of work, leaves garbage that the Go runtime keeps for the next burst: up to as much again as what is
// in use. A server that has nothing to do gives it back, so that its size is what it holds.
const (
	trimPeriod = 3 * time.Second
	// idleAllocation is how much an idle server allocates in a trimPeriod at the most, in bytes: leases, ticks and probes.
	idleAllocation = 8 << 20
	// A collection is worth its time when this much has been added to what the last one left, and this part of it.
	trimAtLeast = 8 << 20
	trimPart    = 4
)

// memory is a look at the runtime's books, in bytes.
type memory struct {
	allocated uint64 // since the process began
	held      uint64 // from the system, for the heap
}

// worthTrimming says whether the process was idle between two looks and holds much more than it did after the last trim.
func worthTrimming(before, now memory, trimmed uint64) bool {
	if now.allocated-before.allocated > idleAllocation || now.held < trimmed {
		return false
	}
	return now.held-trimmed > max(trimAtLeast, trimmed/trimPart)
}

// trimMemory gives memory back whenever the process has become idle, the program's own pages too, until ctx ends.
func trimMemory(ctx context.Context) {
	tick := time.NewTicker(trimPeriod)
	defer tick.Stop()
	before := lookAtMemory()
	var trimmed uint64 // held after the last trim
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := lookAtMemory()
		if worthTrimming(before, now, trimmed) {
			debug.FreeOSMemory()
			pages.Drop()
			now = lookAtMemory()
			trimmed = now.held
		}
		before = now
	}
}

func lookAtMemory() memory {
	s := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(s)
	return memory{allocated: s[0].Value.Uint64(), held: s[1].Value.Uint64() + s[2].Value.Uint64() + s[3].Value.Uint64()}
}

// settled is when a process that starts is over the worst, and from then on pages that it does not use are those of its start.
const settled = 15 * time.Second

// dropPages lets go of the program's pages, at first when the process has settled and then once in a while. An agent is never idle
// enough for trimMemory: it probes.
func dropPages(ctx context.Context) {
	tick := time.NewTicker(settled)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			pages.Drop()
			tick.Reset(20 * settled)
		}
	}
}
