package top

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// fleet is the agents of some nodes: each uses a core, and so does the container main of its one pod.
type fleet struct {
	began  time.Time
	mu     sync.Mutex     // guards asked
	asked  map[string]int // node → times
	frozen string         // this node never answers
	broken string         // this one refuses
}

func newFleet() *fleet { return &fleet{began: time.Now(), asked: map[string]int{}} }

func (f *fleet) ask(ctx context.Context, node string) (*statsapi.Summary, error) {
	f.mu.Lock()
	f.asked[node]++
	f.mu.Unlock()
	switch node {
	case f.frozen:
		<-ctx.Done()
		return nil, ctx.Err()
	case f.broken:
		return nil, errors.New("connection refused")
	}
	return summaryOf(time.Now(), f.began, time.Since(f.began), "u-"+node), nil
}

func (f *fleet) times(node string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[node]
}

// summaryOf is of a node and of a container that began at a time, each having used cpu; the container half a GiB.
func summaryOf(now, began time.Time, cpu time.Duration, uid string) *statsapi.Summary {
	used, memory, half := uint64(cpu), uint64(1<<30), uint64(1<<29)
	at := metav1.NewTime(now.Truncate(time.Second)) // as JSON has it
	s := &statsapi.Summary{}
	s.Node.CPU = &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &used}
	s.Node.Memory = &statsapi.MemoryStats{WorkingSetBytes: &memory}
	s.Pods = []statsapi.PodStats{{PodRef: statsapi.PodReference{Namespace: "shop", Name: "web", UID: uid}, Containers: []statsapi.ContainerStats{{
		Name: "main", StartTime: metav1.NewTime(began.Truncate(time.Second)),
		CPU: &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &used}, Memory: &statsapi.MemoryStats{WorkingSetBytes: &half},
	}, {Name: "unknown"}}}}
	return s
}

// inBubble runs a test in synthetic time, with a meter that is closed at its end.
func inBubble(t *testing.T, f func(*testing.T, *fleet, *meter)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		agents := newFleet()
		m := &meter{ask: agents.ask, log: slog.New(slog.DiscardHandler)}
		defer m.close()
		f(t, agents, m)
	})
}

func oneCore(t *testing.T, u *usage, window time.Duration) {
	t.Helper()
	if u == nil {
		t.Fatal("no usage")
	}
	if got := u.window(); got != window {
		t.Errorf("looks are %v apart, want %v", got, window)
	}
	if n := u.node(); n != (use{1e9, 1 << 30}) {
		t.Errorf("node: %+v", n)
	}
	if p := u.pod(podName{"shop", "web"}, ""); len(p) != 1 || p["main"] != (use{1e9, 1 << 29}) {
		t.Errorf("pod: %+v", p)
	}
}

func TestLooks(t *testing.T) {
	inBubble(t, func(t *testing.T, agents *fleet, m *meter) {
		after := func(d time.Duration) *usage {
			<-time.After(d)
			return m.usages(t.Context(), []string{"a"})["a"]
		}
		for _, step := range []struct {
			name  string
			after time.Duration
			asked int
			apart time.Duration
		}{
			{"the first time, two looks", time.Hour, 2, pause},
			{"at once again, what was said", 0, 2, pause},
			{"a little later, still", 900 * time.Millisecond, 2, pause},
			{"then one more look", 200 * time.Millisecond, 3, 1100 * time.Millisecond},
			{"and one", 50 * time.Second, 4, 50 * time.Second},
			{"after long, two", time.Hour, 6, pause},
		} {
			u := after(step.after)
			if got := agents.times("a"); got != step.asked {
				t.Errorf("%s: asked %d times, want %d", step.name, got, step.asked)
			}
			oneCore(t, u, step.apart)
		}
	})
}

// After the last request nothing is kept and nothing runs.
func TestForgets(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fleet, m *meter) {
		m.usages(t.Context(), []string{"a", "b"})
		if len(m.nodes) != 2 {
			t.Errorf("%d nodes are remembered", len(m.nodes))
		}
		<-time.After(stale + time.Second)
		synctest.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.nodes) != 0 {
			t.Errorf("%d nodes are remembered for ever", len(m.nodes))
		}
	})
}

// Agents that are silent or refuse are left out; the others are there, and nobody waits longer than the limit.
func TestSilentNode(t *testing.T) {
	inBubble(t, func(t *testing.T, agents *fleet, m *meter) {
		agents.frozen, agents.broken = "b", "c"
		began := time.Now()
		for range 2 { // the second time, the silence is remembered
			found := m.usages(t.Context(), []string{"a", "b", "c", "d"})
			if len(found) != 2 || found["a"] == nil || found["d"] == nil {
				t.Errorf("%v", found)
			}
			if took := time.Since(began); took != limit {
				t.Errorf("it took %v", took)
			}
		}
		if agents.times("b") != 1 {
			t.Errorf("the silent one was asked %d times", agents.times("b"))
		}
		agents.frozen = ""
		<-time.After(fresh)
		oneCore(t, m.usages(t.Context(), []string{"b"})["b"], pause)
	})
}

// Who leaves before the answer does not make the node a failed one for the next.
func TestClientLeaves(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fleet, m *meter) {
		ctx, cancel := context.WithTimeout(t.Context(), pause/2)
		defer cancel()
		if found := m.usages(ctx, []string{"a"}); len(found) != 0 {
			t.Errorf("%v", found)
		}
		if u := m.usages(t.Context(), []string{"a"})["a"]; u == nil {
			t.Error("no usage for the next")
		}
	})
}

// Many requests at once are one for the agent.
func TestTogether(t *testing.T) {
	inBubble(t, func(t *testing.T, agents *fleet, m *meter) {
		var clients sync.WaitGroup
		for range 20 {
			clients.Go(func() { oneCore(t, m.usages(t.Context(), []string{"a"})["a"], pause) })
		}
		clients.Wait()
		if agents.times("a") != 2 {
			t.Errorf("asked %d times", agents.times("a"))
		}
	})
}

func TestBetween(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	early, later := now.Add(-time.Hour), now.Add(5*time.Second)
	seen := func(at, began time.Time, cpu time.Duration, uid string) *look {
		return read(summaryOf(at, began, cpu, uid), at)
	}
	nothing := read(&statsapi.Summary{Node: statsapi.NodeStats{CPU: summaryOf(now, now, 0, "").Node.CPU}}, now)
	for _, test := range []struct {
		name       string
		base, last *look
		cores      float64 // below zero = left out
	}{
		{"the difference", seen(now, early, time.Minute, "u"), seen(later, early, time.Minute+5*time.Second, "u"), 1},
		{"idle", seen(now, early, time.Minute, "u"), seen(later, early, time.Minute, "u"), 0},
		{"started anew: all is of now", seen(now, early, time.Hour, "u"), seen(later, now, 10*time.Second, "u"), 2},
		{"a new pod of that name", seen(now, early, time.Second, "old"), seen(later, now, 10*time.Second, "u"), 2},
		{"was not there", nothing, seen(later, now, 10*time.Second, "u"), 2},
		{"was there and not seen", nothing, seen(later, early, time.Hour, "u"), -1},
		{"a counter that goes back", seen(now, early, time.Hour, "u"), seen(later, early, 5*time.Second, "u"), 1},
		{"is gone", seen(now, early, time.Hour, "u"), nothing, -1},
	} {
		later := *test.last
		later.at = now.Add(5 * time.Second)
		got, ok := (&usage{test.base, &later}).pod(podName{"shop", "web"}, "u")["main"]
		if ok != (test.cores >= 0) || ok && got.nanoCores != uint64(test.cores*1e9) {
			t.Errorf("%s: %+v %v", test.name, got, ok)
		}
	}
}

// A pod that is being ended and its successor have one name; a static pod has another UID in the API.
func TestPodOfAName(t *testing.T) {
	t.Parallel()
	l := &look{pods: map[podName][]podLook{{"shop", "web"}: {{uid: "old"}, {uid: "new"}}}}
	var got []string
	for _, uid := range []string{"old", "new", "of the mirror"} {
		p, _ := l.pod(podName{"shop", "web"}, uid)
		got = append(got, p.uid)
	}
	if !slices.Equal(got, []string{"old", "new", "new"}) {
		t.Error(strings.Join(got, " "))
	}
}
