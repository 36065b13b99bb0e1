package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/testkit"
)

// failure runs `endpointd server`, which must end by itself, not with exit code 0, and with one line on standard error. It
// returns that line.
func failure(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, testkit.Binary(t), append([]string{"server"}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() <= 0 {
		t.Fatalf("server %s: %v\n%s%s", strings.Join(args, " "), err, &out, &errOut)
	}
	return oneLine(t, out.String()+errOut.String())
}

// oneLine fails the test unless text is one line that begins with "endpointd: ".
func oneLine(t *testing.T, text string) string {
	t.Helper()
	if !strings.HasPrefix(text, "endpointd: ") || strings.Count(text, "\n") != 1 {
		t.Errorf("got\n%s\nwant one line that begins with endpointd:", text)
	}
	return text
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	check(t, l.Close())
	return l.Addr().String()
}

// TestRefusesToStart: one line that says what is wrong and what to do.
func TestRefusesToStart(t *testing.T) {
	t.Parallel()
	running := testkit.Server(t, testkit.ServerOptions{})
	base := t.TempDir()
	in := func(name string) string { return filepath.Join(base, name) }
	check(t, os.WriteFile(in("file"), nil, 0o600))
	check(t, os.MkdirAll(in("damaged/pki"), 0o700))
	check(t, os.WriteFile(in("damaged/pki/ca.key"), []byte("nonsense"), 0o600))
	check(t, os.MkdirAll(in("broken/etcd/member/snap"), 0o700))
	check(t, os.WriteFile(in("broken/etcd/member/snap/db"), bytes.Repeat([]byte("nonsense"), 10000), 0o600))
	closed := freePort(t)
	listen := []string{"--listen", freePort(t)}
	at := func(dir string, args ...string) []string { return append([]string{"--data-dir", in(dir)}, args...) }
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"unknown flag":         {at("new", "--nothing"), []string{"unknown flag: --nothing", "endpointd server --help"}},
		"wrong value":          {at("new", "--service-cidr", "10.96.0.1/16"), []string{"--service-cidr", "did you mean 10.96.0.0/16?"}},
		"wrong port range":     {at("new", "--node-port-range", "40000-30000"), []string{"--node-port-range", "FIRST-LAST"}},
		"folder in use":        {append(listen, "--data-dir", running.DataDir), []string{running.DataDir, fmt.Sprintf("in use by another endpointd (pid %d)", running.PID), "--data-dir"}},
		"port taken":           {at("new", "--listen", running.Listen), []string{running.Listen, "address already in use", "--listen"}},
		"folder is a file":     {at("file", listen...), []string{in("file"), "not a directory", "--data-dir"}},
		"unwritable folder":    {append(listen, "--data-dir", "/proc/1/endpointd"), []string{"/proc/1/endpointd", "--data-dir"}},
		"etcd not there":       {at("new", "--etcd-servers", "http://"+closed, "--listen", freePort(t)), []string{closed, "connection refused", "--etcd-servers"}},
		"corrupt key":          {at("damaged", listen...), []string{in("damaged/pki/ca.key"), "not an ECDSA P-256 private key", "restore it from a backup"}},
		"corrupt database":     {at("broken", listen...), []string{in("broken/etcd"), "backup"}},
		"half of a etcd's TLS": {at("new", "--etcd-servers", "https://"+closed, "--etcd-certfile", "x"), []string{"--etcd-certfile and --etcd-keyfile"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			line := failure(t, test.args...)
			for _, want := range test.want {
				if !strings.Contains(line, want) {
					t.Errorf("%q is not in %s", want, line)
				}
			}
		})
	}
	if _, err := os.Stat(in("new/etcd")); err == nil {
		t.Error("a refused start made an etcd folder")
	}
}

// Another user's folder, as that other user.
func TestRefusesForeignFolder(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Feature{Name: "root", Probe: func(context.Context) error {
		if os.Geteuid() != 0 {
			return errors.New("only root can act as another user")
		}
		return nil
	}})
	dir, err := os.MkdirTemp("", "e2e") //nolint:usetesting // the other user must get in, and t.TempDir lies in a private folder
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary := filepath.Join(dir, "endpointd") // the tree may be out of reach for that user
	check(t, os.Chmod(dir, 0o755))
	content, err := os.ReadFile(testkit.Binary(t))
	check(t, err)
	check(t, os.WriteFile(binary, content, 0o755))
	check(t, os.MkdirAll(filepath.Join(dir, "data"), 0o700))
	cmd := exec.CommandContext(t.Context(), binary, "server", "--data-dir", filepath.Join(dir, "data"), "--listen", "127.0.0.1:0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("it ran")
	}
	if line := oneLine(t, string(out)); !strings.Contains(line, "permission denied: make it writable for this user (uid 65534)") {
		t.Error(line)
	}
}

// TestStopsCleanly: SIGTERM ends it at once with exit code 0, also while clients watch; the next start has everything.
func TestStopsCleanly(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testkit.ServerOptions{})
	s := c.space(t, c.kubectls[0])
	s.run("create", "configmap", "kept", "--from-literal=a=b")
	for range 3 {
		s.next(s.follow("get", "configmaps", "-w", "--no-headers"), "kept 1")
	}
	for range 50 {
		w, err := c.client.CoreV1().Pods("").Watch(t.Context(), metav1.ListOptions{})
		check(t, err)
		t.Cleanup(w.Stop)
	}
	started := time.Now()
	c.server.Stop() // fails the test unless the exit code is 0
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("it took %v to stop", took)
	}
	for line := range strings.Lines(c.server.Log()) {
		if strings.Contains(line, "goroutine ") || strings.Contains(line, "panic") {
			t.Errorf("said: %s", line)
		}
	}
	private(t, c.server.DataDir)
	c.server.Start()
	s.has(s.run("get", "configmap", "kept", "-o", "jsonpath={.data.a}"), "b")
	if c.server.ReadyAfter > 10*time.Second {
		t.Errorf("ready after %v", c.server.ReadyAfter)
	}
}
