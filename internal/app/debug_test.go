package app

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/healthcheck"
	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/sandbox"
)

// stubborn is a Proxier that takes one Snapshot and then no more.
type stubborn struct{ took bool }

func (s *stubborn) Sync(context.Context, *model.Snapshot) error {
	if s.took {
		return errors.New("the kernel said no")
	}
	s.took = true
	return nil
}
func (*stubborn) Verify(context.Context) (bool, error) { return false, nil }
func (*stubborn) Close() error                         { return nil }
func (*stubborn) Remove(context.Context) error         { return nil }

// planeOf is a plane without a kernel, which has the first of two Snapshots in force.
func planeOf(t *testing.T) *plane {
	t.Helper()
	p := &plane{o: planeOptions{log: slog.New(slog.DiscardHandler)}, name: "nftables", health: &healthcheck.Proxy{}}
	p.runner = dataplane.NewRunner(dataplane.RunnerOptions{Proxiers: []dataplane.Proxier{&stubborn{}}, Logger: p.o.log, Synced: func(was, now *model.Snapshot) {
		p.health.Applied(was, now)
		p.note(now)
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { _ = p.runner.Run(ctx) })
	t.Cleanup(func() { cancel(); work.Wait() })
	var in model.Input
	var s *model.Snapshot
	for _, name := range []string{"one", "two"} {
		in = in.WithService(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.test"},
		})
		s = model.Build(in, s)
		p.want(s)
		p.health.Expect(s)
		p.runner.Set(s)
		if name == "one" {
			if err := p.inForce(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	return p
}

func TestDebug(t *testing.T) {
	// A folder whose path is longer than the address of a socket may be.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p := planeOf(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	l, err := listenUnix(dir, debugSocket)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close() // what a killed agent leaves
	go func() { ended <- serveDebug(ctx, dir, debugHandler(p, debugNames{}), p.o.log) }()
	ask := func(what string) (string, error) {
		var out strings.Builder
		err := Debug(t.Context(), DebugOptions{DataDir: dir, What: what}, &out)
		return out.String(), err
	}
	deadline := time.Now().Add(10 * time.Second)
	text, err := ask("snapshot")
	for err != nil && time.Now().Before(deadline) {
		text, err = ask("snapshot")
	}
	if err != nil || text != model.Text(p.wanted) || !strings.Contains(text, "default/two") {
		t.Errorf("snapshot: %v\n%s", err, text)
	}
	if text, err := ask("snapshot?applied"); err != nil || !strings.Contains(text, "default/one") || strings.Contains(text, "default/two") {
		t.Errorf("applied: %v\n%s", err, text)
	}
	if text, err := ask("status"); err != nil || !strings.Contains(text, `"dataPlane": "nftables"`) || !strings.Contains(text, `"services": 1`) {
		t.Errorf("status: %v\n%s", err, text)
	}
	if info, err := os.Stat(filepath.Join(dir, debugSocket)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", info, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := ask("status"); err == nil || !strings.Contains(err.Error(), "no agent runs here") {
		t.Errorf("after the end: %v", err)
	}
}

func TestDebugFindsTheAgent(t *testing.T) {
	dir := t.TempDir()
	touch := func(path string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	finds := func(node, want string) {
		t.Helper()
		got, err := agentFolder(dir, node)
		if err != nil {
			got = err.Error()
		}
		if got = strings.ReplaceAll(got, dir, "DIR"); got != want {
			t.Errorf("node %q: %s, want %s", node, got, want)
		}
	}
	finds("", "data folder DIR: no agent runs here: start one with endpointd node or endpointd up, or name its folder with --data-dir")
	touch("nodes/node-1/debug.sock")
	finds("", "DIR/nodes/node-1")
	touch("nodes/node-2/debug.sock")
	finds("", "data folder DIR has several nodes: choose one with --node: node-1, node-2")
	finds("node-2", sandbox.NodeDir("DIR", "node-2"))
	finds("node-3", `data folder DIR: there is no node "node-3": use one of node-1, node-2`)
	touch("node/debug.sock")
	finds("", "DIR/node")
	touch("debug.sock")
	finds("", "DIR")
}

func TestMetrics(t *testing.T) {
	p := planeOf(t)
	answer := httptest.NewRecorder()
	metricsHandler(p)(answer, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	for _, want := range []string{
		"endpointd_dataplane_wanted_revision 2\n", "endpointd_dataplane_applied_revision 1\n", "endpointd_dataplane_services 1\n",
		"# TYPE endpointd_dataplane_sync_seconds summary\n", "endpointd_dataplane_sync_seconds_count 1\n",
	} {
		if !strings.Contains(answer.Body.String(), want) {
			t.Errorf("no %q in\n%s", want, answer.Body)
		}
	}
}

// The port of health checks may be another proxy's: the agent goes on.
func TestHealthPortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close() //nolint:errcheck // a test
	var said strings.Builder
	p := &plane{o: planeOptions{listen: taken.Addr().String(), log: slog.New(slog.NewTextHandler(&said, nil))}, health: &healthcheck.Proxy{}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- p.serveHealth(ctx) }()
	select {
	case err := <-ended:
		t.Fatalf("ended: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	if err := <-ended; err != nil || !strings.Contains(said.String(), "--healthz-bind-address") {
		t.Errorf("%v, %s", err, &said)
	}
}

func TestUnsupportedNamesTheKernel(t *testing.T) {
	err := onThisKernel(&dataplane.UnsupportedError{Feature: "BPF programs at cgroups", MinKernel: "5.11", Why: errors.New("operation not permitted")})
	release, readErr := os.ReadFile("/proc/sys/kernel/osrelease")
	if readErr != nil {
		t.Fatal(readErr)
	}
	want := "BPF programs at cgroups not supported (Linux 5.11 and later have it): operation not permitted (this is Linux " + strings.TrimSpace(string(release)) + ")"
	if err.Error() != want || !errors.Is(err, dataplane.ErrNotSupported) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}
