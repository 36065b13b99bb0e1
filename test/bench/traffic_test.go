package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/testkit"
)

// cgroupPrograms are what the eBPF data plane needs, which nobody but root may load.
func cgroupPrograms() testkit.Feature {
	return testkit.Feature{Name: "bpf", Since: "5.13", Probe: func(context.Context) error {
		if os.Geteuid() != 0 {
			return fmt.Errorf("root: %w", testkit.ErrNotAllowed)
		}
		group, err := newCgroup(nil, fmt.Sprintf("bench-probe-%d", os.Getpid()))
		if err != nil {
			return fmt.Errorf("%w: %w", testkit.ErrNotAllowed, err)
		}
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		})
		if err == nil {
			err = program.Close()
		}
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: %w", testkit.ErrNotAllowed, err)
		}
		return errors.Join(err, group.remove())
	}}
}

// TestShortTraffic runs the traffic parts at tiny sizes, with the peers that are there: the report must be complete, and its figures such as can be.
func TestShortTraffic(t *testing.T) {
	testkit.Need(t, cgroupPrograms())
	testkit.Need(t, testkit.Program("kubectl"))
	root, err := testkit.Root()
	if err != nil {
		t.Fatal(err)
	}
	o, err := parse([]string{
		"-short", "-v=false", "-run", strings.Join(trafficParts(), ","), "-endpointd", testkit.Binary(t), "-kube-proxy", filepath.Join(root, ".cache", "bin", "kube-proxy"),
	})
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
	t.Log(printed.String())
	for _, hole := range report.holes() {
		t.Error(hole)
	}
	// Memory of none; of four: a cold start, memory, two rates, in turn, two paces; five × ten; Ready.
	if len(report.Sections) != 10 {
		t.Fatalf("sections: %d, want 10", len(report.Sections))
	}
	for _, s := range report.Sections[3:6] {
		for _, column := range []string{ebpfName, nftablesName} {
			if rate := figure(t, s, "requests", column); rate < 50 || rate > 10_000_000 {
				t.Errorf("%s: %s: %v a second cannot be", s.Title, column, rate)
			}
			if failed := figure(t, s, "connections that failed", column); failed > 1 {
				t.Errorf("%s: %s: %v of 1000 connections failed", s.Title, column, failed)
			}
		}
	}
	for _, s := range report.Sections[6:8] {
		for _, column := range []string{ebpfName, nftablesName} {
			if p50 := figure(t, s, "sent → reached p50", column); p50 < 0.1 || p50 > 30_000 {
				t.Errorf("%s: %s: %v ms cannot be", s.Title, column, p50)
			}
		}
	}
	for _, column := range []string{ebpfName, nftablesName} {
		if took := figure(t, report.Sections[1], "exec → the last", column); took < 0.01 || took > 180 {
			t.Errorf("cold start: %s: %v s cannot be", column, took)
		}
		if rss := figure(t, report.Sections[0], "resident memory, settled", column); rss < 10 || rss > 1000 {
			t.Errorf("memory: %s: %v MB cannot be", column, rss)
		}
	}
	if groups, err := filepath.Glob(filepath.Join(must(t)(cgroupOf("self")), fmt.Sprintf("bench-%d*", os.Getpid()))); err != nil || len(groups) > 0 {
		t.Errorf("left behind: %v, %v", groups, err)
	}
}

func must(t *testing.T) func(string, error) string {
	return func(text string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
}

func TestTrafficFlags(t *testing.T) {
	o, err := parse([]string{"-run", "traffic,programming", "-services", "1,30000", "-shapes", "10000x2,5000x50"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []int{1, 30_000}; !slices.Equal(o.sizes, want) {
		t.Errorf("sizes %v, want %v", o.sizes, want)
	}
	if want := []shape{{10_000, 2}, {5000, 50}}; !slices.Equal(o.shapes, want) {
		t.Errorf("shapes %v, want %v", o.shapes, want)
	}
	for _, args := range [][]string{
		{"-services", "30000"}, // the controllers' parts run, too
		{"-run", "traffic", "-services", "30001"},
		{"-shapes", "5000"}, {"-shapes", "5000x"}, {"-shapes", "x5"}, {"-shapes", "0x2"}, {"-shapes", "30000x50"},
		{"-client", "moon"}, {"-traffic", "1h"}, {"-connections", "0"}, {"-cold-limit", "1ms"}, {"-readies", "0"}, {"-slow-flips", "0"},
	} {
		if _, err := parse(args); err == nil {
			t.Errorf("%v: accepted", args)
		}
	}
}

// TestReach checks whose the moments are when changes overtake each other.
func TestReach(t *testing.T) {
	at := func(n int) string { return flippedEndpoint(n).String() }
	run := &programRun{flips: make([]flipTimes, 4)} // changes 7 to 10
	run.reach(7, []sight{
		{where: at(6), done: 1}, // as it was before
		{where: at(7), done: 2},
		{where: nowhere, done: 3},
		{where: at(9), done: 4}, // 8 was never seen
		{where: at(10), done: 5},
	})
	want := []flipTimes{{reached: 2, own: true}, {reached: 4}, {reached: 4, own: true}, {reached: 5, own: true}}
	if !slices.Equal(run.flips, want) {
		t.Errorf("got %v, want %v", run.flips, want)
	}
	for i := range run.flips { // written when it was answered or shown, whichever we saw first
		run.flips[i].answered, run.flips[i].shown = time.Duration(i), time.Duration(3-i)
	}
	run.flips[0].reached = 0
	for i, ms := range run.latencies() {
		if want := max(run.flips[i].reached-time.Duration(min(i, 3-i)), 0); ms != milliseconds(want) {
			t.Errorf("change %d: %v ms, want %v", i, ms, milliseconds(want))
		}
	}
}

// TestRatios checks that a rate is divided by that of the same round.
func TestRatios(t *testing.T) {
	results := func(rates ...int) []*loadResult {
		var out []*loadResult
		for _, r := range rates {
			out = append(out, &loadResult{Requests: r, Seconds: 1, P50: 500, P99: 900})
		}
		return out
	}
	ways := []way{{column: directName, direct: true}, {column: ebpfName}, {column: kubeProxyName}}
	s := rateSection("rates", ways, rateRuns{
		directName: results(1000, 100, 400), ebpfName: results(990, 100, 400), kubeProxyName: results(500, 60, 200),
	})
	for column, want := range map[string]float64{directName: 1, ebpfName: 1, kubeProxyName: 0.5} {
		if got := figure(t, s, "ratio to direct", column); got != want {
			t.Errorf("%s: ratio %v, want %v", column, got, want)
		}
	}
	if ahead := s.Rows[1].Ahead.Ours; ahead != 2 {
		t.Errorf("ahead %v times, want 2", ahead)
	}
	if text := s.Rows[1].targetText(); text != ebpfName+" ≥ 0.98 ×: met" {
		t.Errorf("target: %s", text)
	}
	slow := rateSection("rates", ways, rateRuns{directName: results(1000), ebpfName: results(970), kubeProxyName: results(500)})
	if text := slow.Rows[1].targetText(); text != ebpfName+" ≥ 0.98 ×: MISSED" {
		t.Errorf("target: %s", text)
	}
	if holes := (&Report{Sections: []Section{s}}).holes(); holes != nil {
		t.Errorf("holes: %v", holes)
	}
}

// TestInTurn checks that one who alternates is compared with the endpoint alone on its own node.
func TestInTurn(t *testing.T) {
	one := func(rate int) []*loadResult { return []*loadResult{{Requests: rate, Seconds: 1}} }
	service := []way{{ebpfName, ebpfName, false}, {kubeProxyName, kubeProxyName, false}}
	direct := []way{{"direct, e", ebpfName, true}, {"direct, k", kubeProxyName, true}}
	s := alternateSection("in turn", service, direct, rateRuns{ebpfName: one(90), kubeProxyName: one(20), "direct, e": one(100), "direct, k": one(80)})
	for column, want := range map[string]float64{ebpfName: 0.9, kubeProxyName: 0.25} {
		if got := figure(t, s, "ratio to the endpoint alone", column); got != want {
			t.Errorf("%s: %v, want %v", column, got, want)
		}
	}
	if text := s.Rows[2].targetText(); text != ebpfName+" ≥ 0.9 ×: met" {
		t.Errorf("target: %s", text)
	}
	if got := figure(t, s, "the endpoint alone", kubeProxyName); got != 80 {
		t.Errorf("alone: %v, want 80", got)
	}
}

// TestLate checks that a figure that was not waited for says so.
func TestLate(t *testing.T) {
	runs := map[string][]*coldRun{
		ebpfName: {{took: 500 * time.Millisecond}}, kubeProxyName: {{took: 3 * time.Minute, late: true}},
	}
	report := &Report{Sections: []Section{coldSection("cold", []string{ebpfName, kubeProxyName}, runs, shape{10_000, 2})}, Notes: []string{"it was late"}}
	var printed bytes.Buffer
	if err := report.print(&printed); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"> 180", "360×", ebpfName + " ≤ 1 s: met", "note: it was late"} {
		if !strings.Contains(printed.String(), want) {
			t.Errorf("%q is not in\n%s", want, printed.String())
		}
	}
	if strings.Contains(printed.String(), "> 0.5") {
		t.Errorf("ours was not late:\n%s", printed.String())
	}
}

func TestParseSight(t *testing.T) {
	if s, ok := parseSight("10.0.0.1 17 23"); !ok || s != (sight{"10.0.0.1", 17, 23}) {
		t.Errorf("got %v, %v", s, ok)
	}
	for _, line := range []string{"", "probing", "here 1", "here 1 two", "here 1 2 3"} {
		if s, ok := parseSight(line); ok {
			t.Errorf("%q: taken for %v", line, s)
		}
	}
}

// TestAddresses checks that no two Services and no two endpoints share an address, with the largest loads.
func TestAddresses(t *testing.T) {
	seen := map[string]bool{}
	add := func(what string, ok bool) {
		if seen[what] || !ok {
			t.Fatalf("%s: twice, or outside its range", what)
		}
		seen[what] = true
	}
	for i := -2; i < 30_000; i++ { // the two before are those that are used
		at := fillerService(i)
		add(at.String(), serviceRange.Contains(at.Addr()))
	}
	if fillerService(-2) != targetService() || fillerService(-1) != flippedService() {
		t.Error("the Services that are used are not before the others")
	}
	add(targetEndpoint().Addr().String(), endpointRange.Contains(targetEndpoint().Addr()))
	for n := range flipAddrs {
		add(flippedEndpoint(n).String(), endpointRange.Contains(flippedEndpoint(n)))
	}
	for i := range 5000 {
		for j := range 100 {
			a := fillerEndpoint(i, j, 100)
			add(a.String(), endpointRange.Contains(a))
		}
	}
}
