package e2e

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"

	"github.com/endpointd/endpointd/internal/testkit"
)

// TestUp is one `endpointd up --nodes 2` for everything that leaves it as it was.
func TestUp(t *testing.T) {
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 2})
	t.Logf("ready after %v", u.ReadyAfter)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *testkit.UpProcess)
	}{
		{"status", upStatus},
		{"exec", upExec},
		{"terminal", upTerminal},
		{"second up", upSecond},
		{"pods", upPods},
		{"node port", upNodePort},
		{"node port taken", upNodePortTaken},
		{"node dies", func(t *testing.T, u *testkit.UpProcess) { u.KillPart("node-1"); awaitReady(t, u) }},
		{"server dies", func(t *testing.T, u *testkit.UpProcess) { u.KillPart("server"); awaitReady(t, u) }},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, u.In(t)) })
	}
}

// awaitReady returns when the server answers and all nodes are ready.
func awaitReady(t *testing.T, u *testkit.UpProcess) {
	t.Helper()
	testkit.Await(t, patience, func() error {
		s := u.Status()
		if s.Server.Ready != true {
			return errors.New("the server is not ready")
		}
		for _, n := range s.Nodes {
			if n.Ready != "True" {
				return fmt.Errorf("%s is not ready: %v", n.Name, n.Ready)
			}
		}
		return nil
	})
}

func upStatus(t *testing.T, u *testkit.UpProcess) {
	awaitReady(t, u)
	s := u.Status()
	if len(s.Nodes) != 2 || !slices.Equal(s.Nodes[1].Addresses, []string{"10.200.0.12"}) {
		t.Errorf("%+v", s)
	}
	for _, p := range append(s.Nodes, s.Server) {
		if err := syscall.Kill(p.PID, 0); err != nil || p.PID < 2 {
			t.Errorf("%s: pid %d: %v", p.Name, p.PID, err)
		}
	}
	table, err := u.Try("status", "--data-dir", u.DataDir)
	check(t, err)
	if !regexp.MustCompile(`(?m)^node-2 +True +\d+ +\d+ +\d+s +\d+ +10\.200\.0\.12$`).MatchString(table.Stdout) {
		t.Errorf("table:\n%s", table.Stdout)
	}
	if names := u.Kubectl().Run("get", "nodes", "-o", "name"); names != "node/node-1\nnode/node-2\n" {
		t.Errorf("nodes: %q", names)
	}
}

func upExec(t *testing.T, u *testkit.UpProcess) {
	if host := u.Exec("node-2", "cat", "/proc/sys/kernel/hostname"); host != "node-2\n" {
		t.Errorf("host name %q", host)
	}
	if resolv := u.Exec("node-1", "cat", "/etc/resolv.conf"); !strings.HasPrefix(resolv, "nameserver 10.96.0.10\n") {
		t.Errorf("resolv.conf: %q", resolv)
	}
	binary := u.Command().Path
	for _, node := range []string{"", "node-1"} { // with KUBECONFIG for inside
		if text := u.Exec(node, binary, "kubectl", "get", "--raw", "/readyz"); text != "ok" {
			t.Errorf("readyz from %q: %q", node, text)
		}
	}
	cmd := u.Command(u.ExecArgs("", "sh", "-c", "cat; echo complaint >&2; exit 3")...)
	cmd.Stdin = strings.NewReader("hello")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || out.String() != "hello" || errOut.String() != "complaint\n" {
		t.Errorf("%v\n%s\n%s", err, &out, &errOut)
	}
	if _, err := u.Try(u.ExecArgs("node-9", "true")...); err == nil || !strings.Contains(err.Error(), `there is no node "node-9": use one of node-1, node-2`) {
		t.Errorf("%v", err)
	}
}

// With a terminal the command controls it, and has its size.
func upTerminal(t *testing.T, u *testkit.UpProcess) {
	cmd := u.Command(u.ExecArgs("node-1", "sh", "-c", `stty size; read line; echo "got $line"; exit 5`)...)
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 77})
	check(t, err)
	defer terminal.Close() //nolint:errcheck // a test
	_, err = io.WriteString(terminal, "word\r")
	check(t, err)
	text, _ := io.ReadAll(terminal) // EIO is a terminal's end
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("%v", err)
	}
	for _, want := range []string{"33 77\r\n", "got word\r\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
}

func upSecond(t *testing.T, u *testkit.UpProcess) {
	for _, args := range [][]string{{"up"}, {"up", "--detach"}} {
		_, err := u.Try(append(args, "--data-dir", u.DataDir)...)
		want := fmt.Sprintf("a sandbox runs here already (pid %d)", u.PID)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	if _, err := u.Try("server", "--data-dir", u.DataDir, "--listen", "127.0.0.1:0"); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a server on the same folder: %v", err)
	}
	awaitReady(t, u)
}

// webPods are pods that say their name, with a node port.
const webPods = `{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 2, selector: {matchLabels: {app: web}},
template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: endpointd/echo, ports: [{containerPort: 8080}]}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 31547}]}}`

// Pods are reached from the outer network, from nodes and, through the node port, from the machine's loopback.
func upPods(t *testing.T, u *testkit.UpProcess) {
	kubectl := u.Kubectl()
	kubectl.WithInput(webPods).Run("apply", "-f", "-")
	kubectl.Run("wait", "--for=condition=Available", "deployment/web", "--timeout=20s")
	seen := map[string]bool{}
	testkit.Await(t, patience, func() error {
		r, err := http.Get("http://127.0.0.1:31547/")
		if err != nil {
			return err
		}
		text, err := io.ReadAll(r.Body)
		check(t, errors.Join(err, r.Body.Close()))
		name, _, _ := strings.Cut(string(text), "\n")
		seen[name] = true
		http.DefaultClient.CloseIdleConnections() // endpoints take turns by connection
		if len(seen) < 2 {
			return fmt.Errorf("of two pods %v answered", seen)
		}
		return nil
	})
	for line := range strings.Lines(kubectl.Run("get", "pods", "-l", "app=web", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.podIP}{"\n"}{end}`)) {
		name, address, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !seen[name] {
			t.Errorf("%s is not among those that answered: %v", name, seen)
		}
		for _, node := range []string{"", "node-1", "node-2"} {
			script := fmt.Sprintf(`exec 3<>/dev/tcp/%s/8080; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3`, address)
			if text := u.Exec(node, "bash", "-c", script); !strings.Contains(text, name) {
				t.Errorf("pod %s from %q: %q", name, node, text)
			}
		}
	}
	kubectl.Run("delete", "deployment,service", "web")
}

// apiService is a Service whose endpoint is the API server, which is there without any pod.
const apiService = `{apiVersion: v1, kind: Service, metadata: {name: NAME}, spec: {type: NodePort, ports: [{port: 443, targetPort: 6443, nodePort: PORT}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: NAME, labels: {kubernetes.io/service-name: NAME}}, addressType: IPv4,
ports: [{name: "", port: 6443, protocol: TCP}], endpoints: [{addresses: [10.200.0.1]}]}`

func applyNodePort(u *testkit.UpProcess, name string, port int) {
	text := strings.NewReplacer("NAME", name, "PORT", strconv.Itoa(port)).Replace(apiService)
	u.Kubectl().WithInput(text).Run("apply", "-f", "-")
}

// ask sends a request to the API server behind a node port.
func ask(host string, port int) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // whoever answers will do
	r, err := client.Get("https://" + net.JoinHostPort(host, strconv.Itoa(port)) + "/version")
	if err != nil {
		return err
	}
	return r.Body.Close()
}

func upNodePort(t *testing.T, u *testkit.UpProcess) {
	const port = 31543
	applyNodePort(u, "api", port)
	for _, host := range []string{"127.0.0.1", "::1"} {
		testkit.Await(t, patience, func() error { return ask(host, port) })
	}
	u.Kubectl().Run("delete", "service", "api")
	testkit.Await(t, patience, func() error {
		if err := ask("127.0.0.1", port); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("the port of a deleted Service is open: %w", err)
		}
		return nil
	})
}

// A port that another program has is a warning on the Service; the next one is published all the same.
func upNodePortTaken(t *testing.T, u *testkit.UpProcess) {
	const taken, free = 31544, 31545
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(taken))
	check(t, err)
	defer l.Close() //nolint:errcheck // a test
	applyNodePort(u, "taken", taken)
	applyNodePort(u, "free", free)
	testkit.Await(t, patience, func() error { return ask("127.0.0.1", free) })
	testkit.Await(t, patience, func() error {
		events := u.Kubectl().Run("get", "events", "--field-selector", "involvedObject.name=taken,type=Warning", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(events, "node port 31544/tcp is not published") || !strings.Contains(events, "address already in use") {
			return fmt.Errorf("events: %q", events)
		}
		return nil
	})
	check(t, l.Close())
	testkit.Await(t, patience, func() error { return ask("127.0.0.1", taken) })
	u.Kubectl().Run("delete", "service", "taken", "free")
}

// down ends everything; the next up has the same state.
func TestUpDownUp(t *testing.T) {
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 1})
	u.Kubectl().Run("create", "configmap", "kept", "--from-literal=a=b")
	if said := u.Down().Stdout; !strings.HasSuffix(said, ": ended\n") {
		t.Errorf("down said %q", said)
	}
	if left := processesWith(t, u.DataDir); len(left) > 0 {
		t.Errorf("after down: %v", left)
	}
	if _, err := u.Try("status", "--data-dir", u.DataDir); err == nil || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(err.Error(), "no sandbox runs here") {
		t.Errorf("status after down: %v", err)
	}
	u.Start()
	u.Kubectl().Run("get", "configmap", "kept")
	u.Stop()
	if said := u.Down("--purge").Stdout; !strings.HasSuffix(said, ": nothing ran, data folder removed\n") {
		t.Errorf("down --purge said %q", said)
	}
	if _, err := os.Stat(u.DataDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data folder is left: %v", err)
	}
}

// After kill -9 nothing runs on, and both up and down cope with what is left.
func TestUpKilled(t *testing.T) {
	testkit.Need(t, testkit.Net())
	cgroups := cgroupsOfUp(t)
	u := testkit.Up(t, testkit.UpOptions{Nodes: 2})
	marker := "98765" + strconv.Itoa(os.Getpid()) // seconds that nobody else sleeps
	u.Kubectl().WithInput(`{apiVersion: v1, kind: Pod, metadata: {name: sleeper}, spec: {containers: [{name: c, image: endpointd/echo, command: [sleep, "`+marker+`"]}]}}`).Run("apply", "-f", "-")
	u.Kubectl().Run("wait", "--for=condition=Ready", "pod/sleeper", "--timeout=20s")
	if len(processesWith(t, marker)) == 0 {
		t.Error("the pod's process is not there")
	}
	u.Kill()
	gone := func() {
		t.Helper()
		testkit.Await(t, patience, func() error {
			if left := append(processesWith(t, u.DataDir), processesWith(t, marker)...); len(left) > 0 {
				return fmt.Errorf("still there: %v", left)
			}
			return nil
		})
	}
	gone()
	u.Start()
	u.Kill()
	gone()
	u.Down()
	if now := cgroupsOfUp(t); !slices.Equal(now, cgroups) {
		t.Errorf("cgroups: %v, before %v", now, cgroups)
	}
	if files, _ := filepath.Glob(filepath.Join(u.DataDir, "run", "*.sock")); len(files) > 0 {
		t.Errorf("sockets are left: %v", files)
	}
}

// processesWith lists the processes that name the folder in their arguments.
func processesWith(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check(t, err)
	var found []string
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && bytes.Contains(text, []byte(dir)) {
			found = append(found, strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	return found
}

func cgroupsOfUp(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"/sys/fs/cgroup/endpointd-*", "/sys/fs/cgroup/*/endpointd-*"} {
		found, err := filepath.Glob(pattern)
		check(t, err)
		all = append(all, found...)
	}
	return all
}

// Without root it is the same, in a user namespace.
func TestUpRootless(t *testing.T) {
	testkit.Need(t, testkit.Net())
	options := testkit.UpOptions{Nodes: 2, DataDir: filepath.Join(publicDir(t), "data")}
	if os.Getuid() == 0 {
		const nobody = 65534
		options.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		check(t, os.Mkdir(options.DataDir, 0o700))
		check(t, os.Chown(options.DataDir, nobody, nobody))
		options.Binary = publicCopy(t, testkit.Binary(t))
	}
	u := testkit.Up(t, options)
	if host := u.Exec("node-2", "cat", "/proc/sys/kernel/hostname"); host != "node-2\n" {
		t.Errorf("host name %q", host)
	}
	if id := u.Exec("node-1", "id", "-u"); id != "0\n" {
		t.Errorf("uid inside %q", id)
	}
	u.Kubectl().WithInput(webPods).Run("apply", "-f", "-")
	u.Kubectl().Run("wait", "--for=condition=Available", "deployment/web", "--timeout=20s")
	u.KillPart("node-1")
	awaitReady(t, u)
	u.Down()
	if left := processesWith(t, u.DataDir); len(left) > 0 {
		t.Errorf("after down: %v", left)
	}
}

// Where namespaces are not allowed, one line says so and what to do; nothing is left.
func TestUpNotAllowed(t *testing.T) {
	testkit.Need(t, testkit.Net())
	dir := filepath.Join(t.TempDir(), "data")
	// The limit is that of a user namespace of its own, not the machine's.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `echo 0 >/proc/sys/user/max_net_namespaces && exec "$0" up --listen 127.0.0.1:0 --data-dir "$1"`, testkit.Binary(t), dir)
	cmd.SysProcAttr = testkit.AsRootOf(0)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("%v", err)
	}
	const want = "allow them with `sysctl user.max_net_namespaces=10000`\n"
	if text := errOut.String(); !strings.HasPrefix(text, "endpointd: new namespaces: ") || !strings.HasSuffix(text, want) || strings.Count(text, "\n") != 1 {
		t.Errorf("%q, want one line that ends with %q", text, want)
	}
	if left := processesWith(t, dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// publicDir is a folder that everybody may enter.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	check(t, os.Chmod(filepath.Dir(dir), 0o755))
	return dir
}

// publicCopy is for a user who may not enter the repository.
func publicCopy(t *testing.T, file string) string {
	t.Helper()
	copied := filepath.Join(publicDir(t), "endpointd")
	from, err := os.Open(file)
	check(t, err)
	defer from.Close() //nolint:errcheck // a test
	to, err := os.OpenFile(copied, os.O_CREATE|os.O_WRONLY, 0o755)
	check(t, err)
	_, err = io.Copy(to, from)
	check(t, errors.Join(err, to.Close()))
	return copied
}

// The machine's network is the same before, during and after; what listens is on loopback.
func TestUpMachineUntouched(t *testing.T) {
	testkit.Need(t, testkit.Net())
	before, heard := machine(t), listening(t)
	u := testkit.Up(t, testkit.UpOptions{Nodes: 2})
	applyNodePort(u, "api", 31546)
	testkit.Await(t, patience, func() error { return ask("127.0.0.1", 31546) })
	if during := machine(t); during != before {
		t.Errorf("during\n%s\nbefore\n%s", during, before)
	}
	for socket := range listening(t) {
		if !heard[socket] && !socket.Addr().IsLoopback() {
			t.Errorf("listens on %v", socket)
		}
	}
	u.Down()
	if after := machine(t); after != before {
		t.Errorf("after\n%s\nbefore\n%s", after, before)
	}
}

// machine is everything about the machine's network that must not change.
func machine(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	links, err := net.Interfaces()
	check(t, err)
	for _, l := range links {
		addrs, err := l.Addrs()
		check(t, err)
		fmt.Fprintln(&text, l.Index, l.Name, l.Flags, l.HardwareAddr, addrs)
	}
	// Routes without their use counts; firewall modules would appear with the first table of any kind.
	for _, file := range []string{"/proc/net/fib_trie", "/proc/net/if_inet6", "/proc/sys/net/ipv4/ip_forward", "/proc/net/ip_tables_names", "/proc/self/mounts"} {
		content, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		check(t, err)
		fmt.Fprintf(&text, "%s\n%s", file, content)
	}
	expiry := regexp.MustCompile(` expires \d+sec`) // of a router's announcement
	for _, command := range [][]string{{"ip", "route"}, {"ip", "-6", "route"}, {"nft", "list", "ruleset"}} {
		if _, err := exec.LookPath(command[0]); err != nil {
			continue // the files say most of it
		}
		out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput()
		fmt.Fprintf(&text, "%v %v\n%s", command, err, expiry.ReplaceAll(out, nil))
	}
	return text.String()
}

// listening are the addresses on which the machine takes TCP connections and datagrams.
func listening(t *testing.T) map[netip.AddrPort]bool {
	t.Helper()
	found := map[netip.AddrPort]bool{}
	for file, state := range map[string]string{"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"} {
		text, err := os.ReadFile("/proc/net/" + file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		check(t, err)
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) < 4 || fields[3] != state {
				continue
			}
			host, port, _ := strings.Cut(fields[1], ":")
			number, err := strconv.ParseUint(port, 16, 16)
			check(t, err)
			found[netip.AddrPortFrom(procAddr(t, host), uint16(number))] = true
		}
	}
	return found
}

// procAddr reads an address as /proc/net has it: 32-bit words in the machine's order, which is little-endian where we run.
func procAddr(t *testing.T, text string) netip.Addr {
	t.Helper()
	var raw []byte
	for i := 0; i+8 <= len(text); i += 8 {
		word, err := strconv.ParseUint(text[i:i+8], 16, 32)
		check(t, err)
		raw = append(raw, byte(word), byte(word>>8), byte(word>>16), byte(word>>24))
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		t.Fatalf("address %q", text)
	}
	return addr.Unmap()
}

// --detach returns when all is ready; files are applied by then.
func TestUpDetached(t *testing.T) {
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 1})
	u.Down()
	file := filepath.Join(t.TempDir(), "map.yaml")
	check(t, os.WriteFile(file, []byte("{apiVersion: v1, kind: ConfigMap, metadata: {name: applied}}"), 0o600))
	out, err := u.Try("up", "--detach", "--data-dir", u.DataDir, "--nodes", "1", "--listen", "127.0.0.1:0", "-f", file)
	check(t, err)
	for _, want := range []string{"node-1 is ready", "configmap/applied created", "endpointd is ready: https://127.0.0.1:", "endpointd down --data-dir " + u.DataDir} {
		if !strings.Contains(out.Stdout, want) {
			t.Errorf("%q is not in\n%s", want, out.Stdout)
		}
	}
	u.Kubectl().Run("get", "configmap", "applied")
	awaitReady(t, u)
	u.Down()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close() //nolint:errcheck // a test
	if _, err := u.Try("up", "--detach", "--data-dir", u.DataDir, "--listen", l.Addr().String()); err == nil || !strings.Contains(err.Error(), "another program has this port") {
		t.Errorf("a port that is taken: %v", err)
	}
}

// Both families: addresses of nodes, routes and the Services' range.
func TestUpDualStack(t *testing.T) {
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 1, Args: []string{"--service-cidr", "10.96.0.0/16,fd00:96::/112", "--pod-cidr", "10.244.0.0/16,fd00:244::/56"}})
	if addrs := u.Part("node-1").Addresses; !slices.Equal(addrs, []string{"10.200.0.11", "fd00:200::b"}) {
		t.Errorf("addresses %v", addrs)
	}
	if routes := u.Exec("", "cat", "/proc/net/ipv6_route"); !strings.Contains(routes, "fd000244000000010000000000000000 40") {
		t.Errorf("no route to the node's pods:\n%s", routes)
	}
}
