package cli

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/endpointd/endpointd/internal/app"
)

func parseNode(t *testing.T, args ...string) (app.NodeOptions, error) {
	t.Helper()
	var f nodeFlags
	cmd := &cobra.Command{}
	f.register(cmd)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	return f.options(IO{Out: io.Discard, Err: io.Discard})
}

func TestNodeFlags(t *testing.T) {
	o, err := parseNode(t, "--kubeconfig", "f")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprintln(o.ProxyOnly, o.DataPlane, o.NodePorts.Localhost(), o.ClusterCIDRs, o.Healthz, o.DrainGrace == 2*time.Second, o.Cgroup == ""),
		"false auto false [] :10256 true true\n"; got != want {
		t.Errorf("defaults: %s, want %s", got, want)
	}
	o, err = parseNode(t, "--proxy-only", "--data-plane", "nftables", "--nodeport-addresses", "primary,localhost", "--cluster-cidr", "10.244.0.0/16,fd00:244::/56", "--healthz-bind-address", "")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprintln(o.ProxyOnly, o.Kubeconfig == "", o.DataPlane, o.NodePorts.Localhost(), o.ClusterCIDRs, o.Healthz == ""),
		"true true nftables true [10.244.0.0/16 fd00:244::/56] true\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	o, err = parseNode(t, "--kubeconfig", "f", "--dns-upstream", "none", "--dns-upstream", "corp.example=10.0.0.53,tls://10.0.0.54#dns.example")
	if err != nil {
		t.Fatal(err)
	}
	if len(o.Names.Transfers) > 0 {
		t.Errorf("the zone is transferred to %v", o.Names.Transfers)
	}
	if others, set := o.Names.Upstreams["."]; !set || len(others) > 0 || len(o.Names.Upstreams["corp.example."]) != 2 {
		t.Errorf("upstreams %v", o.Names.Upstreams)
	}
	o, err = parseNode(t, "--kubeconfig", "f", "--dns-transfer", "10.0.0.53/32,fd00::/64")
	if got := fmt.Sprint(o.Names.Transfers, err); got != "[10.0.0.53/32 fd00::/64] <nil>" {
		t.Errorf("transfers: %s", got)
	}
	for _, test := range []struct{ args, want string }{
		{"--kubeconfig f --dns-upstream none,10.0.0.53", "--dns-upstream: "},
		{"--kubeconfig f --dns-transfer 10.0.0.53/24", "--dns-transfer: 10.0.0.53/24 is an address within its range"},
		{"", "--kubeconfig: must be given"},
		{"--kubeconfig f --data-plane iptables", `--data-plane: "iptables" is none of auto, ebpf, nftables`},
		{"--kubeconfig f --nodeport-addresses eth0", `--nodeport-addresses: "eth0" is neither an address range`},
		{"--kubeconfig f --cluster-cidr 10.244.0.1/16", "--cluster-cidr: 10.244.0.1/16 is an address within its range: did you mean 10.244.0.0/16?"},
		{"--kubeconfig f --healthz-bind-address 10256", `--healthz-bind-address: "10256" is not HOST:PORT or :PORT, like :10256`},
		{"--proxy-only --images f", "--images: is about pods, which a kubelet keeps with --proxy-only: leave out one of the two"},
		{"--proxy-only --manifests f", "--manifests: is about pods"},
		{"--proxy-only --node-labels a=b", "--node-labels: is about pods"},
	} {
		if _, err := parseNode(t, strings.Fields(test.args)...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.args, err, test.want)
		}
	}
}

func TestDebugErrors(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"debug", "snapshot", "--data-dir", dir}, 1, "data folder DIR: no agent runs here: start one with endpointd node or endpointd up, or name its folder with --data-dir"},
		{[]string{"debug", "status", "--data-dir", dir, "--node", "node-1"}, 1, `data folder DIR: there is no node "node-1": no node of endpointd up ran here`},
		{[]string{"debug", "snapshot", "x"}, 2, `unknown command "x" for "endpointd debug snapshot": see endpointd debug snapshot --help`},
		{[]string{"debug", "nothing"}, 2, `unknown command "nothing" for "endpointd debug": see endpointd debug --help`},
		{[]string{"up", "--data-dir", dir, "--data-plane", "ipvs"}, 2, `--data-plane: "ipvs" is none of auto, ebpf, nftables: see endpointd up --help`},
	} {
		var out, errOut bytes.Buffer
		code := Main(test.args, IO{In: strings.NewReader(""), Out: &out, Err: &errOut})
		got := strings.ReplaceAll(errOut.String(), dir, "DIR")
		if want := "endpointd: " + test.want + "\n"; got != want || code != test.code {
			t.Errorf("%v: exit code %d, want %d\ngot  %swant %s", test.args, code, test.code, got, want)
		}
	}
}
