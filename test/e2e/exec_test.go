package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/node/shim/cgroup"
	"github.com/endpointd/endpointd/internal/testkit"
)

// TestExecCgroup: a command on a node is in the node's cgroup as its pods are, so that eBPF leads its connections, in a leaf that goes with it.
func TestExecCgroup(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 2})
	own := u.Exec("node-2", "cat", "/proc/self/cgroup")
	mount, _ := cgroup.Find()
	_, below, ok := strings.Cut(own, "0::")
	leaf := filepath.Join(mount, strings.TrimSpace(below))
	root := filepath.Dir(filepath.Dir(leaf))
	if !ok || !strings.HasPrefix(filepath.Base(root), "endpointd-") {
		if made := cgroupsOfUp(t); len(made) > 0 {
			t.Fatalf("there are cgroups %v, and a command is in %s", made, own)
		}
		t.Skip("no cgroups can be made here: commands run without")
	}
	if filepath.Base(filepath.Dir(leaf)) != "node-2" || !strings.HasPrefix(filepath.Base(leaf), "exec-") {
		t.Errorf("a command on node-2 is in %s", leaf)
	}
	if beside := u.Exec("", "cat", "/proc/self/cgroup"); strings.Contains(beside, filepath.Base(root)) {
		t.Errorf("a command that is on no node is in %s", beside)
	}
	leaves := func() []string {
		found, err := filepath.Glob(filepath.Join(root, "*", "exec-*"))
		check(t, err)
		return found
	}
	if left := leaves(); len(left) > 0 {
		t.Errorf("a command that has ended leaves %v", left)
	}
	execConnects(t, u)

	cmd := u.Command(u.ExecArgs("node-1", "sh", "-c", "sleep 1000; true")...)
	check(t, cmd.Start())
	testkit.Await(t, patience, func() error {
		if found := leaves(); len(found) != 1 || filepath.Base(filepath.Dir(found[0])) != "node-1" {
			return fmt.Errorf("cgroups of commands: %v", found)
		}
		return nil
	})
	check(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	testkit.Await(t, patience, func() error {
		if found := leaves(); len(found) > 0 {
			return fmt.Errorf("a command that was killed leaves %v", found)
		}
		return nil
	})

	u.Exec("node-1", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & true")
	if found := leaves(); len(found) != 1 {
		t.Errorf("what a command left in the background is in %v", found)
	}
	u.Down()
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after down there is %s: %v", root, err)
	}
}

// execConnects: with eBPF the socket of a command leads to the endpoint itself.
func execConnects(t *testing.T, u *testkit.UpProcess) {
	t.Helper()
	status, err := u.Try("debug", "status", "--data-dir", u.DataDir, "--node", "node-2")
	check(t, err)
	bash, err := exec.LookPath("bash")
	if !strings.Contains(status.Stdout, `"ebpf and nftables"`) || err != nil {
		t.Logf("no eBPF, or no bash: %s", status.Stdout)
		return
	}
	client := clusterOf(t, u.Server()).client
	service, err := client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	check(t, err)
	port := service.Spec.Ports[0]
	to := netip.AddrPortFrom(netip.MustParseAddr(service.Spec.ClusterIP), uint16(port.Port))
	hex := func(a netip.AddrPort) string { // as proc_net_tcp(5) has it on a little-endian machine
		b := a.Addr().As4()
		return fmt.Sprintf("%02X%02X%02X%02X:%04X", b[3], b[2], b[1], b[0], a.Port())
	}
	script := fmt.Sprintf("exec 3<>/dev/tcp/%s/%d && cat /proc/self/net/tcp", to.Addr(), to.Port())
	if text := u.Exec("node-2", bash, "-c", script); strings.Contains(text, hex(to)) {
		t.Errorf("a socket leads to the ClusterIP %s (%s), so nftables translated it:\n%s", to, hex(to), text)
	}
}
