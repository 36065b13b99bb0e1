package e2e

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/testkit"
)

// TestRealAddress: where the server listens on an address that others can reach, the kubernetes Service leads there. The
// network is one that the test made, without a way out.
func TestRealAddress(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	testkit.Need(t, testkit.Program("ip"))
	for _, tc := range []struct{ name, listen string }{
		{"a single address", "192.0.2.10:6443"},
		{"all addresses: the one of the default route", "0.0.0.0:6443"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			out := isolated(t, `
				ip link add v0 type veth peer name v1
				ip link set lo up; ip link set v0 up; ip link set v1 up
				ip addr add 192.0.2.10/24 dev v0
				ip route add default via 192.0.2.1 dev v0
				"$BIN" server --data-dir "$DIR" --listen `+tc.listen+` >"$DIR.out" 2>"$DIR.log" & pid=$!
				until grep -q 'endpointd is ready' "$DIR.out"; do kill -0 $pid || { cat "$DIR.log"; exit 1; }; sleep 0.02; done
				k="$BIN kubectl --data-dir $DIR"
				for o in endpoints endpointslices; do $k wait $o/kubernetes --for=create --timeout=20s >&2; done
				$k wait endpoints/kubernetes --for=jsonpath='{.subsets[0].ports[0].port}'=6443 --timeout=20s >&2
				$k wait endpointslices/kubernetes --for=jsonpath='{.ports[0].port}'=6443 --timeout=20s >&2
				$k get endpoints kubernetes -o jsonpath='{.subsets[*].addresses[*].ip}:{.subsets[*].ports[*].port}{"\n"}'
				$k get endpointslices kubernetes -o jsonpath='{.endpoints[*].addresses[*]}:{.ports[*].port}{"\n"}'
				kill $pid; wait $pid`)
			if want := strings.Repeat("192.0.2.10:6443\n", 2); out != want {
				t.Errorf("Endpoints and slice of the kubernetes Service say\n%swant\n%s", out, want)
			}
		})
	}
}

// isolated runs a script as root of a user namespace of its own, with a network of its own, and gives what it printed.
func isolated(t *testing.T, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir() + "/data"
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", text)
	cmd.Env = append(os.Environ(), "BIN="+testkit.Binary(t), "DIR="+dir, "HOME="+t.TempDir(), "KUBECONFIG=")
	cmd.SysProcAttr = testkit.AsRootOf(syscall.CLONE_NEWNET)
	cmd.SysProcAttr.Setpgid = true
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // the server, too
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		log, _ := os.ReadFile(dir + ".log")
		t.Fatalf("%v\n%s%s\n%s", err, out, stderr.String(), log)
	}
	return string(out)
}
