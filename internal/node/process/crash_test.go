package process_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/process"
)

func beAgent(dir string) int {
	r, err := process.New(process.Options{Dir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for i := 0; ; i++ {
		uid := fmt.Sprint("crash-", i)
		_, err := r.StartPod(context.Background(), container.Sandbox{UID: uid})
		if err == nil {
			_, err = r.Start(context.Background(), container.Container{Pod: uid, Name: "main", Args: []string{"sleep", "5555"}})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
}

// TestAgentCrash kills an agent in the middle of what it does, at many moments. The next one finds pods that are whole, and can
// remove everything.
func TestAgentCrash(t *testing.T) {
	for i := range 12 {
		dir := filepath.Join(t.TempDir(), "pods")
		agent := exec.Command("/proc/self/exe")
		agent.Args[0] = "agent"
		agent.Env = append(os.Environ(), agentDir+"="+dir)
		agent.Stderr = os.Stderr
		if err := agent.Start(); err != nil {
			t.Fatal(err)
		}
		<-time.After(20*time.Millisecond + time.Duration(i)*7*time.Millisecond)
		if err := agent.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = agent.Wait() // it was killed
		r := newRuntime(t, process.Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
		pods, err := r.Pods(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pods {
			if p.PID == 0 {
				continue // its first process had not been started
			}
			// A living pod works.
			c := container.Container{Pod: p.Sandbox.UID, Name: "after", Args: []string{"sleep", "5555"}}
			if _, err := r.Start(t.Context(), c); err != nil {
				t.Errorf("pod %s: %v", p.Sandbox.UID, err)
			}
		}
		t.Logf("%d pods after %d ms", len(pods), 20+i*7)
		for _, p := range pods {
			if err := r.RemovePod(t.Context(), p.Sandbox.UID); err != nil {
				t.Error(err)
			}
		}
		if left := listing(t, dir); len(left) != 1 {
			t.Errorf("left are %v", left)
		}
		if n := processes(t, "sleep\x005555") + processes(t, "endpointd-"); n != 0 {
			t.Errorf("%d processes are left", n)
		}
	}
}
