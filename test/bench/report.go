package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// A Report is all that a run of bench has measured.
type Report struct {
	Machine  Machine   `json:"machine"`
	Command  string    `json:"command"`
	Seconds  float64   `json:"seconds"`
	Sections []Section `json:"sections"`
	// Notes say what is missing and why, and what bounds a figure.
	Notes []string `json:"notes,omitempty"`
}

// Machine is where it was measured. Load says whether others were at work at the same time.
type Machine struct {
	Cores      int     `json:"cores"`
	CPU        string  `json:"cpu"`
	Kernel     string  `json:"kernel"`
	Go         string  `json:"go"`
	SyncMs     float64 `json:"syncMs"` // a small write that waits for the disk
	LoadBefore string  `json:"loadBefore"`
	LoadAfter  string  `json:"loadAfter"`
}

// A Section is one table.
type Section struct {
	Title   string   `json:"title"`
	Columns []string `json:"columns"` // contenders
	Rows    []Row    `json:"rows"`
}

// A Row is one figure of several contenders.
type Row struct {
	Name   string           `json:"name"`
	Unit   string           `json:"unit"`
	Values map[string]Value `json:"values"`
	Ahead  Ahead            `json:"ahead,omitzero"`
	Peer   string           `json:"peer,omitempty"` // from the design, where the peer is not in this run
	// Published is what peers' own pages say of themselves, each with where; measured elsewhere, so no ratio is made of it.
	Published string   `json:"published,omitempty"`
	Targets   []Target `json:"targets,omitempty"`
	// Sparse rows may lack values, for nothing happened that they could show.
	Sparse bool `json:"sparse,omitempty"`
}

// Value is a median over the runs, with its spread. Of a p99 it is the p99 of all samples of all runs.
type Value struct {
	Value   float64 `json:"value"`
	Min     float64 `json:"min"`
	Max     float64 `json:"max"`
	Runs    int     `json:"runs"`
	Samples int     `json:"samples"`
	AtLeast bool    `json:"atLeast,omitempty"` // it was not waited for any longer
}

// Ahead is the peer's value divided by that of ours, as its own process and inside the server's; 0 where there is none.
type Ahead struct {
	Ours   float64 `json:"ours,omitempty"`
	Inside float64 `json:"inside,omitempty"`
}

// A Target is of the design, §4, or of the issue that asked for this.
type Target struct {
	Text   string `json:"text"`
	Column string `json:"column"` // whose value it is about
	Met    bool   `json:"met"`
}

// atMost and ahead are the two kinds of target. Both ways to run ours are held to them.
func (r *Row) atMost(limit float64) {
	for _, column := range []string{oursName, insideName} {
		if v, ok := r.Values[column]; ok {
			r.Targets = append(r.Targets, Target{fmt.Sprintf("≤ %s %s", number(limit), r.Unit), column, v.Value <= limit})
		}
	}
}

func (r *Row) ahead(times float64) {
	for column, ahead := range map[string]float64{oursName: r.Ahead.Ours, insideName: r.Ahead.Inside} {
		if ahead > 0 {
			r.Targets = append(r.Targets, Target{fmt.Sprintf("≥ %s× ahead", number(times)), column, ahead >= times})
		}
	}
	slices.SortStableFunc(r.Targets, func(a, b Target) int { return strings.Compare(a.Column, b.Column) })
}

// compare fills Ahead in.
func (r *Row) compare() {
	peer, ok := r.Values[peerName]
	if !ok {
		return
	}
	times := func(column string) float64 {
		if v := r.Values[column]; v.Value > 0 {
			return peer.Value / v.Value
		}
		return 0
	}
	r.Ahead = Ahead{Ours: times(oursName), Inside: times(insideName)}
}

// median of runs, each of which is one figure from so many samples.
func median(runs []float64, samples int) Value {
	if len(runs) == 0 {
		return Value{}
	}
	return Value{Value: quantile(runs, 0.5), Min: slices.Min(runs), Max: slices.Max(runs), Runs: len(runs), Samples: samples}
}

// quantile is the smallest value that at least a share of q of the values do not exceed; of two middle ones, their mean.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	at := int(math.Ceil(q*float64(len(sorted)))) - 1
	at = min(max(at, 0), len(sorted)-1)
	if q == 0.5 && len(sorted)%2 == 0 {
		return (sorted[at] + sorted[at+1]) / 2
	}
	return sorted[at]
}

// holes are the figures that a complete report would have, and those that cannot be.
func (r *Report) holes() []string {
	var found []string
	if len(r.Sections) == 0 {
		found = append(found, "no section")
	}
	for _, s := range r.Sections {
		if len(s.Rows) == 0 {
			found = append(found, s.Title+": no row")
		}
		for _, row := range s.Rows {
			for _, column := range s.Columns {
				v, ok := row.Values[column]
				switch where := s.Title + ": " + row.Name + ": " + column; {
				case !ok || v.Runs == 0:
					if !row.Sparse {
						found = append(found, where+": missing")
					}
				case math.IsNaN(v.Value) || math.IsInf(v.Value, 0) || v.Value < 0 || v.Samples < 1:
					found = append(found, fmt.Sprintf("%s: %v of %d samples cannot be", where, v.Value, v.Samples))
				}
			}
		}
	}
	return found
}

// print writes the tables.
func (r *Report) print(w io.Writer) error {
	fmt.Fprintf(w, "%s\n%d cores, %s, Linux %s, %s; a synced write of 4 kB %s ms; load average %s before, %s after; %.0f s\n",
		r.Command, r.Machine.Cores, cmp.Or(r.Machine.CPU, "unknown CPU"), r.Machine.Kernel, r.Machine.Go,
		number(r.Machine.SyncMs), r.Machine.LoadBefore, r.Machine.LoadAfter, r.Seconds)
	fmt.Fprintln(w, "medians over the runs (lowest–highest run); p99 is of all samples; ahead is upstream divided by ours")
	for _, s := range r.Sections {
		fmt.Fprintf(w, "\n%s\n", s.Title)
		table := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		fmt.Fprintf(table, "  \t%s\tahead\ttarget\tn\n", strings.Join(s.Columns, "\t"))
		for _, row := range s.Rows {
			fmt.Fprintf(table, "  %s, %s", row.Name, row.Unit)
			var samples []string
			for _, column := range s.Columns {
				v, ok := row.Values[column]
				if !ok || v.Runs == 0 {
					fmt.Fprint(table, "\t–")
					samples = append(samples, "–")
					continue
				}
				fmt.Fprintf(table, "\t%s%s", map[bool]string{true: "> "}[v.AtLeast], number(v.Value))
				if v.Runs > 1 {
					fmt.Fprintf(table, " (%s–%s)", number(v.Min), number(v.Max))
				}
				samples = append(samples, strconv.Itoa(v.Samples))
			}
			fmt.Fprintf(table, "\t%s\t%s\t%s\n", row.aheadText(), row.targetText(), strings.Join(samples, "/"))
		}
		if err := table.Flush(); err != nil {
			return err
		}
		for _, row := range s.Rows {
			if row.Published != "" {
				fmt.Fprintf(w, "  published, %s: %s\n", row.Name, row.Published)
			}
		}
	}
	for i, note := range r.Notes {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, "note:", note)
	}
	return nil
}

func (r *Row) aheadText() string {
	var texts []string
	if r.Peer != "" {
		texts = append(texts, "design: "+r.Peer)
	}
	if r.Ahead.Ours > 0 {
		texts = append(texts, number(r.Ahead.Ours)+"×")
	}
	if r.Ahead.Inside > 0 {
		texts = append(texts, "inside "+number(r.Ahead.Inside)+"×")
	}
	return strings.Join(texts, ", ")
}

func (r *Row) targetText() string {
	var texts []string
	for _, t := range r.Targets {
		verdict := "met"
		if !t.Met {
			verdict = "MISSED"
		}
		if t.Column == insideName && len(r.Values) > 1 {
			verdict = "inside " + verdict
		}
		texts = append(texts, t.Text+": "+verdict)
	}
	return strings.Join(texts, ", ")
}

// number has three digits that count.
func number(v float64) string {
	switch {
	case v == 0 || math.Abs(v) >= 100 || v == math.Trunc(v) && math.Abs(v) < 1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case math.Abs(v) >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case math.Abs(v) >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

func (r *Report) write(path string) error {
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(content, '\n'), 0o644)
}
