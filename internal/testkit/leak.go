package testkit

import (
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// leakGrace is how long goroutines and descriptors may take to go away after the last test.
const leakGrace = 2 * time.Second

// Main is the body of a TestMain: it runs the tests, and makes the run fail if they leave goroutines or file
// descriptors behind.
//
//	func TestMain(m *testing.M) { testkit.Main(m) }
//
// Options name goroutines of libraries that have no way to stop, for example goleak.IgnoreTopFunction.
func Main(m *testing.M, options ...goleak.Option) {
	before := descriptors()
	code := m.Run()
	if code == 0 && !fuzzing() {
		code = leaks(os.Stderr, before, leakGrace, options...)
	}
	os.Exit(code)
}

// fuzzing says whether this process fuzzes or is the worker of one that does: the engine's own goroutines
// and pipes are no leaks of the tests.
func fuzzing() bool {
	for _, name := range []string{"test.fuzz", "test.fuzzworker"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != "" && f.Value.String() != "false" {
			return true
		}
	}
	return false
}

// leaks reports what is left and returns an exit code. Descriptors that are open already are in before.
func leaks(w *os.File, before map[string]string, grace time.Duration, options ...goleak.Option) int {
	code := 0
	if err := goleak.Find(options...); err != nil {
		fmt.Fprintf(w, "goroutines outlive the tests; give each an owner that waits for it:\n%v\n", err)
		code = 1
	}
	err := await(grace, func() error {
		if left := newDescriptors(before); len(left) > 0 {
			return fmt.Errorf("file descriptors outlive the tests; close them: %s", strings.Join(left, ", "))
		}
		return nil
	})
	if err != nil {
		fmt.Fprintln(w, err)
		code = 1
	}
	return code
}

// descriptors returns number → what it is open on, of this process.
func descriptors() map[string]string {
	const dir = "/proc/self/fd/"
	open := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return open // no /proc: nothing to compare
	}
	for _, entry := range entries {
		if target, err := os.Readlink(dir + entry.Name()); err == nil {
			open[entry.Name()] = target
		}
	}
	return open
}

// newDescriptors returns the descriptors that are not in before, without the poller that the runtime opens
// with the first socket and keeps.
func newDescriptors(before map[string]string) []string {
	var left []string
	for number, target := range descriptors() {
		poller := strings.HasPrefix(target, "anon_inode:[event") // eventpoll, eventfd
		if before[number] != target && !poller {
			left = append(left, number+" → "+target)
		}
	}
	sort.Strings(left)
	return left
}
