package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/testkit"
)

// smallDisk mounts a tmpfs of that size where only this test sees it, and returns the way there: the folder lies in the mount
// namespace of a child that does nothing but hold it.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	testkit.Need(t, testkit.Mount())
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "sh", "-c", "mount -t tmpfs -o mode=700,size="+size+" small /mnt && echo mounted && exec cat")
	cmd.SysProcAttr = testkit.AsRootOf(syscall.CLONE_NEWNS)
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Errorf("holder of the disk: %v", err)
		}
	})
	if _, err := io.ReadFull(out, make([]byte, len("mounted\n"))); err != nil {
		t.Fatalf("mount a tmpfs in a namespace: %v", err)
	}
	return fmt.Sprintf("/proc/%d/root/mnt", cmd.Process.Pid)
}

// TestFullDisk: when there is no more space the server ends with one line, and every write that it acknowledged is there when
// there is space again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t, "260m")
	c := newCluster(t, testkit.ServerOptions{DataDir: disk + "/data"})
	maps := c.client.CoreV1().ConfigMaps("default")
	acknowledged := map[string]string{}
	value := func(i int) string { return strings.Repeat(fmt.Sprintf("%08d", i), 16<<10) } // 128 KiB
	filler, err := os.Create(disk + "/filler")
	check(t, err)
	var fill sync.WaitGroup
	defer fill.Wait()
	ended := false
	for i := 0; !ended; i++ {
		if i == 20 { // now somebody else takes the rest of the disk, while we write
			fill.Go(func() {
				_, err := io.Copy(filler, io.LimitReader(zeros{}, 1<<30))
				if !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("filling the disk: %v, want no space left", err)
				}
			})
		}
		name := fmt.Sprint("c-", i)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"v": value(i)}}, metav1.CreateOptions{})
		cancel()
		if err == nil {
			acknowledged[name] = value(i)
		}
		select {
		case <-c.server.Done():
			ended = true
		default:
			if i > 2000 {
				t.Fatal("it goes on without space")
			}
		}
	}
	t.Logf("%d writes were acknowledged", len(acknowledged))
	fill.Wait()
	check(t, filler.Close())
	// Only the last line is about the end; before it are those of the start.
	log := c.server.Log()
	last := log[strings.LastIndex(strings.TrimSuffix(log, "\n"), "\n")+1:]
	line := oneLine(t, last)
	for _, want := range []string{disk + "/data", "no space left on device", "free some space"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is not in %s", want, line)
		}
	}
	for line := range strings.Lines(strings.TrimSuffix(log, last)) {
		if !strings.Contains(line, "level=INFO") && !strings.HasPrefix(line, "endpointd is ready:") {
			t.Errorf("before the end: %s", line)
		}
	}
	if err := c.server.Ended(); err == nil {
		t.Error("exit code 0")
	}

	// A start without space says the same.
	line = failure(t, "--data-dir", disk+"/data", "--listen", c.server.Listen)
	if !strings.Contains(line, "free some space") {
		t.Errorf("start on the full disk: %s", line)
	}
	check(t, os.Remove(filler.Name()))
	c.server.Start()
	for name, want := range acknowledged {
		got, err := maps.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || got.Data["v"] != want {
			t.Errorf("acknowledged %s: %v", name, err)
		}
	}
	_, err = maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "after"}}, metav1.CreateOptions{})
	check(t, err)
	c.server.Stop()
}

// zeros is a file without an end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
