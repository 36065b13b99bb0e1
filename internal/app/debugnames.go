package app

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	dnsserver "github.com/endpointd/endpointd/internal/dns/server"
)

// debugNames is the DNS server of an agent.
type debugNames struct {
	names  *names // nil = there is none
	failed error  // why, if there was to be one
}

// namesStatus is how a DNS server does, for people and programs. The counts are since it began.
type namesStatus struct {
	// Problems are what a person who gets no answer wants to know first.
	Problems []string `json:"problems"`

	Listen   []netip.AddrPort `json:"listen,omitempty"`
	Domain   string           `json:"domain,omitempty"`
	Revision uint64           `json:"revision"` // of the Snapshot that answers; 0 = none
	Services int              `json:"services"`
	// ZoneAgeSeconds is the time since the zone last changed.
	ZoneAgeSeconds float64         `json:"zoneAgeSeconds"`
	Upstreams      []namesUpstream `json:"upstreams"`
	CacheEntries   int             `json:"cacheEntries"`
	CacheBytes     int64           `json:"cacheBytes"`
	Responses      uint64          `json:"responses"`
	Waiting        int             `json:"waiting"` // requests that wait for an upstream or the API
	Unresolved     uint64          `json:"unresolved"`
	Refused        uint64          `json:"refused"`
	Limited        uint64          `json:"limited"`
	Overloaded     uint64          `json:"overloaded"`
	Malformed      uint64          `json:"malformed"`
	Unsent         uint64          `json:"unsent"`
}

type namesUpstream struct {
	Address    string   `json:"address"`
	Domains    []string `json:"domains"`
	Up         bool     `json:"up"`
	Loops      bool     `json:"loops"` // it leads back here
	RTTSeconds float64  `json:"rttSeconds"`
	Questions  uint64   `json:"questions"`
	Failures   uint64   `json:"failures"`
}

// status is nil where there is to be no server.
func (d debugNames) status() *namesStatus {
	switch {
	case d.names != nil:
		return d.names.status()
	case d.failed != nil:
		return &namesStatus{Problems: []string{d.failed.Error()}}
	}
	return nil
}

func (n *names) status() *namesStatus {
	st := n.server.Status()
	s := &namesStatus{
		Listen: st.Listen, Domain: n.o.Domain, ZoneAgeSeconds: st.ZoneAge.Seconds(), Responses: st.Responses, Waiting: st.Waiting, Unresolved: st.Unresolved,
		Refused: st.Refused, Limited: st.Limited, Overloaded: st.Overloaded, Malformed: st.Malformed, Unsent: st.Unsent,
		Problems: []string{}, Upstreams: []namesUpstream{},
	}
	s.CacheEntries, s.CacheBytes = n.forwarder.Cached()
	problem := func(is bool, format string, args ...any) {
		if is {
			s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
		}
	}
	if now := n.zone.Load().Snapshot(); now != nil {
		s.Revision, s.Services = now.Revision, now.Len()
	}
	problem(s.Revision == 0, "the API has not told everything yet, so the cluster's names are answered with SERVFAIL")
	_, others := n.o.Upstreams["."] // or it was said that there are none
	for _, u := range n.forwarder.Upstreams() {
		others = others || slices.Contains(u.Domains, ".")
		s.Upstreams = append(s.Upstreams, namesUpstream{
			Address: u.Upstream.String(), Domains: u.Domains, Up: u.Healthy && !u.Loops, Loops: u.Loops, RTTSeconds: u.RTT.Seconds(),
			Questions: u.Metrics.Questions.Load(), Failures: u.Metrics.Failures.Load(),
		})
		problem(!u.Healthy, "upstream %s does not answer", u.Upstream)
		problem(u.Loops, "upstream %s leads back here and is not asked: name another one, or one behind it", u.Upstream)
	}
	problem(!others, "there is no upstream for names that are not the cluster's: name one with --dns-upstream, or in %s", cmp.Or(n.o.ResolvConf, "the file of --resolv-conf"))
	problem(st.Refused > 0, "%d requests came neither from nodes nor from pods, and were refused: --dns-allow lets others ask", st.Refused)
	problem(st.Limited > 0, "%d requests were beyond the rate limit of their client", st.Limited)
	problem(st.Overloaded > 0, "%d requests could not wait for an answer, as too many did", st.Overloaded)
	return s
}

// A queryFilter is what GET /queries is asked for.
type queryFilter struct {
	dnsserver.LogFilter
	length time.Duration // 0 = until the client leaves
}

func parseQueryFilter(q url.Values) (f queryFilter, err error) {
	f.Suffix = q.Get("name")
	for _, text := range q["client"] {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return f, fmt.Errorf("client %q: %w", text, err)
		}
		f.Clients = append(f.Clients, p)
	}
	if text := q.Get("rate"); text != "" {
		if f.PerSecond, err = strconv.Atoi(text); err != nil {
			return f, fmt.Errorf("rate %q: %w", text, err)
		}
	}
	if text := q.Get("for"); text != "" {
		if f.length, err = time.ParseDuration(text); err != nil || f.length < 0 {
			return f, fmt.Errorf("for %q: this is no length of time, like 30s", text)
		}
	}
	return f, nil
}

// omittedPeriod is how soon a listener is told of lines that were left out, if there is no line to tell it before.
const omittedPeriod = time.Second

// queries follows what is asked: a line for each request that fits and its answer, until the client leaves, its time is over, or the agent ends.
func (d debugNames) queries(w http.ResponseWriter, r *http.Request) {
	if d.names == nil {
		err := cmp.Or(d.failed, errors.New("there is no DNS server here: this agent was started with --dns-port 0 or --proxy-only"))
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	f, err := parseQueryFilter(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	tap, err := d.names.server.Tap(f.LogFilter)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	defer tap.Close()
	var over <-chan time.Time
	if f.length > 0 {
		timer := time.NewTimer(f.length)
		defer timer.Stop()
		over = timer.C
	}
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Time{}) // who does not read loses lines and keeps what a Tap has, until he leaves or the agent ends
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprintln(w, dnsserver.ExchangeHead())
	_ = control.Flush() // here and below: if it fails, so does the context
	follow(w, control, tap, over, r.Context().Done())
}

// follow writes lines until one of the channels says that it is over.
func follow(w io.Writer, control *http.ResponseController, tap *dnsserver.Tap, over <-chan time.Time, gone <-chan struct{}) {
	tick := time.NewTicker(omittedPeriod)
	defer tick.Stop()
	omitted := func() {
		if n := tap.Omitted(); n > 0 {
			_, _ = fmt.Fprintf(w, "%d omitted\n", n)
		}
	}
	defer func() { _ = control.Flush() }()
	for {
		select {
		case e := <-tap.Exchanges():
			_, _ = fmt.Fprintln(w, e)
			if len(tap.Exchanges()) > 0 {
				continue
			}
			omitted()
		case <-tick.C:
			omitted()
		case <-over:
			tap.Close()
			for len(tap.Exchanges()) > 0 {
				_, _ = fmt.Fprintln(w, <-tap.Exchanges())
			}
			omitted()
			return
		case <-gone:
			omitted()
			_, _ = fmt.Fprintln(w, "the agent ends")
			return
		}
		_ = control.Flush()
	}
}
