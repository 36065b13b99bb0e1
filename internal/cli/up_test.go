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

func parseUp(t *testing.T, args ...string) (app.UpOptions, error) {
	t.Helper()
	var f upFlags
	cmd := &cobra.Command{}
	f.register(cmd)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	return f.options(IO{Out: io.Discard, Err: io.Discard})
}

func TestUpFlags(t *testing.T) {
	o, err := parseUp(t)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprintln(o.Nodes, o.Listen, o.ServiceCIDRs, o.PodCIDRs, o.NodePorts, o.PublishNodePorts, o.Images == "", o.DataDir == dataDir()),
		"3 127.0.0.1:6443 [10.96.0.0/16] [10.244.0.0/16] 30000-32767 true true true\n"; got != want {
		t.Errorf("defaults: %s, want %s", got, want)
	}
	for _, test := range []struct{ args, want string }{
		{"--listen 0.0.0.0:6443", `--listen: "0.0.0.0:6443" is not on loopback, where everything of ` + "`up` stays"},
		{"--listen :6443", `--listen: ":6443" is not on loopback`},
		{"--listen 6443", `--listen: "6443" is not HOST:PORT`},
		{"--pod-cidr 10.244.0.1/16", `--pod-cidr: `},
		{"--pod-cidr pods", `--pod-cidr: `},
		{"--images /nowhere/images.yaml", "--images: stat /nowhere/images.yaml: no such file"},
		{"--log-level loud", "--log-level"},
	} {
		if _, err := parseUp(t, strings.Fields(test.args)...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.args, err, test.want)
		}
	}
}

func TestStatusTable(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 1, 40, 0, time.UTC)
	process := app.UpProcess{PID: 7, Since: now.Add(-100 * time.Second), Restarts: 2}
	var out bytes.Buffer
	err := showStatus(&out, app.UpStatus{
		Server: app.UpServer{UpProcess: process, URL: "https://127.0.0.1:6443", Problem: "it does not answer"},
		Nodes: []app.UpMember{
			{UpProcess: process, Name: "node-1", Ready: "True", Addresses: []string{"10.200.0.11", "fd00:200::b"}, Pods: 3},
			{Name: "node-2"},
		},
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	const want = `NAME     READY     PID   RESTARTS   AGE     PODS   ADDRESS
server   False     7     2          1m40s   -      https://127.0.0.1:6443
node-1   True      7     2          1m40s   3      10.200.0.11,fd00:200::b
node-2   Unknown   -     0          -       0      -
server: it does not answer
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
}

func TestUpErrors(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"status", "--data-dir", dir}, 1, "data folder DIR: no sandbox runs here: start one with `endpointd up`, or name its folder with --data-dir"},
		{[]string{"status", "-o", "yaml"}, 2, `--output: "yaml" is not json: see endpointd status --help`},
		{[]string{"exec", "--data-dir", dir}, 2, "requires at least 1 arg(s), only received 0: see endpointd exec --help"},
		{[]string{"up", "x"}, 2, `unknown command "x" for "endpointd up": see endpointd up --help`},
		{[]string{"up", "--data-dir", dir, "--nodes", "201"}, 1, "201 nodes: want 0 to 200"},
		{[]string{"up", "--data-dir", dir, "--pod-cidr", "10.96.0.0/12"}, 1,
			"10.96.0.0/12 and 10.96.0.0/16 overlap: choose other ranges with --pod-cidr and --service-cidr (nodes have 10.200.0.0/24 and fd00:200::/64)"},
		{[]string{"down", "--data-dir", dir, "--purge"}, 1, "data folder DIR: not removed, because it does not look like one: stat DIR/admin.kubeconfig: no such file or directory"},
		{[]string{insideCommand}, 1, "this is started by `endpointd up`, in namespaces of its own"},
	} {
		var out, errOut bytes.Buffer
		code := Main(test.args, IO{In: strings.NewReader(""), Out: &out, Err: &errOut})
		got := strings.ReplaceAll(errOut.String(), dir, "DIR")
		if want := "endpointd: " + test.want + "\n"; got != want || code != test.code {
			t.Errorf("%v: exit code %d, want %d\ngot  %swant %s", test.args, code, test.code, got, want)
		}
	}
}

func TestInsideEnv(t *testing.T) {
	got := insideEnv([]string{"PATH=/bin", "SECRET=x", "LC_ALL=C", "KUBECONFIG=/mine", "HTTPS_PROXY=p", "TERM=xterm"}, "/theirs")
	if want := "[PATH=/bin LC_ALL=C TERM=xterm KUBECONFIG=/theirs]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}
