package process_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/process"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestLogFormat(t *testing.T) {
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	c := shell("echo out; echo err >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; printf end")
	start(t, r, c)
	nextExit(t, r)
	data, err := os.ReadFile(r.LogFile("uid-1", "main", 0))
	if err != nil {
		t.Fatal(err)
	}
	var shapes []string
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		text := fields[3]
		if len(text) > 10 {
			text = fmt.Sprint(len(text))
		}
		shapes = append(shapes, fields[1]+" "+fields[2]+" "+text)
	}
	// Two pipes are read at once, so their order is not known.
	got := strings.Join(shapes, "\n") + "\n"
	want := "stdout F out\nstdout P 16384\nstdout P 16384\nstdout F 7232\nstdout P end\n"
	if strings.Count(got, "stderr F err\n") != 1 || strings.Replace(got, "stderr F err\n", "", 1) != want {
		t.Errorf("log is\n%swant\n%s", got, want)
	}
}

// TestLogRotation has a flood: the newest lines are kept, in a bounded number of bounded files, and none in between is missing.
func TestLogRotation(t *testing.T) {
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	c := shell("i=0; while [ $i -lt 70 ]; do i=$((i+1)); seq -f \"$i %06g " + strings.Repeat("x", 900) + "\" 1000; done")
	start(t, r, c)
	status := nextExitWithin(t, r, 6*patience)
	if status.ExitCode != 0 {
		t.Fatalf("exit is %+v", status)
	}
	base := r.LogFile("uid-1", "main", 0)
	testkit.Await(t, patience, func() error { // the last lines come within the drain's grace
		data, err := os.ReadFile(base)
		if err == nil && !bytes.Contains(data, []byte("F 70 001000 ")) {
			return fmt.Errorf("the last line is missing")
		}
		return err
	})
	next, files := 70_000, 0
	for _, suffix := range []string{"", ".1", ".2", ".3", ".4", ".5"} {
		data, err := os.ReadFile(base + suffix)
		if os.IsNotExist(err) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		files++
		if len(data) > 10<<20 {
			t.Errorf("%s has %d bytes", base+suffix, len(data))
		}
		lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
		for _, line := range slices.Backward(lines) {
			var round, number int
			if _, err := fmt.Sscanf(strings.SplitN(line, " ", 4)[3], "%d %d", &round, &number); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			if (round-1)*1000+number != next {
				t.Fatalf("line %d of round %d, want line %d", number, round, next)
			}
			next--
		}
	}
	if files != 5 {
		t.Errorf("%d files, want 5", files)
	}
}

// TestOldLogs keeps the logs of the last attempt and of the one before.
func TestOldLogs(t *testing.T) {
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	for attempt := range 3 {
		c := shell("echo on")
		c.Attempt = attempt
		run(t, r, c)
	}
	for attempt, want := range []bool{false, true, true} {
		if _, err := os.Stat(r.LogFile("uid-1", "main", attempt)); (err == nil) != want {
			t.Errorf("log of attempt %d: %v", attempt, err)
		}
	}
}

// TestFullDisk sees that a container goes on when its log cannot.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	mountTmpfs(t, dir, "size=256k")
	r := newRuntime(t, process.Options{Dir: dir})
	startPod(t, r, container.Sandbox{})
	status, _ := run(t, r, shell("head -c 2000000 /dev/zero | tr '\\0' 'x' | fold -w 100 && exit 4"))
	if status.ExitCode != 4 {
		t.Errorf("exit is %+v", status)
	}
}
