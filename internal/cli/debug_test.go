package cli

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestDebugQueriesErrors(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		args string
		code int
		want string
	}{
		{"", 1, "data folder DIR: no agent runs here: start one with endpointd node or endpointd up, or name its folder with --data-dir"},
		{"--client 10.244.1.7,fd00::/64 --name cluster.local. --rate 5 --for 1s", 1, "data folder DIR: no agent runs here"},
		{"--name a..b", 2, `--name: "a..b" is no domain name, like default.svc.cluster.local: see endpointd debug queries --help`},
		{"--client nobody", 2, `--client: "nobody" is not an address range`},
		{"--client 10.244.1.7/24", 2, "--client: 10.244.1.7/24 is an address within its range: did you mean 10.244.1.0/24?"},
		{"--rate 0", 2, "--rate: 0 lines a second are none"},
		{"--for -1s", 2, "--for: must not be negative"},
		{"web", 2, `unknown command "web"`},
	} {
		var errOut bytes.Buffer
		code := Main(append([]string{"debug", "queries", "--data-dir", dir}, strings.Fields(test.args)...), IO{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &errOut})
		if got := strings.ReplaceAll(errOut.String(), dir, "DIR"); code != test.code || !strings.HasPrefix(got, "endpointd: "+test.want) || strings.Count(got, "\n") != 1 {
			t.Errorf("%s: exit code %d, want %d\ngot  %swant %s", test.args, code, test.code, got, test.want)
		}
	}
}

func TestLogFlags(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"", "<nil>"},
		{"--log-queries", "&{. [] 0}"},
		{"--log-queries=default.svc.cluster.local", "&{default.svc.cluster.local [] 0}"},
		{"--log-clients 10.244.1.7,fd00::7,10.0.0.0/8", "&{ [10.244.1.7/32 fd00::7/128 10.0.0.0/8] 0}"},
		{"--log-queries --log-clients 10.244.1.7", "&{. [10.244.1.7/32] 0}"},
		{"--log-queries=a..b", `--log-queries: "a..b" is no domain name, like default.svc.cluster.local`},
		{"--log-clients 10.244.1.7/24", "--log-clients: 10.244.1.7/24 is an address within its range: did you mean 10.244.1.0/24?"},
		{"--log-clients fe80::1%eth0", `--log-clients: "fe80::1%eth0" is not an address range, like 10.244.1.0/24 or fd00:244:0:1::/64`},
	} {
		o, err := parseNode(t, append([]string{"--kubeconfig", "f"}, strings.Fields(test.args)...)...)
		got := fmt.Sprint(o.Names.Log)
		if err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s: %s, want %s", test.args, got, test.want)
		}
	}
}
