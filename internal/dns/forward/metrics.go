package forward

import (
	"sync/atomic"
	"time"
)

// Metrics are counters since the start, to be read at any time.
type Metrics struct {
	Hits      atomic.Uint64 // answered from the cache by Lookup, stale ones too
	Misses    atomic.Uint64 // came to Resolve
	Joined    atomic.Uint64 // of those, waited for a question that was being asked already
	Stale     atomic.Uint64 // of both, answered with what was too old
	Prefetch  atomic.Uint64 // asked again before what is known got old
	Busy      atomic.Uint64 // refused, as too many questions were in flight
	Refused   atomic.Uint64 // refused, as there is nobody to ask, or it is no question for them
	Failures  atomic.Uint64 // no upstream had an answer
	Evictions atomic.Uint64 // left the cache to make room
	// Latency counts answers of upstreams by how long they took: at most LatencyBounds[i], the last ones more than all of these.
	Latency [len(latencyBounds{}) + 1]atomic.Uint64
	// LatencySum is their sum in nanoseconds.
	LatencySum atomic.Int64
}

type latencyBounds [10]time.Duration

// LatencyBounds are the upper bounds that Metrics.Latency counts by.
func LatencyBounds() []time.Duration {
	b := bounds()
	return b[:]
}

func bounds() latencyBounds {
	const ms = time.Millisecond
	return latencyBounds{ms, 2 * ms, 5 * ms, 10 * ms, 25 * ms, 50 * ms, 100 * ms, 250 * ms, 500 * ms, time.Second}
}

func (m *Metrics) observe(took time.Duration) {
	limits := bounds()
	i := 0
	for i < len(limits) && took > limits[i] {
		i++
	}
	m.Latency[i].Add(1)
	m.LatencySum.Add(int64(took))
}

// UpstreamMetrics are counters of one upstream.
type UpstreamMetrics struct {
	Questions atomic.Uint64 // put to it, probes too
	Answers   atomic.Uint64 // of it, whatever the RCODE
	Errors    atomic.Uint64 // of the answers, those that are neither NOERROR nor NXDOMAIN, or cannot be used
	Failures  atomic.Uint64 // no answer in time, or no connection
	Truncated atomic.Uint64 // asked again over TCP, as the answer was too long
	Wrong     atomic.Uint64 // packets that were ignored: ID or question was another one
	Malformed atomic.Uint64 // packets that were ignored: no message
	Recased   atomic.Uint64 // asked again over TCP, as the letter case of the question was not repeated
}

// Status is how it is with an upstream.
type Status struct {
	Upstream Upstream
	Domains  []string // the domains whose names it is asked for
	Healthy  bool
	Loops    bool          // it leads back here, so it is not asked
	RTT      time.Duration // smoothed; 0 = not known yet
	Metrics  *UpstreamMetrics
}
