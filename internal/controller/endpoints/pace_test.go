package endpoints

import (
	"testing"
	"time"
)

// drive lets changes come at the given times and gives when each was written,
// if a write takes took.
func drive(changes []time.Duration, took time.Duration) (written []time.Duration, writes int) {
	var p pace
	zero := time.Unix(0, 0)
	var now time.Duration
	for i := 0; i < len(changes); {
		now = max(now, changes[i])
		now += p.hold(zero.Add(now))
		taken := 0
		for i+taken < len(changes) && changes[i+taken] <= now {
			taken++
		}
		now += took
		writes++
		for range taken {
			written = append(written, now)
		}
		i += taken
		p.wrote(zero.Add(now), took, taken)
	}
	return written, writes
}

func every(d time.Duration, n int) (out []time.Duration) {
	for i := range n {
		out = append(out, time.Duration(i)*d)
	}
	return out
}

func TestPace(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name       string
		changes    []time.Duration
		took       time.Duration
		worst      time.Duration // from a change to its write
		writesMost int
	}{
		{"changes that come one after the other are never held", every(6*ms, 100), 5 * ms, 5 * ms, 100},
		{"one that comes during a write is written next", []time.Duration{0, 2 * ms}, 5 * ms, 8 * ms, 2},
		{"a few at once are two writes", []time.Duration{0, ms, ms, ms, 2 * ms}, 5 * ms, 9 * ms, 2},
		{"changes that each come during the last one's write are never held", every(4*ms, 100), 5 * ms, 13 * ms, 100},
		{"changes without end are written ten times a second", every(ms, 10_000), 5 * ms, maxPause + 10*ms, 110},
		{"slow writes, too", every(ms, 10_000), 200 * ms, maxPause + 400*ms, 40},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			written, writes := drive(tc.changes, tc.took)
			for i, w := range written {
				if d := w - tc.changes[i]; d > tc.worst {
					t.Fatalf("the change at %v is written after %v, want at most %v", tc.changes[i], d, tc.worst)
				}
			}
			if writes > tc.writesMost {
				t.Errorf("%d writes, want at most %d", writes, tc.writesMost)
			}
		})
	}
}

// After the crowd the first change is not held.
func TestPaceForgets(t *testing.T) {
	changes := append(every(time.Millisecond, 1000), 5*time.Second)
	written, _ := drive(changes, 5*time.Millisecond)
	if d := written[len(written)-1] - 5*time.Second; d != 5*time.Millisecond {
		t.Errorf("a change in quiet times is written after %v", d)
	}
}

func TestLag(t *testing.T) {
	now := time.Unix(0, 0)
	var l lag
	if l.hold(now, false) != 0 {
		t.Error("an object is held in quiet times")
	}
	l.wrote(10 * time.Millisecond)
	if d := l.hold(now, true); d != 200*time.Millisecond {
		t.Errorf("held for %v, want 20 times what the last write took", d)
	}
	if d := l.hold(now.Add(150*time.Millisecond), false); d != 50*time.Millisecond {
		t.Errorf("held for %v more: the time counts from when it fell behind", d)
	}
	if l.hold(now.Add(200*time.Millisecond), true) != 0 {
		t.Error("held longer than its lag")
	}
	l.wrote(time.Minute)
	if d := l.hold(now, true); d != maxLag {
		t.Errorf("held for %v", d)
	}
	l.wrote(time.Nanosecond)
	if d := l.hold(now, true); d != minLag {
		t.Errorf("held for %v", d)
	}
}
