package app

import "time"

// stopwatch measures the phases of a start for the log.
type stopwatch struct {
	began, last time.Time
	laps        []any
}

func newStopwatch() *stopwatch {
	now := time.Now()
	return &stopwatch{began: now, last: now}
}

func (s *stopwatch) lap(name string) {
	now := time.Now()
	s.laps = append(s.laps, name, now.Sub(s.last).Round(100*time.Microsecond))
	s.last = now
}

// args are for slog: the whole time, then that of each phase.
func (s *stopwatch) args() []any {
	return append([]any{"took", s.last.Sub(s.began).Round(100 * time.Microsecond)}, s.laps...)
}
