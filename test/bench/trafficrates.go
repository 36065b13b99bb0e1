package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// way is how requests go in one column of the table.
type way struct {
	column string
	site   string // whose node
	direct bool   // to the endpoint; else to the Service
}

// ways are the columns, those of one node beside each other.
func (b *bench) ways() []way {
	all := []way{
		{directName, directName, true},
		{ebpfName, ebpfName, false}, {"direct, eBPF loaded", ebpfName, true},
		{nftablesName, nftablesName, false}, {"direct, nftables loaded", nftablesName, true},
		{kubeProxyName, kubeProxyName, false}, {"direct, kube-proxy loaded", kubeProxyName, true},
		{haproxyName, haproxyName, false},
	}
	return slices.DeleteFunc(all, func(w way) bool { return !b.has(w.site) })
}

// A pattern is how a client uses connections.
type pattern struct {
	name string
	keep bool
	both bool // the endpoint and the Service in turn
	long int  // times -traffic
}

func patterns() []pattern {
	return []pattern{
		{name: "a connection a request"},
		{name: "kept connections", keep: true},
	}
}

// alternating is the one that leaves TIME_WAIT on purpose.
func alternating() pattern {
	return pattern{name: "endpoint and Service in turn, a connection a request", both: true, long: 12}
}

const (
	loadWarm = 300 * time.Millisecond
	loadMost = 3_000_000
)

// spec is for one measurement.
func (b *bench) spec(w way, p pattern) loadSpec {
	s := loadSpec{Targets: []netip.AddrPort{targetService()}, Connections: b.connections, Keep: p.keep, Warm: loadWarm, For: b.traffic * time.Duration(max(p.long, 1)), Most: loadMost}
	if w.direct {
		s.Targets = []netip.AddrPort{targetEndpoint()}
	}
	if p.both {
		s.Targets = []netip.AddrPort{targetEndpoint(), targetService()}
	}
	return s
}

// rateRuns are the results of each column, one for each round: the i-th of all columns belong together.
type rateRuns map[string][]*loadResult

// rates measures requests a second with the load as it is.
func (b *bench) rates(ctx context.Context) error {
	names := slices.DeleteFunc([]string{directName, ebpfName, nftablesName, kubeProxyName, haproxyName}, func(n string) bool { return !b.has(n) })
	return b.withSites(ctx, names, func(sites []*site) error {
		for _, p := range patterns() {
			if err := b.ratesOf(ctx, sites, p, b.ways()); err != nil {
				return err
			}
		}
		if b.fill.made.services != b.sizes[0] {
			return nil // once is enough
		}
		return b.alternate(ctx, sites)
	})
}

func (b *bench) ratesOf(ctx context.Context, sites []*site, p pattern, ways []way) error {
	var turns []turn
	for _, w := range ways {
		turns = append(turns, turn{w, p})
	}
	runs, err := b.takeTurns(ctx, sites, turns, b.rounds)
	if err != nil {
		return err
	}
	title := fmt.Sprintf("requests a second, %s, %d connections, client in a %s, %d Services", p.name, b.connections, b.clientAt, b.fill.made.services)
	b.report.Sections = append(b.report.Sections, rateSection(title, ways, runs))
	return nil
}

// A turn is one measurement of a round. No two of a round have the same column.
type turn struct {
	way
	pattern
}

// takeTurns has all of them measured in each round; where a round begins moves on by one each time.
func (b *bench) takeTurns(ctx context.Context, sites []*site, turns []turn, rounds int) (rateRuns, error) {
	runs := rateRuns{}
	for round := range rounds {
		for i := range turns {
			t := turns[(i+round)%len(turns)]
			result, err := b.rate(ctx, siteOf(sites, t.site), b.spec(t.way, t.pattern))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", t.column, err)
			}
			runs[t.column] = append(runs[t.column], result)
			b.say("%s: %s: %s a second, %d failed", t.pattern.name, t.column, number(result.rate()), result.Failed)
		}
	}
	return runs, nil
}

func siteOf(sites []*site, name string) *site {
	return sites[slices.IndexFunc(sites, func(s *site) bool { return s.name == name })]
}

// rate measures once, with pods that are new and no connection known.
func (b *bench) rate(ctx context.Context, s *site, spec loadSpec) (*loadResult, error) {
	if err := s.pods(); err != nil {
		return nil, err
	}
	if err := s.sleep(false); err != nil {
		return nil, err
	}
	if s.proxy != nil { // it notices new links
		if err := s.idle(ctx, 10*time.Second); err != nil {
			return nil, err
		}
	}
	at := s.here()
	if b.clientAt == clientOnNode {
		at.place = s.node
	}
	result, err := b.ask(ctx, at, spec)
	if err != nil {
		return nil, err
	}
	return result, s.sleep(true)
}

// alternate measures the effect that the design names: TIME_WAIT that one path has left makes the server refuse the other's SYN.
func (b *bench) alternate(ctx context.Context, sites []*site) error {
	p := alternating()
	alone := pattern{name: "the endpoint alone, as long", long: p.long}
	var turns []turn
	var service, direct []way
	for _, w := range b.ways() {
		switch {
		case w.site == directName || w.site == haproxyName:
		case w.direct:
			direct, turns = append(direct, w), append(turns, turn{w, alone})
		default:
			service, turns = append(service, w), append(turns, turn{w, p})
		}
	}
	if len(service) == 0 {
		return nil
	}
	runs, err := b.takeTurns(ctx, sites, turns, min(b.rounds, 2)) // each is long
	if err != nil {
		return err
	}
	title := fmt.Sprintf("%s, TIME_WAIT left on purpose, %d connections, client in a %s, %d Services", p.name, b.connections, b.clientAt, b.fill.made.services)
	b.report.Sections = append(b.report.Sections, alternateSection(title, service, direct, runs))
	return nil
}

// rateSection is the table of one pattern.
func rateSection(title string, ways []way, runs rateRuns) Section {
	s := Section{Title: title}
	for _, w := range ways {
		s.Columns = append(s.Columns, w.column)
	}
	s.Rows = rateRows(s.Columns, runs, func(string) string { return directName })
	return s
}

// rateRows has the figures of some columns; base names the column that one's rate is divided by.
func rateRows(columns []string, runs rateRuns, base func(string) string) []Row {
	var rows []Row
	add := func(name, unit string, of func(column string, round int, r *loadResult) (float64, bool)) *Row {
		row := Row{Name: name, Unit: unit, Values: map[string]Value{}}
		for _, column := range columns {
			var each []float64
			requests := 0
			for i, r := range runs[column] {
				if v, ok := of(column, i, r); ok {
					each, requests = append(each, v), requests+r.Requests
				}
			}
			if len(each) > 0 {
				row.Values[column] = median(each, max(requests, 1))
			}
		}
		rows = append(rows, row)
		return &rows[len(rows)-1]
	}
	figure := func(of func(*loadResult) float64) func(string, int, *loadResult) (float64, bool) {
		return func(_ string, _ int, r *loadResult) (float64, bool) { return of(r), true }
	}
	add("requests", "a second", figure((*loadResult).rate)).times(kubeProxyName)
	ratio := add("ratio to direct", "×", func(column string, round int, r *loadResult) (float64, bool) {
		to := runs[base(column)]
		if round >= len(to) || to[round].rate() == 0 {
			return 0, false
		}
		return r.rate() / to[round].rate(), true
	})
	ratio.times(kubeProxyName)
	if v, ok := ratio.Values[ebpfName]; ok {
		ratio.Targets = append(ratio.Targets, Target{ebpfName + " ≥ 0.98 ×", ebpfName, v.Value >= 0.98})
	}
	add("p50", "ms", figure(func(r *loadResult) float64 { return r.P50 / 1000 }))
	add("p99", "ms", figure(func(r *loadResult) float64 { return r.P99 / 1000 }))
	add("connections that failed", "‰", figure(func(r *loadResult) float64 {
		return 1000 * float64(r.Failed) / float64(max(r.Requests+r.Failed, 1))
	}))
	return rows
}

// alternateSection has the contenders' rates when a client alternates, and of the same node's endpoint alone.
func alternateSection(title string, service, direct []way, runs rateRuns) Section {
	own := map[string]string{} // column → the column of its own direct rate
	s := Section{Title: title}
	for _, w := range service {
		s.Columns = append(s.Columns, w.column)
		for _, d := range direct {
			if d.site == w.site {
				own[w.column] = d.column
			}
		}
	}
	s.Rows = rateRows(s.Columns, runs, func(column string) string { return own[column] })
	alone := Row{Name: "the endpoint alone", Unit: "a second", Values: map[string]Value{}}
	for _, column := range s.Columns {
		var each []float64
		requests := 0
		for _, r := range runs[own[column]] {
			each, requests = append(each, r.rate()), requests+r.Requests
		}
		alone.Values[column] = median(each, requests)
	}
	s.Rows = slices.Insert(s.Rows, 0, alone)
	for i := range s.Rows {
		if s.Rows[i].Name == "ratio to direct" {
			s.Rows[i].Name = "ratio to the endpoint alone"
			s.Rows[i].Targets = nil
			for _, column := range []string{ebpfName, nftablesName} { // "must not collapse", and noise is a tenth
				if v, ok := s.Rows[i].Values[column]; ok {
					s.Rows[i].Targets = append(s.Rows[i].Targets, Target{column + " ≥ 0.9 ×", column, v.Value >= 0.9})
				}
			}
		}
	}
	return s
}

// times fills Ahead in for a figure that is better when it is larger: ours, by eBPF if that is there, divided by a peer's.
func (r *Row) times(peer string) {
	if p := r.Values[peer]; p.Value > 0 {
		r.Ahead = Ahead{Ours: r.Values[oursColumn(r.Values)].Value / p.Value}
	}
}

// under does it for one that is better when it is smaller.
func (r *Row) under(peer string) {
	if o := r.Values[oursColumn(r.Values)]; o.Value > 0 {
		r.Ahead = Ahead{Ours: r.Values[peer].Value / o.Value}
	}
}

// oursAtMost holds both of our data planes to a target.
func (r *Row) oursAtMost(limit float64) {
	for _, column := range []string{ebpfName, nftablesName} {
		if v, ok := r.Values[column]; ok {
			r.Targets = append(r.Targets, Target{fmt.Sprintf("%s ≤ %s %s", column, number(limit), r.Unit), column, v.Value <= limit})
		}
	}
}

func oursColumn(values map[string]Value) string {
	if _, ok := values[ebpfName]; ok {
		return ebpfName
	}
	return nftablesName
}
