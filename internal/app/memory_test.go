package app

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/testkit"
)

func TestWorthTrimming(t *testing.T) {
	const mb = 1 << 20
	tests := []struct {
		name        string
		before, now memory
		trimmed     uint64
		want        bool
	}{
		{"idle, never trimmed", memory{allocated: 100 * mb}, memory{allocated: 101 * mb, held: 50 * mb}, 0, true},
		{"idle, much added", memory{allocated: 100 * mb}, memory{allocated: 101 * mb, held: 200 * mb}, 100 * mb, true},
		{"busy", memory{allocated: 100 * mb}, memory{allocated: 200 * mb, held: 200 * mb}, 100 * mb, false},
		{"little added", memory{allocated: 100 * mb}, memory{allocated: 101 * mb, held: 27 * mb}, 20 * mb, false},
		{"little beside what is there", memory{allocated: 100 * mb}, memory{allocated: 101 * mb, held: 480 * mb}, 400 * mb, false},
		{"less than after the last trim", memory{allocated: 100 * mb}, memory{allocated: 101 * mb, held: 40 * mb}, 50 * mb, false},
	}
	for _, tc := range tests {
		if got := worthTrimming(tc.before, tc.now, tc.trimmed); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestTrimMemoryGivesBack(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); trimMemory(ctx) }()
	garbage := make([]byte, 256<<20)
	for i := 0; i < len(garbage); i += 4096 {
		garbage[i] = 1
	}
	before := lookAtMemory().held
	runtime.KeepAlive(garbage) // its last use
	testkit.Await(t, 10*trimPeriod, func() error {
		if held := lookAtMemory().held; held > before-200<<20 {
			return errors.New("the memory is still held")
		}
		return nil
	})
	cancel()
	select {
	case <-done:
	case <-time.After(trimPeriod):
		t.Error("it goes on after its context")
	}
}
