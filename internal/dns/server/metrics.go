package server

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// WriteMetrics writes what was counted in the text format of Prometheus (exposition format 0.0.4).
func (s *Server) WriteMetrics(w io.Writer) error {
	m := &metricsText{}
	m.family("endpointd_dns_responses_total", "counter", "Responses by transport, type of the question and RCODE.")
	for t, transport := range transportNames() {
		for q, qtype := range typeNames() {
			for r, rcode := range rcodeNames() {
				if n := s.sum(func(c *counters) *atomic.Uint64 { return &c.replies[t][q][r] }); n > 0 {
					m.sample("endpointd_dns_responses_total", float64(n), "transport", transport, "type", qtype, "rcode", rcode)
				}
			}
		}
	}
	for _, c := range []struct {
		name, help string
		of         func(*counters) *atomic.Uint64
	}{
		{"endpointd_dns_truncated_total", "Responses with TC.", func(c *counters) *atomic.Uint64 { return &c.truncated }},
		{"endpointd_dns_malformed_total", "Packets that are no request.", func(c *counters) *atomic.Uint64 { return &c.malformed }},
		{"endpointd_dns_refused_clients_total", "Requests of those who may not ask.", func(c *counters) *atomic.Uint64 { return &c.refused }},
		{"endpointd_dns_limited_total", "Requests beyond the rate limit of their client.", func(c *counters) *atomic.Uint64 { return &c.limited }},
		{"endpointd_dns_overloaded_total", "Requests that could not wait, as too many did.", func(c *counters) *atomic.Uint64 { return &c.overloaded }},
		{"endpointd_dns_unresolved_total", "Requests that upstreams or the API failed.", func(c *counters) *atomic.Uint64 { return &c.unresolved }},
		{"endpointd_dns_unsent_total", "Responses that the kernel or the client did not take.", func(c *counters) *atomic.Uint64 { return &c.unsent }},
		{"endpointd_dns_completed_total", "Names of a search path that were completed for the client.", func(c *counters) *atomic.Uint64 { return &c.completed }},
		{"endpointd_dns_loops_total", "Own probes that came back from an upstream.", func(c *counters) *atomic.Uint64 { return &c.loops }},
		{"endpointd_dns_closed_connections_total", "TCP connections that were closed because there were too many.", func(c *counters) *atomic.Uint64 { return &c.closed }},
	} {
		m.family(c.name, "counter", c.help)
		m.sample(c.name, float64(s.sum(c.of)))
	}
	m.family("endpointd_dns_waiting_requests", "gauge", "Requests that wait for an upstream or the API.")
	m.sample("endpointd_dns_waiting_requests", float64(s.pool.waiting()))
	m.family("endpointd_dns_open_connections", "gauge", "TCP connections.")
	m.sample("endpointd_dns_open_connections", float64(s.streams.count()))
	m.family("endpointd_dns_snapshot_age_seconds", "gauge", "Time since the zone last changed.")
	m.sample("endpointd_dns_snapshot_age_seconds", s.o.Now().Sub(s.zone.Load().since).Seconds())
	const took = "endpointd_dns_request_duration_seconds"
	m.family(took, "histogram", "Time from reading a request to sending its response, of those answered at once and of those that waited.")
	m.histogram(took, s.histogram(func(c *counters) *histogram { return &c.atOnce }), "path", "at_once")
	m.histogram(took, s.histogram(func(c *counters) *histogram { return &c.waited }), "path", "waited")
	const programming = "endpointd_dns_programming_duration_seconds"
	m.family(programming, "histogram", "Time from a change of a headless Service's endpoints to the zone that answers so. "+
		"When the change was is what its EndpointSlices say in the annotation endpoints.kubernetes.io/last-change-trigger-time, mostly in whole seconds: "+
		"so up to 1 s of it may be none.")
	m.histogram(programming, &s.programming)
	if f, ok := s.o.Forwarder.(forwarder); ok {
		f.writeMetrics(m)
	}
	_, err := w.Write(m.text.Bytes())
	return err
}

func (s *Server) sum(of func(*counters) *atomic.Uint64) (n uint64) {
	for _, c := range s.shards {
		n += of(c).Load()
	}
	return n
}

func (s *Server) histogram(of func(*counters) *histogram) *histogram {
	var all histogram
	for _, c := range s.shards {
		h := of(c)
		for i := range h.slots {
			all.slots[i].Add(h.slots[i].Load())
		}
		all.sum.Add(h.sum.Load())
	}
	return &all
}

// metricsText is what is written.
type metricsText struct{ text bytes.Buffer }

func (m *metricsText) family(name, kind, help string) {
	fmt.Fprintf(&m.text, "# HELP %s %s\n# TYPE %s %s\n", name, strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(help), name, kind)
}

// sample writes one line; labels are names and values by turns.
func (m *metricsText) sample(name string, value float64, labels ...string) {
	m.text.WriteString(name)
	escape := strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
	for i := 0; i < len(labels); i += 2 {
		separator := byte(',')
		if i == 0 {
			separator = '{'
		}
		m.text.WriteByte(separator)
		fmt.Fprintf(&m.text, `%s="%s"`, labels[i], escape.Replace(labels[i+1]))
	}
	if len(labels) > 0 {
		m.text.WriteByte('}')
	}
	fmt.Fprintf(&m.text, " %s\n", number(value))
}

func number(v float64) string {
	if math.IsInf(v, 1) {
		return "+Inf"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

func (m *metricsText) histogram(name string, h *histogram, labels ...string) {
	var n uint64
	bucket := func(slot int, bound float64) {
		n += h.slots[slot].Load()
		m.sample(name+"_bucket", float64(n), append(append([]string{}, labels...), "le", number(bound))...)
	}
	for i, bound := range histogramBounds() {
		bucket(i, float64(bound)/1e6)
	}
	bucket(histogramSlots, math.Inf(1))
	m.sample(name+"_sum", time.Duration(h.sum.Load()).Seconds(), labels...)
	m.sample(name+"_count", float64(n), labels...)
}
