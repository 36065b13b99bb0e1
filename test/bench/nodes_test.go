package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/testkit"
)

// TestShortNodes runs the nodes' parts at tiny sizes: the report must be complete, and its figures such as can be.
func TestShortNodes(t *testing.T) {
	testkit.Need(t, testkit.Net())
	testkit.Need(t, testkit.Program("kubectl"))
	o, err := parse([]string{"-short", "-v=false", "-run", strings.Join(nodeParts(), ","), "-endpointd", testkit.Binary(t)})
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
	// Starts, probes, pods, pods at rest, kills, silence.
	if len(report.Sections) != 6 {
		t.Fatalf("sections: %d, want 6", len(report.Sections))
	}
	up, probes, pods, rest, kills, silent := report.Sections[0], report.Sections[1], report.Sections[2], report.Sections[3], report.Sections[4], report.Sections[5]
	for _, c := range []struct {
		section     Section
		row         string
		least, most float64 // what can be on any machine, however slow
	}{
		{up, "exec → all ready", 0.05, 60},
		{up, "down", 0.01, 20},
		{probes, "CPU of 100", 0.0005, 2},
		{pods, "created → all Ready", 0.05, 180},
		{pods, "agents' CPU a pod", 0.1, 1000},
		{rest, "an agent: resident memory", 10, 500},
		{rest, "a pod's own process: its share", 0.1, 50},
		{kills, "kill -9 of a container → its endpoint seen leaving the slice p50", 0.5, 10_000},
		{kills, "→ restarted", 5, 30_000},
		{kills, "of them with a new address", 0, 100},
		{silent, "→ Node seen not Ready", 1.5, 60},
		{silent, "→ replacements", 1.5, 180},
	} {
		if v := figure(t, c.section, c.row, oursName); v < c.least || v > c.most {
			t.Errorf("%s: %s: %v cannot be", c.section.Title, c.row, v)
		}
	}
	if left, back := figure(t, kills, "kill -9 of a container → its endpoint", oursName), figure(t, kills, "→ restarted", oursName); back < left {
		t.Errorf("back in the slice after %v ms, before it left after %v ms", back, left)
	}
	if left, replaced := figure(t, silent, "→ its endpoints", oursName), figure(t, silent, "→ replacements", oursName); replaced < left {
		t.Errorf("replaced after %v s, before they left after %v s", replaced, left)
	}
}
