package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/testkit"
)

// TestMain lets the test binary be a contender, as the program is.
func TestMain(m *testing.M) {
	child()
	testkit.Main(m)
}

// TestShortRun runs the controllers' parts at tiny sizes: the report must be complete, and its figures such as can be.
func TestShortRun(t *testing.T) {
	testkit.Need(t, testkit.Program("kubectl"))
	o, err := parse([]string{"-short", "-v=false", "-run", strings.Join(controllerParts(), ","), "-endpointd", testkit.Binary(t), "-json", t.TempDir() + "/bench.json"})
	if err != nil {
		t.Fatal(err)
	}
	report, err := o.measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var printed bytes.Buffer
	if err := report.print(&printed); err != nil {
		t.Fatal(err)
	}
	if err := report.write(o.json); err != nil {
		t.Fatal(err)
	}
	t.Log(printed.String())
	for _, hole := range report.holes() {
		t.Error(hole)
	}
	// The server itself, two sizes of flips, one Service of all pods at two paces, and the replacement.
	if len(report.Sections) != 6 {
		t.Fatalf("sections: %d, want 6", len(report.Sections))
	}
	for _, s := range report.Sections[1:5] {
		wantColumns(t, s, oursName, peerName, limitedName, insideName)
		for _, column := range s.Columns {
			wantFlips(t, s, column)
		}
	}
	replaced := report.Sections[5]
	wantColumns(t, replaced, oursName, peerName)
	pods := float64(o.services[len(o.services)-1] * podsPerService)
	for _, column := range replaced.Columns {
		api, slices := figure(t, replaced, "until the API took", column), figure(t, replaced, "until slices hold", column)
		if api <= 0 || slices < api {
			t.Errorf("%s: the API took %v s, slices %v s: they can not be right before the last pod is gone", column, api, slices)
		}
		if writes := figure(t, replaced, "slice writes", column); writes < 1 || writes > 3*pods {
			t.Errorf("%s: %v slice writes for %v pods", column, writes, pods)
		}
		if peak := figure(t, replaced, "controller memory, peak", column); peak < 10 || peak > 2000 {
			t.Errorf("%s: %v MB", column, peak)
		}
	}
	if idle := figure(t, report.Sections[0], "resident memory, idle", insideName); idle < 20 || idle > 2000 {
		t.Errorf("idle server: %v MB", idle)
	}
}

// wantFlips checks what must be true of flips on any machine, however slow.
func wantFlips(t *testing.T, s Section, column string) {
	t.Helper()
	patch, slice := figure(t, s, "the PATCH's own", column), figure(t, s, "PATCH sent → slice seen p50", column)
	if patch <= 0 || slice <= 0 {
		t.Errorf("%s: %s: PATCH %v ms, slice %v ms", s.Title, column, patch, slice)
	}
	if p99 := figure(t, s, "PATCH sent → slice seen p99", column); p99 < slice {
		t.Errorf("%s: %s: p99 %v ms is less than p50 %v ms", s.Title, column, p99, slice)
	}
	// Each flip was waited for in both, so each has at least one write.
	for _, row := range []string{"slice writes a flip", "Endpoints writes a flip"} {
		if writes := figure(t, s, row, column); writes < 1 || writes > 3 {
			t.Errorf("%s: %s: %s: %v", s.Title, column, row, writes)
		}
	}
	if kB := figure(t, s, "bytes written a flip", column); kB < 0.2 || kB > 1000 {
		t.Errorf("%s: %s: %v kB a flip", s.Title, column, kB)
	}
	if column != insideName {
		if cpu := figure(t, s, "controller CPU a flip", column); cpu < 0.05 || cpu > 1000 {
			t.Errorf("%s: %s: %v ms of CPU a flip", s.Title, column, cpu)
		}
	}
}

func wantColumns(t *testing.T, s Section, want ...string) {
	t.Helper()
	if fmt.Sprint(s.Columns) != fmt.Sprint(want) {
		t.Errorf("%s: columns %v, want %v", s.Title, s.Columns, want)
	}
}

// figure finds a row by the beginning of its name.
func figure(t *testing.T, s Section, row, column string) float64 {
	t.Helper()
	for _, r := range s.Rows {
		if strings.HasPrefix(r.Name, row) {
			v, ok := r.Values[column]
			if !ok {
				t.Fatalf("%s: %s: no value of %s", s.Title, r.Name, column)
			}
			return v.Value
		}
	}
	t.Fatalf("%s: no row %q", s.Title, row)
	return 0
}

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[len(hundred)-1-i] = float64(i + 1)
	}
	for _, c := range []struct {
		values  []float64
		q, want float64
	}{
		{[]float64{7}, 0.5, 7},
		{[]float64{7}, 0.99, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 2, 3}, 0.5, 2.5},
		{hundred, 0.5, 50.5},
		{hundred, 0.99, 99},
		{hundred, 1, 100},
	} {
		if got := quantile(c.values, c.q); got != c.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", c.values, c.q, got, c.want)
		}
	}
}

// TestHoles checks that a report that lacks something does not pass for a complete one.
func TestHoles(t *testing.T) {
	report := func(change func(*Section)) *Report {
		s := flipSection("flips", []string{oursName, peerName}, map[string][]*flipRun{oursName: {flips(7)}, peerName: {flips(14)}}, fullService)
		change(&s)
		return &Report{Sections: []Section{s}}
	}
	if holes := report(func(*Section) {}).holes(); holes != nil {
		t.Fatalf("a complete report has holes: %v", holes)
	}
	for name, change := range map[string]func(*Section){
		"no rows":           func(s *Section) { s.Rows = nil },
		"a column more":     func(s *Section) { s.Columns = append(s.Columns, insideName) },
		"a value less":      func(s *Section) { delete(s.Rows[1].Values, peerName) },
		"a value of no run": func(s *Section) { s.Rows[1].Values[peerName] = Value{Value: 1} },
		"not a number":      func(s *Section) { s.Rows[1].Values[peerName] = median([]float64{quantile(nil, 0.5)}, 1) },
		"less than nothing": func(s *Section) { s.Rows[1].Values[peerName] = Value{Value: -1, Runs: 1, Samples: 1} },
	} {
		if holes := report(change).holes(); len(holes) == 0 {
			t.Errorf("%s: nothing found", name)
		}
	}
	if holes := new(Report).holes(); len(holes) == 0 {
		t.Error("an empty report has no holes")
	}
}

// TestTargets checks that a target can be missed.
func TestTargets(t *testing.T) {
	verdicts := func(ours, peer float64) string {
		s := flipSection("flips", []string{oursName, peerName}, map[string][]*flipRun{oursName: {flips(ours)}, peerName: {flips(peer)}}, fullService)
		return s.Rows[1].aheadText() + " " + s.Rows[1].targetText()
	}
	for _, c := range []struct {
		ours, peer float64
		want       string
	}{
		{10, 400, "40× ≥ 30× ahead: met"},
		{10, 299, "29.9× ≥ 30× ahead: MISSED"},
		{10, 5, "0.500× ≥ 30× ahead: MISSED"},
	} {
		if got := verdicts(c.ours, c.peer); got != c.want {
			t.Errorf("ours %v, peer %v: %q, want %q", c.ours, c.peer, got, c.want)
		}
	}
}

// flips are four that took so many milliseconds each.
func flips(ms float64) *flipRun {
	same := []float64{ms, ms, ms, ms}
	return &flipRun{flips: 4, patch: []float64{5, 5, 5, 5}, slice: same, endpoints: same, written: counts{slices: 4, sliceBytes: 8000}}
}

func TestBadFlags(t *testing.T) {
	for _, args := range [][]string{
		{"-run", "flip"}, {"-services", "0"}, {"-services", "100,10"}, {"-services", "many"}, {"-services", "9999"},
		{"-rounds", "0"}, {"-samples", "1"}, {"-starts", "0"},
		{"-replacements", "0"}, {"-probed", "0"}, {"-pods", "2"}, {"-pods", "601"}, {"-fleets", "0"}, {"-kills", "3"}, {"-kills", "201"}, {"-silences", "0"},
	} {
		if _, err := parse(args); err == nil {
			t.Errorf("%v: accepted", args)
		}
	}
}
