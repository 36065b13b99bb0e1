package usage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/stream"
	"github.com/endpointd/endpointd/internal/testkit"
)

// burnArg is the first argument with which the test binary is a container that uses 50 ms of CPU by itself and 50 ms by a child
// that ends, holds 32 MiB, says so, and waits for its input to end.
const burnArg = "usage-burn"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == burnArg {
		os.Exit(burn(os.Args[2:]))
	}
	testkit.Main(m)
}

func burn(args []string) int {
	const work = 50 * time.Millisecond
	for used := time.Duration(0); used < work; {
		var own unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &own); err != nil {
			return 1
		}
		used = time.Duration(own.Nano())
	}
	if len(args) > 0 {
		return 0 // the child
	}
	if err := exec.Command(os.Args[0], burnArg, "child").Run(); err != nil {
		return 1
	}
	held := make([]byte, 32<<20)
	for i := range held {
		held[i] = 1
	}
	fmt.Println("ready")
	_, _ = os.Stdin.Read(held[:1])
	return int(held[1]) - 1
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// The PIDs of fixtures are above what a kernel gives (PID_MAX_LIMIT, 4194304), so that no process is measured by mistake.
const pid = 5_000_000

func stat(name string, parent, session int, ticks ...int) string {
	return fmt.Sprintf("1 (%s) S %d 1 %d 0 -1 4194560 1 1 1 1 %d %d %d %d 20 0 1 0 100 1 1", name, parent, session, ticks[0], ticks[1], ticks[2], ticks[3])
}

func status(anon, shmem int) string {
	return fmt.Sprintf("Name:\tx\nRssAnon:\t%8d kB\nRssFile:\t 9999 kB\nRssShmem:\t%8d kB\n", anon, shmem)
}

func machineFiles() map[string]string {
	return map[string]string{
		"stat":    "cpu  100 10 50 90000 700 3 2 5555 40 0\ncpu0 1 1 1 1 1 1 1 1 1 1\nbtime 1700000000\nprocesses 5\n",
		"meminfo": "MemTotal:    1000000 kB\nMemFree:      300000 kB\nMemAvailable: 600000 kB\nInactive(file):  200000 kB\n",
	}
}

func running(uid string, containers map[string]int) container.Pod {
	p := container.Pod{Sandbox: container.Sandbox{UID: uid, Namespace: "shop", Name: "pod-" + uid}, PID: 1, CreatedAt: time.Now().Add(-time.Hour)}
	for name, pid := range containers {
		p.Containers = append(p.Containers, container.Status{Pod: uid, Name: name, State: container.Running, PID: pid, StartedAt: time.Now().Add(-10 * time.Second)})
	}
	return p
}

func listOf(pods ...container.Pod) func(context.Context) ([]container.Pod, error) {
	return func(context.Context) ([]container.Pod, error) { return pods, nil }
}

func measure(t *testing.T, m *Meter) stream.Stats {
	t.Helper()
	s, err := m.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMachine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, machineFiles())
	m := New(Options{Node: "node-1", Pods: listOf(), Proc: dir})
	got := measure(t, m)
	if u := got.NodeUsage; got.Node != "node-1" || u.CPU != 1650*time.Millisecond || u.WorkingSet != 500000<<10 || u.Since.Unix() != 1700000000 {
		t.Errorf("%+v", got)
	}
	write(t, dir, map[string]string{"stat": "intr 5\n"})
	if _, err := m.Stats(t.Context()); err == nil || !strings.Contains(err.Error(), "usage of node node-1: stat: cpu") {
		t.Errorf("a file without the line: %v", err)
	}
}

// Two containers in one PID namespace: each has its own descendants, and an orphan by its session; no other's.
func TestProcesses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := machineFiles()
	for number, p := range map[int]struct{ stat, status string }{
		pid + 1: {stat("shim", 1, pid+1, 900, 900, 900, 900), status(9000, 0)},
		pid + 2: {stat("web (1) S 7 7", pid+1, pid+2, 10, 5, 100, 1), status(1000, 24)}, // a name can look like the rest of the line
		pid + 3: {stat("worker", pid+2, pid+9, 20, 0, 0, 0), status(500, 0)},            // a session of its own
		pid + 4: {stat("orphan", pid+1, pid+2, 1, 1, 1, 1), status(100, 0)},
		pid + 5: {stat("other", pid+1, pid+5, 3, 0, 0, 0), status(1, 0)},
	} {
		files[strconv.Itoa(number)+"/stat"], files[strconv.Itoa(number)+"/status"] = p.stat, p.status
	}
	files[strconv.Itoa(pid+6)+"/stat"] = "broken"
	write(t, dir, files)
	gone := running("c", map[string]int{"ended": pid + 7})
	dead := running("d", map[string]int{"main": pid + 2})
	dead.PID = 0
	stopped := running("e", map[string]int{"main": pid + 2})
	stopped.Containers[0].State = container.Exited
	got := measure(t, New(Options{Node: "n", Proc: dir, Cgroup: filepath.Join(dir, "none"),
		Pods: listOf(running("a", map[string]int{"web": pid + 2, "other": pid + 5}), gone, dead, stopped)}))
	if len(got.Pods) != 3 || len(got.Pods[1].Containers) != 0 || len(got.Pods[2].Containers) != 0 {
		t.Fatalf("%+v", got.Pods)
	}
	pod := got.Pods[0]
	web, other := pod.Containers["web"], pod.Containers["other"]
	if web.CPU != 1400*time.Millisecond || web.WorkingSet != 1624<<10 {
		t.Errorf("web: %+v", web)
	}
	if other.CPU != 30*time.Millisecond || other.WorkingSet != 1<<10 {
		t.Errorf("other: %+v", other)
	}
	if pod.Namespace != "shop" || pod.Name != "pod-a" || pod.UID != "a" || pod.Usage.CPU != web.CPU+other.CPU || pod.Usage.WorkingSet != 1625<<10 {
		t.Errorf("pod: %+v", pod)
	}
	if web.NanoCores < 130e6 || web.NanoCores > 140e6 { // 1.4 s in the 10 s since its start
		t.Errorf("nanocores since the start: %d", web.NanoCores)
	}
}

// A circle of parents, as processes read at different moments can make, holds nobody.
func TestCircle(t *testing.T) {
	t.Parallel()
	all := processes{1: {parent: 2}, 2: {parent: 1}, 3: {parent: 0}}
	if got := all.of(3); len(got) != 1 || got[0] != 3 {
		t.Errorf("%v", got)
	}
}

func TestGroup(t *testing.T) {
	t.Parallel()
	proc, groups := t.TempDir(), t.TempDir()
	files := machineFiles()
	files[strconv.Itoa(pid+3)+"/status"] = status(2048, 0)
	write(t, proc, files)
	m := New(Options{Node: "n", Proc: proc, Cgroup: groups, Pods: listOf(running("a", map[string]int{"web": pid}))})
	for _, test := range []struct {
		name   string
		files  map[string]string
		cpu    time.Duration
		memory uint64
	}{
		{"without a memory controller, its processes", map[string]string{
			"a/c-web/cpu.stat": "usage_usec 1500\nuser_usec 1000\n", "a/c-web/cgroup.procs": fmt.Sprintf("0\n%d\n%d\n", pid+3, pid+4),
		}, 1500 * time.Microsecond, 2 << 20},
		{"with a memory controller, the working set", map[string]string{
			"a/c-web/memory.current": "5000000\n", "a/c-web/memory.stat": "anon 1\ninactive_file 1000000\n",
		}, 1500 * time.Microsecond, 4000000},
		{"more inactive than all", map[string]string{"a/c-web/memory.current": "5\n"}, 1500 * time.Microsecond, 0},
		{"used more", map[string]string{"a/c-web/cpu.stat": "usage_usec 99000000\n"}, 99 * time.Second, 0},
	} {
		write(t, groups, test.files)
		if u := measure(t, m).Pods[0].Containers["web"]; u.CPU != test.cpu || u.WorkingSet != test.memory {
			t.Errorf("%s: %+v", test.name, u)
		}
	}
	if u := measure(t, m).Pods[0].Containers["web"]; u.NanoCores != 0 {
		t.Errorf("in use now, when nothing was since the last look: %d", u.NanoCores)
	}
	write(t, groups, map[string]string{"a/c-web/cpu.stat": "usage_usec 10000000\n"}) // a counter that went back began anew
	if u := measure(t, m).Pods[0].Containers["web"]; u.NanoCores < 900e6 || u.NanoCores > 1000e6 {
		t.Errorf("in use since a new start: %d", u.NanoCores)
	}
}

func TestRuntimeFails(t *testing.T) {
	t.Parallel()
	m := New(Options{Node: "node-1", Pods: func(context.Context) ([]container.Pod, error) { return nil, os.ErrClosed }})
	if _, err := m.Stats(t.Context()); !errors.Is(err, os.ErrClosed) || !strings.Contains(err.Error(), "node-1") {
		t.Errorf("%v", err)
	}
}

// TestOwnProcess measures a real process, its child that has ended and its memory.
func TestOwnProcess(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0], burnArg)
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	}()
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	m := New(Options{Node: "n", Pods: listOf(running("a", map[string]int{"main": cmd.Process.Pid}))})
	s := measure(t, m)
	u := s.Pods[0].Containers["main"]
	if u.CPU < 90*time.Millisecond || u.CPU > 10*time.Second { // 100 ms of work, the child's counted in ticks
		t.Errorf("CPU time %v", u.CPU)
	}
	if u.WorkingSet < 32<<20 || u.WorkingSet > 256<<20 {
		t.Errorf("memory %d MiB", u.WorkingSet>>20)
	}
	if s.NodeUsage.CPU < u.CPU || s.NodeUsage.WorkingSet < u.WorkingSet || s.NodeUsage.Since.After(time.Now()) {
		t.Errorf("the machine uses %+v, its process %+v", s.NodeUsage, u)
	}
}

// BenchmarkStats is 100 pods of a container each, without cgroups.
func BenchmarkStats(b *testing.B) {
	var pods []container.Pod
	for i := range 100 {
		pods = append(pods, running(strconv.Itoa(i), map[string]int{"main": os.Getpid()}))
	}
	m := New(Options{Node: "n", Pods: listOf(pods...)})
	for b.Loop() {
		if _, err := m.Stats(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
