package testkit

import (
	"testing"
	"time"
)

const (
	firstPoll = time.Millisecond
	maxPoll   = 50 * time.Millisecond
)

// Await returns as soon as cond returns nil. If that takes longer than timeout, the test fails with the
// last error of cond, which should say what is not so yet. Cond runs in the calling goroutine, at once and
// then at growing intervals of at most 50 ms; under testing/synctest they take no real time.
func Await(t testing.TB, timeout time.Duration, cond func() error) {
	t.Helper()
	if err := await(timeout, cond); err != nil {
		t.Fatalf("not so after %v: %v", timeout, err)
	}
}

func await(timeout time.Duration, cond func() error) error {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	poll := time.NewTimer(firstPoll)
	defer poll.Stop()
	for wait := firstPoll; ; wait = min(2*wait, maxPoll) {
		err := cond()
		if err == nil {
			return nil
		}
		poll.Reset(wait)
		select {
		case <-poll.C:
		case <-deadline.C:
			return err
		}
	}
}
