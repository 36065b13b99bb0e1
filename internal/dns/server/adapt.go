package server

import (
	"context"
	"math"
	"time"

	"github.com/endpointd/endpointd/internal/dns/forward"
	"github.com/endpointd/endpointd/internal/dns/wire"
)

// Forward makes a [Forwarder] of the real one.
func Forward(f *forward.Forwarder) Forwarder { return forwarder{f} }

type forwarder struct{ f *forward.Forwarder }

func (f forwarder) Lookup(q *wire.Query, now time.Time) (Answer, bool) {
	a, ok := f.f.Lookup(q, now)
	if !ok {
		return nil, false
	}
	return a, true
}

func (f forwarder) Resolve(ctx context.Context, q *wire.Query) (Answer, error) {
	a, err := f.f.Resolve(ctx, q)
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f forwarder) IsLoopProbe(name []byte) bool { return f.f.IsLoopProbe(name) }

// writeMetrics adds what the forwarder counts.
func (f forwarder) writeMetrics(m *metricsText) {
	c := f.f.Metrics()
	for _, n := range []struct {
		name, help string
		value      uint64
	}{
		{"endpointd_dns_cache_hits_total", "Names of others that were answered from the cache.", c.Hits.Load()},
		{"endpointd_dns_cache_misses_total", "Names of others that the cache did not have.", c.Misses.Load()},
		{"endpointd_dns_cache_joined_total", "Misses that waited for a question that was being asked already.", c.Joined.Load()},
		{"endpointd_dns_cache_stale_total", "Answers that were too old, as no upstream gave a newer one.", c.Stale.Load()},
		{"endpointd_dns_cache_prefetches_total", "Questions that were asked again before their answer got old.", c.Prefetch.Load()},
		{"endpointd_dns_cache_evictions_total", "Answers that left the cache to make room.", c.Evictions.Load()},
		{"endpointd_dns_forward_busy_total", "Misses that were not asked, as too many were in flight.", c.Busy.Load()},
		{"endpointd_dns_forward_refused_total", "Misses that there is nobody to ask for.", c.Refused.Load()},
		{"endpointd_dns_forward_failures_total", "Misses that no upstream had an answer to.", c.Failures.Load()},
	} {
		m.family(n.name, "counter", n.help)
		m.sample(n.name, float64(n.value))
	}
	entries, bytes := f.f.Cached()
	m.family("endpointd_dns_cache_entries", "gauge", "Answers in the cache.")
	m.sample("endpointd_dns_cache_entries", float64(entries))
	m.family("endpointd_dns_cache_bytes", "gauge", "Memory of the answers in the cache, about.")
	m.sample("endpointd_dns_cache_bytes", float64(bytes))
	const took = "endpointd_dns_upstream_duration_seconds"
	m.family(took, "histogram", "Time of upstreams to answer.")
	var n uint64
	bounds := forward.LatencyBounds()
	for i := range c.Latency {
		bound := math.Inf(1)
		if i < len(bounds) {
			bound = bounds[i].Seconds()
		}
		n += c.Latency[i].Load()
		m.sample(took+"_bucket", float64(n), "le", number(bound))
	}
	m.sample(took+"_sum", time.Duration(c.LatencySum.Load()).Seconds())
	m.sample(took+"_count", float64(n))
	upstreamMetrics(m, f.f.Upstreams())
}

func upstreamMetrics(m *metricsText, upstreams []forward.Status) {
	for _, c := range []struct {
		name, kind, help string
		of               func(*forward.Status) float64
	}{
		{"endpointd_dns_upstream_up", "gauge", "Whether an upstream is asked: 0 if it does not answer, or leads back here.",
			func(u *forward.Status) float64 { return truth(u.Healthy && !u.Loops) }},
		{"endpointd_dns_upstream_loops", "gauge", "Whether an upstream leads back here.", func(u *forward.Status) float64 { return truth(u.Loops) }},
		{"endpointd_dns_upstream_rtt_seconds", "gauge", "Time of an upstream to answer, smoothed; 0 if not known yet.",
			func(u *forward.Status) float64 { return u.RTT.Seconds() }},
		{"endpointd_dns_upstream_questions_total", "counter", "Questions put to an upstream.",
			func(u *forward.Status) float64 { return float64(u.Metrics.Questions.Load()) }},
		{"endpointd_dns_upstream_answers_total", "counter", "Answers of an upstream.",
			func(u *forward.Status) float64 { return float64(u.Metrics.Answers.Load()) }},
		{"endpointd_dns_upstream_errors_total", "counter", "Answers of an upstream that are errors, or cannot be used.",
			func(u *forward.Status) float64 { return float64(u.Metrics.Errors.Load()) }},
		{"endpointd_dns_upstream_failures_total", "counter", "Questions that an upstream did not answer in time.",
			func(u *forward.Status) float64 { return float64(u.Metrics.Failures.Load()) }},
		{"endpointd_dns_upstream_truncated_total", "counter", "Answers of an upstream that did not fit UDP.",
			func(u *forward.Status) float64 { return float64(u.Metrics.Truncated.Load()) }},
		{"endpointd_dns_upstream_rejected_total", "counter", "Packets from an upstream's address that answer nothing that was asked.",
			func(u *forward.Status) float64 { return float64(u.Metrics.Wrong.Load() + u.Metrics.Malformed.Load()) }},
	} {
		m.family(c.name, c.kind, c.help)
		for i := range upstreams {
			m.sample(c.name, c.of(&upstreams[i]), "upstream", upstreams[i].Upstream.String())
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
