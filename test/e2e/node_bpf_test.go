package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/testkit"
)

// TestNodeWithoutBPF: in a user namespace the kernel refuses BPF. Who asks for nothing gets nftables, and a line that says why; who asks for eBPF gets one
// line and no agent.
func TestNodeWithoutBPF(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	check(t, err)
	reason := "eBPF in a user namespace, as of users other than root, not supported (this is Linux " + strings.TrimSpace(string(release)) + ")"
	t.Run("ebpf", func(t *testing.T) { refusedWithoutBPF(t, reason) })
	t.Run("auto", func(t *testing.T) { leadsWithoutBPF(t, reason) })
}

func refusedWithoutBPF(t *testing.T, reason string) {
	dir := t.TempDir()
	config := filepath.Join(dir, "kubeconfig") // of an API that is not there: this is told before anybody is asked
	check(t, os.WriteFile(config, []byte(`{"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {"token": "t"}}],
		"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}]}`), 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, testkit.Binary(t), "node", "--proxy-only", "--data-plane", "ebpf", "--kubeconfig", config, "--name", "n",
		"--node-ip", "192.0.2.1", "--data-dir", filepath.Join(dir, "node"))
	cmd.SysProcAttr = testkit.AsRootOf(syscall.CLONE_NEWNET | syscall.CLONE_NEWNS)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() <= 0 {
		t.Fatalf("%v\n%s", err, &out)
	}
	if got, want := oneLine(t, out.String()), "endpointd: --data-plane ebpf: "+reason+"\n"; got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

func leadsWithoutBPF(t *testing.T, reason string) {
	options := testkit.UpOptions{Nodes: 1, DataDir: filepath.Join(publicDir(t), "data")}
	if os.Getuid() == 0 {
		const nobody = 65534
		options.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		check(t, os.Mkdir(options.DataDir, 0o700))
		check(t, os.Chown(options.DataDir, nobody, nobody))
		options.Binary = publicCopy(t, testkit.Binary(t))
	}
	u := testkit.Up(t, options)
	out, err := u.Try("debug", "status", "--data-dir", u.DataDir)
	check(t, err)
	if !strings.Contains(out.Stdout, `"dataPlane": "nftables"`) {
		t.Errorf("status: %s", out.Stdout)
	}
	log, err := os.ReadFile(filepath.Join(u.DataDir, "logs", "node-1.log"))
	check(t, err)
	if want := fmt.Sprintf("data_plane=nftables why=%q", "no eBPF: "+reason); strings.Count(string(log), "eBPF") != 2 || !strings.Contains(string(log), want) {
		t.Errorf("want one line with %s in\n%s", want, log)
	}
	if text := u.Exec("node-1", u.Command().Path, "kubectl", "--server", "https://10.96.0.1", "get", "--raw", "/readyz"); text != "ok" {
		t.Errorf("at the ClusterIP: %q", text)
	}
}
