package testkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestMain(m *testing.M) {
	if part := os.Getenv("TESTKIT_PART"); part != "" {
		os.Exit(play(part, os.Args[1:]))
	}
	Main(m)
}

// recorder is a testing.TB that notes how the test would have ended.
type recorder struct {
	testing.TB
	failed, skipped string
}

func (r *recorder) Helper() {}
func (r *recorder) Errorf(format string, args ...any) {
	r.failed += fmt.Sprintf(format, args...)
}
func (r *recorder) Fatal(args ...any) {
	r.failed += fmt.Sprint(args...)
	runtime.Goexit()
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Fatal(fmt.Sprintf(format, args...))
}

func (r *recorder) Skip(args ...any) {
	r.skipped += fmt.Sprint(args...)
	runtime.Goexit()
}

// record runs f as a test would run, to its end or to its Fatal.
func record(t *testing.T, f func(testing.TB)) *recorder {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r
}

func TestAwaitReturnsWhenSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		started := time.Now()
		Await(t, time.Minute, func() error {
			if time.Since(started) < 3*time.Second {
				return errors.New("early")
			}
			return nil
		})
		if took := time.Since(started); took > 3*time.Second+maxPoll {
			t.Errorf("noticed after %v, want within %v", took, maxPoll)
		}
	})
}

func TestAwaitFailsWithTheLastError(t *testing.T) {
	t.Parallel()
	r := record(t, func(t testing.TB) {
		calls := 0
		Await(t, 5*time.Millisecond, func() error {
			calls++
			return fmt.Errorf("still 2 of 3 after %d looks", calls)
		})
	})
	if !strings.Contains(r.failed, "still 2 of 3 after") {
		t.Errorf("failed with %q, want what was not so", r.failed)
	}
}

func TestAwaitAsksAtLeastOnce(t *testing.T) {
	t.Parallel()
	Await(t, 0, func() error { return nil })
}

func TestGolden(t *testing.T) { // not parallel: changes the working folder
	t.Chdir(t.TempDir())
	missing := record(t, func(t testing.TB) { Golden(t, "a/b.txt", []byte("one\n")) })
	if !strings.Contains(missing.failed, "-update") {
		t.Errorf("a missing file gives %q, want a word about -update", missing.failed)
	}
	if err := writeGolden(filepath.Join("testdata", "a", "b.txt"), []byte("one\ntwo\n")); err != nil {
		t.Fatal(err)
	}
	Golden(t, "a/b.txt", []byte("one\ntwo\n"))
	differs := record(t, func(t testing.TB) { Golden(t, "a/b.txt", []byte("one\nthree\n")) })
	for _, want := range []string{`-`, `"two"`, `+`, `"three"`} {
		if !strings.Contains(differs.failed, want) {
			t.Errorf("difference %q lacks %q", differs.failed, want)
		}
	}
}

func TestNeed(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, test := range []struct {
		name            string
		since           string
		probe           error
		require, kernel string
		want            verdict
	}{
		{name: "works", want: verdictRun},
		{name: "required and works", require: "x", want: verdictRun},
		{name: "missing", probe: broken, want: verdictSkip},
		{name: "missing, another is required", probe: broken, require: "y,xx", want: verdictSkip},
		{name: "missing and required", probe: broken, require: "y,x", want: verdictFail},
		{name: "kernel too old", since: "5.13", probe: broken, kernel: "5.4.0-generic", want: verdictSkip},
		{name: "kernel should have it", since: "5.13", probe: broken, kernel: "6.1.0-9-amd64", want: verdictFail},
		{name: "kernel has exactly that version", since: "5.13", probe: broken, kernel: "5.13-rc1", want: verdictFail},
		{name: "kernel has it, forbidden", since: "3.8", probe: fmt.Errorf("x: %w", ErrNotAllowed), kernel: "6.1.0", want: verdictSkip},
		{name: "unreadable version counts as new", since: "3.8", probe: broken, kernel: "", want: verdictFail},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			probe := func(context.Context) error { return test.probe }
			got, reason := judge(t.Context(), Feature{Name: "x", Since: test.since, Probe: probe}, test.require, test.kernel)
			if got != test.want {
				t.Errorf("verdict %d (%s), want %d", got, reason, test.want)
			}
		})
	}
}

func TestNeedSkips(t *testing.T) {
	t.Parallel()
	r := record(t, func(t testing.TB) { Need(t, Program("no-such-program-anywhere")) })
	if r.failed != "" || !strings.Contains(r.skipped, "no-such-program-anywhere") {
		t.Errorf("failed %q, skipped %q; want a skip that names the program", r.failed, r.skipped)
	}
	Need(t, Program("true"))
}

func TestNet(t *testing.T) {
	t.Parallel()
	Need(t, Net())
}

func TestLeaks(t *testing.T) { // not parallel: looks at the whole process
	discard, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = discard.Close() }()
	before := descriptors()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if left := newDescriptors(before); len(left) != 1 || !strings.Contains(left[0], "socket") {
		t.Errorf("open listener shows as %q, want one socket", left)
	}
	if code := leaks(discard, before, 0); code == 0 {
		t.Error("an open listener is no leak")
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if left := newDescriptors(before); len(left) != 0 {
		t.Errorf("left after closing: %q", left)
	}
}

func TestReadyWriter(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		writes []string
		ready  bool
	}{
		{"one line", []string{readyPrefix + " x\n"}, true},
		{"second line", []string{"hello\n" + readyPrefix + " x\n"}, true},
		{"in pieces", []string{"hello\nendpoi", "ntd is rea", "dy: x", "\n"}, true},
		{"not ended", []string{readyPrefix + " x"}, false},
		{"not at the start", []string{"once " + readyPrefix + " x\n"}, false},
		{"twice", []string{readyPrefix + " x\n", readyPrefix + " y\n"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var log lockedBuffer
			w := &readyWriter{to: &log, ready: make(chan struct{})}
			for _, text := range test.writes {
				if _, err := io.WriteString(w, text); err != nil {
					t.Fatal(err)
				}
			}
			if got := isClosed(w.ready); got != test.ready {
				t.Errorf("ready %v, want %v", got, test.ready)
			}
			if want := strings.Join(test.writes, ""); log.String() != want {
				t.Errorf("passed on %q, want %q", log.String(), want)
			}
		})
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
