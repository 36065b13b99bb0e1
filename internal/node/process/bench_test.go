package process_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/process"
)

// BenchmarkPod measures a pod's life: start of the pod and its container, an exec, the exit on Events, the removal.
func BenchmarkPod(b *testing.B) {
	r, err := process.New(process.Options{Dir: filepath.Join(b.TempDir(), "pods"), Executable: os.Getenv("PROCESS_BENCH_EXECUTABLE")})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // the process ends
	var pod, start, exec, exit, remove time.Duration
	var rss, pss int
	lap := func(total *time.Duration, began time.Time) { *total += time.Since(began) }
	for i := range b.N {
		ctx, uid := context.Background(), fmt.Sprint("uid-", i)
		began := time.Now()
		p, err := r.StartPod(ctx, container.Sandbox{UID: uid})
		if err != nil {
			b.Fatal(err)
		}
		lap(&pod, began)
		began = time.Now()
		status, err := r.Start(ctx, container.Container{Pod: uid, Name: "main", Args: []string{"sleep", "1000"}})
		if err != nil {
			b.Fatal(err)
		}
		lap(&start, began)
		began = time.Now()
		if code, err := r.Exec(ctx, container.ExecOptions{Pod: uid, Container: "main", Args: []string{"true"}}, container.Streams{Stdout: os.Stdout}); err != nil || code != 0 {
			b.Fatal(code, err)
		}
		lap(&exec, began)
		rss, pss = rss+kilobytes(b, p.PID, "Rss:"), pss+kilobytes(b, p.PID, "Pss:")
		process, err := os.FindProcess(status.PID)
		if err != nil {
			b.Fatal(err)
		}
		began = time.Now()
		if err := process.Kill(); err != nil {
			b.Fatal(err)
		}
		<-r.Events()
		lap(&exit, began)
		began = time.Now()
		if err := r.RemovePod(ctx, uid); err != nil {
			b.Fatal(err)
		}
		lap(&remove, began)
	}
	for name, total := range map[string]time.Duration{"pod": pod, "start": start, "exec": exec, "exit": exit, "remove": remove} {
		b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "ms/"+name)
	}
	b.ReportMetric(float64(idleKilobytes(b, r, "Anonymous:")), "kB-anon/idle")
	b.ReportMetric(float64(idleKilobytes(b, r, "Rss:")), "kB-rss/idle")
	b.ReportMetric(float64(rss)/float64(b.N), "kB-rss/shim")
	b.ReportMetric(float64(pss)/float64(b.N), "kB-pss/shim")
}

// idleKilobytes looks at a pod with one container that nobody has asked anything for a while.
func idleKilobytes(b *testing.B, r *process.Runtime, field string) int {
	ctx := context.Background()
	p, err := r.StartPod(ctx, container.Sandbox{UID: "idle"})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := r.Start(ctx, container.Container{Pod: "idle", Name: "main", Args: []string{"sleep", "1000"}}); err != nil {
		b.Fatal(err)
	}
	<-time.After(5 * time.Second)
	n := kilobytes(b, p.PID, field)
	if err := r.RemovePod(ctx, "idle"); err != nil {
		b.Fatal(err)
	}
	return n
}

func kilobytes(b *testing.B, pid int, field string) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			var n int
			if _, err := fmt.Sscan(rest, &n); err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatal("no " + field)
	return 0
}
