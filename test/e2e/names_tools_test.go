package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/testkit"
)

// A recording is a file below testdata/names: commands after "$ ", and what each prints.
type recording struct {
	file string
	pod  string // where it runs; "" = on a node
	node string // with pod "": its name, or "" for beside the server
	need func(*nodes)
}

// namesTools has the resolvers that people have say what they find, from pods of each dnsPolicy and from nodes.
func namesTools(n *nodes) {
	objects, err := os.ReadFile(filepath.Join("testdata", "names", "objects.yaml"))
	check(n.T, err)
	n.apply(string(objects) + "---\n" + largeSlice())
	n.run("create", "service", "clusterip", "elsewhere", "-n", "default", "--clusterip=10.96.0.80", "--tcp=80")
	places := n.places()
	n.awaitNames()
	for _, s := range []recording{
		{file: "getent", pod: "client", need: program("getent", "libc-bin")},
		{file: "dig", pod: "client", need: program("dig", "bind9-dnsutils")},
		{file: "nslookup", pod: "client", need: program("nslookup", "bind9-dnsutils")},
		{file: "busybox", pod: "client", need: program("busybox", "busybox-static")},
		{file: "musl", pod: "client", need: program("musl-gcc", "musl-tools")},
		{file: "policy-none", pod: "policy-none"},
		{file: "policy-default", pod: "policy-default"},
		{file: "host-network", pod: "host-network"},
		{file: "exec", node: "node-2"},
		{file: "exec", node: ""},
	} {
		n.Run(s.file+" "+s.pod+s.node, func(t *testing.T) {
			// The one of this release: older ones may lose what a command prints first.
			in := &nodes{&space{T: t, cluster: n.cluster, kubectl: n.kubectls[1].In(t), name: n.name}, n.u.In(t)}
			if s.need != nil {
				s.need(in)
			}
			in.replay(s, places)
		})
	}
}

// program needs an executable that a Debian package has.
func program(name, pkg string) func(*nodes) {
	return func(n *nodes) {
		testkit.Need(n.T, testkit.Feature{Name: pkg, Probe: func(context.Context) error {
			_, err := exec.LookPath(name)
			return err
		}})
	}
}

// largeAddrs is how many endpoints a name has whose answer is longer than a message over UDP.
const largeAddrs = 100

// largeSlice is a slice written by hand.
func largeSlice() string {
	var b strings.Builder
	b.WriteString("{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: large, labels: {kubernetes.io/service-name: large}}, ports: [{name: http, port: 80}], endpoints: [")
	for i := range largeAddrs {
		fmt.Fprintf(&b, "{addresses: [192.0.2.%d]},", i+1)
	}
	return b.String() + "]}"
}

// places waits for the pods, and is how recordings call their addresses: IP4-NAME, IP6-NAME, and DASHED… with dashes.
func (n *nodes) places() (pairs []string) {
	n.Helper()
	dashed := strings.NewReplacer(".", "-", ":", "-")
	for _, name := range []string{"one", "two", "client", "policy-none", "policy-default", "host-network"} {
		pod := n.awaitPod(name, patience, isReady)
		if pod.Spec.HostNetwork {
			continue
		}
		if len(pod.Status.PodIPs) != 2 {
			n.Fatalf("pod %s has the addresses %v, want one of each family", name, pod.Status.PodIPs)
		}
		for i, ip := range pod.Status.PodIPs {
			pairs = append(pairs, ip.IP, fmt.Sprintf("IP%d-%s", 4+2*i, name), dashed.Replace(ip.IP), fmt.Sprintf("DASHED%d-%s", 4+2*i, name))
		}
	}
	return pairs
}

// awaitNames waits until all nodes know of all objects.
func (n *nodes) awaitNames() {
	n.Helper()
	full := "." + n.name + ".svc.cluster.local"
	var peers, large []string
	for _, pod := range []*corev1.Pod{n.pod("one"), n.pod("two")} {
		peers = append(peers, pod.Status.PodIPs[0].IP, pod.Status.PodIPs[1].IP)
	}
	for i := range largeAddrs {
		large = append(large, fmt.Sprintf("192.0.2.%d", i+1))
	}
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		n.resolves(node, "", "elsewhere.default.svc.cluster.local", "10.96.0.80") // made last
		n.resolves(node, "", "peers"+full, peers...)
		n.resolves(node, "", "large"+full, large...)
	}
}

// replayScript runs its arguments after the first, which is the folder of `resolve`, and prints them with what they print. What takes as long as resolvers
// wait before they ask again has lost a question: that is told.
const replayScript = `
PATH=$PATH:$1
shift
for command; do
	printf '$ %s\n' "$command"
	begun=${EPOCHREALTIME/[.,]/}
	bash -o pipefail -c "$command" 2>&1 || printf '[exit code %d]\n' $?
	took=$((${EPOCHREALTIME/[.,]/} - begun))
	[ $took -lt 4500000 ] || printf '[it took %d ms]\n' $((took / 1000))
done`

// replay runs the commands of a file again and compares.
func (n *nodes) replay(s recording, places []string) {
	n.Helper()
	file := "names/" + s.file + ".txt"
	text, err := os.ReadFile(filepath.Join("testdata", file))
	check(n.T, err)
	var there []string // the other way around
	for pair := range slices.Chunk(places, 2) {
		there = append(there, pair[1], pair[0])
	}
	command := []string{"bash", "-c", replayScript, "bash", n.resolver(s)}
	for line := range strings.Lines(string(text)) {
		if shell, is := strings.CutPrefix(strings.TrimSpace(line), "$ "); is {
			command = append(command, strings.NewReplacer(there...).Replace(shell))
		}
	}
	if len(command) == 5 {
		n.Fatalf("%s has no commands", file)
	}
	var said string
	if s.pod != "" {
		said = n.run(append([]string{"exec", s.pod, "--"}, command...)...)
	} else {
		said = n.u.Exec(s.node, command...)
	}
	var got strings.Builder
	here := strings.NewReplacer(longestFirst(places)...)
	for line := range strings.Lines(said) {
		// Columns are as wide as addresses are long.
		got.WriteString(here.Replace(strings.Join(strings.Fields(line), " ")) + "\n")
	}
	testkit.Golden(n, file, []byte(got.String()))
}

// longestFirst orders pairs for a replacer, so that 10.244.1.22 is not 10.244.1.2 and a 2.
func longestFirst(pairs []string) []string {
	sorted := slices.Collect(slices.Chunk(pairs, 2))
	slices.SortStableFunc(sorted, func(a, b []string) int { return len(b[0]) - len(a[0]) })
	return slices.Concat(sorted...)
}

// resolver compiles testdata/names/resolve.c with musl, for the recording that needs it, and is the folder of the program.
func (n *nodes) resolver(s recording) string {
	n.Helper()
	dir := n.TempDir()
	if s.file == "musl" {
		out, err := exec.CommandContext(n.Context(), "musl-gcc", "-static", "-o", filepath.Join(dir, "resolve"), filepath.Join("testdata", "names", "resolve.c")).CombinedOutput()
		if err != nil {
			n.Fatalf("musl-gcc: %v\n%s", err, out)
		}
	}
	return dir
}
