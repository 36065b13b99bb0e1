package cli

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/endpointd/endpointd/internal/app"
)

// parse returns the options that the arguments of `endpointd server` mean.
func parse(t *testing.T, args ...string) (app.ServerOptions, error) {
	t.Helper()
	var f serverFlags
	cmd := &cobra.Command{}
	f.register(cmd)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	return f.options(IO{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}})
}

func TestServerFlags(t *testing.T) {
	tests := map[string]struct {
		args []string
		show func(app.ServerOptions) any
		want string
	}{
		"defaults": {nil, func(o app.ServerOptions) any {
			return []any{o.Listen, o.ServiceCIDRs, o.PodCIDRs, o.NodePorts, o.Etcd, o.Disable, o.DataDir == dataDir()}
		}, "[127.0.0.1:6443 [10.96.0.0/16] [10.244.0.0/16] 30000-32767 {[]   } [] true]"},
		"folder":      {[]string{"--data-dir", "/x"}, func(o app.ServerOptions) any { return o.DataDir }, "/x"},
		"all":         {[]string{"--listen", ":0"}, func(o app.ServerOptions) any { return o.Listen }, ":0"},
		"IPv6":        {[]string{"--listen", "[::1]:6443"}, func(o app.ServerOptions) any { return o.Listen }, "[::1]:6443"},
		"localhost":   {[]string{"--listen", "localhost:6443"}, func(o app.ServerOptions) any { return o.Listen }, "localhost:6443"},
		"dual stack":  {[]string{"--service-cidr", "10.0.0.0/24,fd00::/112"}, func(o app.ServerOptions) any { return o.ServiceCIDRs }, "[10.0.0.0/24 fd00::/112]"},
		"IPv6 first":  {[]string{"--service-cidr=fd00::/112", "--service-cidr=10.0.0.0/24"}, func(o app.ServerOptions) any { return o.ServiceCIDRs }, "[fd00::/112 10.0.0.0/24]"},
		"pods":        {[]string{"--pod-cidr", "fd00:244::/56,10.1.0.0/24"}, func(o app.ServerOptions) any { return o.PodCIDRs }, "[fd00:244::/56 10.1.0.0/24]"},
		"no pods":     {[]string{"--pod-cidr="}, func(o app.ServerOptions) any { return o.PodCIDRs }, "[]"},
		"ports":       {[]string{"--node-port-range", "1000-1999"}, func(o app.ServerOptions) any { return o.NodePorts == utilnet.PortRange{Base: 1000, Size: 1000} }, "true"},
		"etcd":        {[]string{"--etcd-servers", "https://a:1,https://b:2", "--etcd-cafile=ca", "--etcd-certfile=c", "--etcd-keyfile=k"}, func(o app.ServerOptions) any { return o.Etcd }, "{[https://a:1 https://b:2] ca c k}"},
		"unix etcd":   {[]string{"--etcd-servers", "unix:///run/etcd.sock"}, func(o app.ServerOptions) any { return o.Etcd.Servers }, "[unix:///run/etcd.sock]"},
		"disable":     {[]string{"--disable-controllers", "endpoints,workload"}, func(o app.ServerOptions) any { return o.Disable }, "[endpoints workload]"},
		"debug level": {[]string{"--log-level", "debug"}, func(o app.ServerOptions) any { return o.Logger.Enabled(t.Context(), -4) }, "true"},
		"error level": {[]string{"--log-level", "error"}, func(o app.ServerOptions) any { return o.Logger.Enabled(t.Context(), 4) }, "false"},
		"json":        {[]string{"--log-format", "json"}, func(o app.ServerOptions) any { return reflect.TypeOf(o.Logger.Handler()) }, "*slog.JSONHandler"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			o, err := parse(t, test.args...)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(test.show(o)); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// Every error is one line on standard error, and nothing on standard output.
func TestErrorLines(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close() //nolint:errcheck // a test
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	server := func(args ...string) []string { return append([]string{"server", "--data-dir", dir + "/data"}, args...) }
	const more = ": see endpointd server --help"
	tests := []struct {
		args []string
		code int
		want string
	}{
		{[]string{"sever"}, 2, `unknown command "sever" for "endpointd": see endpointd --help`},
		{[]string{"--nope"}, 2, "unknown flag: --nope: see endpointd --help"},
		{[]string{"version", "x"}, 2, `unknown command "x" for "endpointd version": see endpointd version --help`},
		{[]string{"completion"}, 2, "want one shell: bash, zsh, fish, powershell: see endpointd completion --help"},
		{[]string{"completion", "csh"}, 2, `no completion for shell "csh": use bash, zsh, fish, powershell: see endpointd completion --help`},
		{server("--nope"), 2, "unknown flag: --nope" + more},
		{server("extra"), 2, `unknown command "extra" for "endpointd server"` + more},
		{server("--data-dir"), 2, "flag needs an argument: --data-dir" + more},
		{server("--data-dir", ""), 2, "--data-dir: must not be empty" + more},
		{server("--listen", "6443"), 2, `--listen: "6443" is not HOST:PORT, like 127.0.0.1:6443 or [::1]:6443` + more},
		{server("--listen", "127.0.0.1:https"), 2, `--listen: "127.0.0.1:https": the port must be a number from 0 to 65535` + more},
		{server("--listen", "127.0.0.1:65536"), 2, `--listen: "127.0.0.1:65536": the port must be a number from 0 to 65535` + more},
		{server("--listen", "example.org:1"), 2, `--listen: "example.org:1": example.org is not an IP address` + more},
		{server("--service-cidr", "10.96.0.0"), 2, `--service-cidr: "10.96.0.0" is not an address range, like 10.96.0.0/16 or fd00:96::/112` + more},
		{server("--service-cidr", "10.96.0.1/16"), 2, "--service-cidr: 10.96.0.1/16 is an address within its range: did you mean 10.96.0.0/16?" + more},
		{server("--service-cidr", "10.96.0.0/30"), 2, "--service-cidr: 10.96.0.0/30 has fewer than 8 addresses: choose a larger range" + more},
		{server("--service-cidr", "fd00::/48"), 2, "--service-cidr: fd00::/48 is too large: choose /64 or smaller" + more},
		{server("--service-cidr", "10.1.0.0/16,10.2.0.0/16"), 2, "--service-cidr: 10.1.0.0/16 and 10.2.0.0/16 are of one address family: dual stack wants one of each" + more},
		{server("--service-cidr", "10.1.0.0/16,fd00::/112,10.2.0.0/16"), 2, "--service-cidr: want one range, or one of each address family, not 3" + more},
		{server("--pod-cidr", "10.244.0.0"), 2, `--pod-cidr: "10.244.0.0" is not an address range, like 10.244.0.0/16 or fd00:244::/56` + more},
		{server("--pod-cidr", "10.244.1.0/16"), 2, "--pod-cidr: 10.244.1.0/16 is an address within its range: did you mean 10.244.0.0/16?" + more},
		{server("--pod-cidr", "10.244.0.0/25"), 2, "--pod-cidr: 10.244.0.0/25 is too small: a node gets a /24 of it" + more},
		{server("--pod-cidr", "fd00::/65"), 2, "--pod-cidr: fd00::/65 is too small: a node gets a /64 of it" + more},
		{server("--pod-cidr", "10.0.0.0/8"), 2, "--pod-cidr: 10.0.0.0/8 overlaps 10.96.0.0/16 of --service-cidr: choose another range for one of them" + more},
		{server("--pod-cidr", "10.1.0.0/16,10.2.0.0/16"), 2, "--pod-cidr: 10.1.0.0/16 and 10.2.0.0/16 are of one address family: dual stack wants one of each" + more},
		{server("--node-port-range", "40000-30000"), 2, `--node-port-range: "40000-30000" is not FIRST-LAST within 1-65535, like 30000-32767` + more},
		{server("--node-port-range", "0-100"), 2, `--node-port-range: "0-100" is not FIRST-LAST within 1-65535, like 30000-32767` + more},
		{server("--node-port-range", "60000-70000"), 2, `--node-port-range: "60000-70000" is not FIRST-LAST within 1-65535, like 30000-32767` + more},
		{server("--etcd-servers", "10.0.0.1:2379"), 2, `--etcd-servers: "10.0.0.1:2379" is not a URL, like https://10.0.0.1:2379` + more},
		{server("--etcd-servers", "https://etcd"), 2, `--etcd-servers: "https://etcd" is not http(s)://HOST:PORT or unix:///PATH` + more},
		{server("--etcd-servers", "ftp://etcd:1"), 2, `--etcd-servers: "ftp://etcd:1" is not http(s)://HOST:PORT or unix:///PATH` + more},
		{server("--etcd-cafile", "ca.crt"), 2, "--etcd-cafile: has no use without --etcd-servers" + more},
		{server("--etcd-servers", "https://e:1", "--etcd-certfile", "c"), 2, "--etcd-certfile and --etcd-keyfile: give both or none" + more},
		{server("--listen", "127.0.0.1:0", "--etcd-servers", "https://127.0.0.1:1", "--etcd-cafile", dir+"/ca"), 1, "--etcd-cafile: open DIR/ca: no such file or directory"},
		{server("--disable-controllers", "garbage"), 2, `--disable-controllers: no controller "garbage": use endpoints, mirror, workload, binder, nodes, dns` + more},
		{server("--log-level", "loud"), 2, `--log-level: "loud" is not debug, info, warn or error` + more},
		{server("--log-format", "xml"), 2, `--log-format: "xml" is not text or json` + more},
		{server("--listen", taken.Addr().String()), 1, "listen tcp TAKEN: bind: address already in use: another program has this port: stop it, or choose another one with --listen"},
		{[]string{"server", "--data-dir", file}, 1, "data folder DIR/file: mkdir DIR/file: not a directory: choose another one with --data-dir"},
		{server("--etcd-servers", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"), 1,
			"etcd http://127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused: is etcd running there? start it, or correct --etcd-servers"},
		{server("--etcd-servers", "http://127.0.0.1:1,http://127.0.0.1:2", "--listen", "127.0.0.1:0"), 1,
			"etcd http://127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused: is etcd running there? start it, or correct --etcd-servers; " +
				"etcd http://127.0.0.1:2: dial tcp 127.0.0.1:2: connect: connection refused: is etcd running there? start it, or correct --etcd-servers"},
		{[]string{"kubeconfig"}, 2, "--node: name the node: see endpointd kubeconfig --help"},
		{[]string{"kubeconfig", "--node", "n", "--address", "vm"}, 2, `--address: "vm" is not an IP address: see endpointd kubeconfig --help`},
		{[]string{"kubeconfig", "--node", "n", "--server", "http://x:1"}, 2, `--server: "http://x:1" is not https://HOST:PORT: see endpointd kubeconfig --help`},
		{[]string{"kubeconfig", "--node", "n", "--data-dir", dir + "/none"}, 1, "there is no server in DIR/none: start `endpointd server` with this --data-dir first"},
		{[]string{"kubectl", "--data-dir"}, 2, "flag needs an argument: --data-dir: see endpointd kubectl --help"},
		{[]string{"kubectl", "get", "pods", "--data-dir=" + dir + "/none"}, 1,
			"stat DIR/none/admin.kubeconfig: no such file or directory: start a server with --data-dir DIR/none first"},
	}
	for _, test := range tests {
		t.Run(strings.ReplaceAll(strings.Join(test.args, " "), dir, "DIR"), func(t *testing.T) {
			var out, errOut bytes.Buffer
			code := Main(test.args, IO{In: strings.NewReader(""), Out: &out, Err: &errOut})
			got := strings.NewReplacer(dir, "DIR", taken.Addr().String(), "TAKEN").Replace(errOut.String())
			if want := "endpointd: " + test.want + "\n"; got != want || code != test.code {
				t.Errorf("exit code %d, want %d\ngot  %swant %s", code, test.code, got, want)
			}
			if out.Len() > 0 {
				t.Errorf("on standard output: %s", &out)
			}
		})
	}
}

func TestDefaultDataDir(t *testing.T) {
	env := func(pairs ...string) func(string) string {
		return func(name string) string {
			if i := slices.Index(pairs, name); i >= 0 {
				return pairs[i+1]
			}
			return ""
		}
	}
	for name, test := range map[string]struct {
		uid  int
		env  func(string) string
		want string
	}{
		"root":           {0, env("HOME", "/root", "XDG_STATE_HOME", "/s"), "/var/lib/endpointd"},
		"user":           {1000, env("HOME", "/home/u"), "/home/u/.local/state/endpointd"},
		"XDG":            {1000, env("HOME", "/home/u", "XDG_STATE_HOME", "/s"), "/s/endpointd"},
		"relative XDG":   {1000, env("HOME", "/home/u", "XDG_STATE_HOME", "s"), "/home/u/.local/state/endpointd"},
		"container user": {65534, env("HOME", "/"), "/.local/state/endpointd"},
	} {
		if got := defaultDataDir(test.uid, test.env); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}

func TestWhichKubeconfig(t *testing.T) {
	dir, defaultDir, empty := t.TempDir(), t.TempDir(), t.TempDir()
	for _, d := range []string{dir, defaultDir} {
		if err := os.WriteFile(app.Kubeconfig(d), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ours, standard := app.Kubeconfig(dir), app.Kubeconfig(defaultDir)
	tests := map[string]struct {
		args, env, defaultDir string
		wantArgs, wantEnv     string
	}{
		"nothing given":             {"get pods", "", defaultDir, "get pods", standard},
		"no server yet":             {"get pods", "", empty, "get pods", ""},
		"environment":               {"get pods", "/mine", defaultDir, "get pods", "/mine"},
		"data folder":               {"get --data-dir DIR pods", "", defaultDir, "get pods", ours},
		"data folder with =":        {"--data-dir=DIR get pods", "", defaultDir, "get pods", ours},
		"folder before environment": {"get pods --data-dir DIR", "/mine", defaultDir, "get pods", ours},
		"file before everything":    {"get --kubeconfig /x --data-dir DIR pods", "/mine", defaultDir, "get --kubeconfig /x pods", "/mine"},
		"file with =":               {"get --kubeconfig=/x", "", defaultDir, "get --kubeconfig=/x", ""},
		"after --":                  {"exec p -- cmd --data-dir DIR --kubeconfig x", "", defaultDir, "exec p -- cmd --data-dir DIR --kubeconfig x", standard},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", test.env)
			named := strings.NewReplacer("DIR", dir)
			got, err := useKubeconfig(strings.Fields(named.Replace(test.args)), test.defaultDir)
			if err != nil {
				t.Fatal(err)
			}
			if want := named.Replace(test.wantArgs); strings.Join(got, " ") != want {
				t.Errorf("arguments %v, want %s", got, want)
			}
			if got := os.Getenv("KUBECONFIG"); got != test.wantEnv {
				t.Errorf("KUBECONFIG=%s, want %s", got, test.wantEnv)
			}
		})
	}
}

func TestOutput(t *testing.T) {
	t.Setenv("KUBECONFIG", "/dev/null")
	for _, test := range []struct {
		args []string
		want string // in the output
	}{
		{[]string{"version"}, "endpointd v0.0.0-dev (Kubernetes v1.37"},
		{nil, "Available Commands:"},
		{[]string{"server", "--help"}, "endpointd is ready: https://127.0.0.1:6443, kubeconfig DIR/admin.kubeconfig"},
		{[]string{"help", "kubectl"}, "~/.kube/config"},
		{[]string{"kubectl", "version", "--client", "-o", "json"}, `"clientVersion"`},
		{[]string{"kubectl", "create", "configmap", "c", "--from-literal=a=b", "--dry-run=client", "-o", "yaml"}, "kind: ConfigMap"},
		{[]string{"kubectl", "completion", "bash"}, "__start_kubectl"},
		{[]string{"completion", "bash"}, "__start_endpointd"},
		{[]string{"completion", "zsh"}, "#compdef endpointd"},
		{[]string{"completion", "fish"}, "complete -c endpointd"},
		{[]string{"completion", "powershell"}, "Register-ArgumentCompleter"},
		{[]string{cobra.ShellCompRequestCmd, "ser"}, "server\t"},
		{[]string{cobra.ShellCompRequestCmd, "kubectl", "api-"}, "api-resources\t"},
		{[]string{cobra.ShellCompRequestCmd, "kubectl", "--data-dir=/nowhere", "api-"}, ":1"},
		{[]string{cobra.ShellCompRequestCmd, "kubectl", "rollout", "hist"}, "history\t"},
		{[]string{cobra.ShellCompRequestCmd, "kubectl", "get", "--outp"}, "--output"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			var out, errOut bytes.Buffer
			if code := Main(test.args, IO{In: strings.NewReader(""), Out: &out, Err: &errOut}); code != 0 {
				t.Fatalf("exit code %d\n%s", code, &errOut)
			}
			if !strings.Contains(out.String(), test.want) {
				t.Errorf("%q is not in\n%s", test.want, &out)
			}
		})
	}
}

// A kubectl-NAME in PATH is a plugin. It replaces the process, so the handler is looked at in a child.
func TestKubectlPlugin(t *testing.T) {
	if os.Getenv("ENDPOINTD_TEST_PLUGIN") != "" {
		Main([]string{"kubectl", "hello", "world"}, IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
		t.Fatal("the plugin did not run")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "kubectl-hello"), []byte("#!/bin/sh\necho \"plugin $1 $KUBECONFIG\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	text, err := rerun(t, "TestKubectlPlugin", "ENDPOINTD_TEST_PLUGIN=1", "PATH="+dir+":"+os.Getenv("PATH"), "KUBECONFIG=/mine")
	if err != nil || strings.TrimSpace(text) != "plugin world /mine" {
		t.Errorf("%v\n%s", err, text)
	}
}
