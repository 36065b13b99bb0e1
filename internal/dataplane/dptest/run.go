package dptest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// limit bounds everything that a Suite does after it was started.
const limit = 5 * time.Minute

// Run runs the suite.
func Run(t *testing.T, o Options) {
	s := NewSuite(t, o)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	rows := table()
	if o.Sockets {
		rows = append(rows, socketRows()...)
	}
	if o.Conntrack != nil {
		rows = append(rows, conntrackRows()...)
	}
	for i, failures := range s.runAll(ctx, rows, abreast, func(testCase) time.Duration { return patience }) {
		t.Run(rows[i].name, func(t *testing.T) {
			for _, f := range failures {
				t.Error(f)
			}
		})
	}
	t.Run("quiet", func(t *testing.T) {
		if err := s.quiet(ctx); err != nil {
			t.Error(err)
		}
	})
	last := aloneRows()
	for name, damage := range o.Damage {
		last = append(last, damageRow(name, damage))
	}
	slices.SortFunc(last, func(a, b testCase) int { return strings.Compare(a.name, b.name) })
	for i, row := range last {
		t.Run(row.name, func(t *testing.T) {
			for _, f := range s.runCase(ctx, 200+i, row, patience) {
				t.Error(f)
			}
		})
	}
	t.Run("random walk", func(t *testing.T) { s.walk(ctx, t) })
}

// abreast is how many rows run at once: most of the time of a row is waiting for answers that must not come.
const abreast = 12

// runAll runs some rows at once, and returns what was wrong with each.
func (s *Suite) runAll(ctx context.Context, rows []testCase, atOnce int, patience func(testCase) time.Duration) [][]string {
	failures := make([][]string, len(rows))
	places := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, row := range rows {
		places <- struct{}{}
		wg.Go(func() {
			failures[i] = s.runCase(ctx, 1+i, row, patience(row))
			<-places
		})
	}
	wg.Wait()
	return failures
}

// Compare runs the cases that say what packets do against somebody else's data plane. A case that is in accepted, with the reason, must fail.
func Compare(t *testing.T, o Options, accepted map[string]string) {
	s := NewSuite(t, o)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	rows := table()
	known := map[string]bool{}
	results := s.runAll(ctx, rows, abreast, func(row testCase) time.Duration {
		if accepted[row.name] != "" {
			return time.Second // it fails anyway
		}
		return patience
	})
	for i, failures := range results {
		known[rows[i].name] = true
		t.Run(rows[i].name, func(t *testing.T) {
			reason := accepted[rows[i].name]
			if reason != "" && len(failures) == 0 {
				t.Errorf("it does this too: remove the accepted difference (%s)", reason)
			}
			for _, f := range failures {
				if reason == "" {
					t.Error(f)
				}
			}
		})
	}
	for name := range accepted {
		if !known[name] {
			t.Errorf("there is no case %q: remove the accepted difference", name)
		}
	}
}
