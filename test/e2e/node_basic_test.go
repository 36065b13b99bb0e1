package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/creack/pty"

	"github.com/endpointd/endpointd/internal/testkit"
)

func basicScenarios() []nodeScenario {
	return []nodeScenario{
		{"deployment", basicDeployment},
		{"logs", basicLogs},
		{"exec", basicExec},
		{"attach", basicAttach},
		{"port-forward", basicForward},
		{"cp", basicCopy},
	}
}

// threeEchoes is a Deployment of three pods and its Service.
const threeEchoes = `{apiVersion: apps/v1, kind: Deployment, metadata: {name: echo}, spec: {replicas: 3, selector: {matchLabels: {app: echo}},
template: {metadata: {labels: {app: echo}}, spec: {terminationGracePeriodSeconds: 5, containers: [{name: echo, image: endpointd/echo,
ports: [{name: http, containerPort: 8080}], readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1, failureThreshold: 1}}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: echo}, spec: {selector: {app: echo}, ports: [{port: 80, targetPort: http}]}}`

// oneEcho is a pod of one container.
func oneEcho(name string) string {
	return `{apiVersion: v1, kind: Pod, metadata: {name: ` + name + `, labels: {app: ` + name + `}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: endpointd/echo}]}}`
}

// Pods of a Deployment have addresses of their own on all nodes, and are reached from nodes and from each other.
func basicDeployment(n *nodes) {
	n.apply(threeEchoes)
	pods := n.awaitPods("app=echo", 3)
	n.awaitReady("echo", endpointsManager, leadTo(8080, pods...))
	addrs, onNodes := map[string]bool{}, map[string]bool{}
	for _, p := range pods {
		addrs[p.Status.PodIP], onNodes[p.Spec.NodeName] = true, true
		if prefix := "10.244." + strings.TrimPrefix(p.Spec.NodeName, "node-") + "."; !strings.HasPrefix(p.Status.PodIP, prefix) {
			n.Errorf("%s on %s has %s", p.Name, p.Spec.NodeName, p.Status.PodIP)
		}
	}
	if len(addrs) != 3 || len(onNodes) < 2 {
		n.Errorf("%d addresses on %d nodes", len(addrs), len(onNodes))
	}
	for _, to := range pods {
		url := fmt.Sprintf("http://%s:8080/", to.Status.PodIP)
		for _, node := range []string{"", "node-1", "node-2", "node-3"} {
			n.has(n.get(node, url), to.Name)
		}
		for _, from := range pods {
			n.has(n.run("exec", from.Name, "--", self(n.T), helperArg, "get", url), to.Name)
		}
	}

	wide := n.run("get", "pods", "-o", "wide")
	described := n.run("describe", "pod", pods[0].Name)
	for _, p := range pods {
		if row := n.row(wide, p.Name); strings.Join(row[1:4], " ") != "1/1 Running 0" || row[5] != p.Status.PodIP || row[6] != p.Spec.NodeName {
			n.Errorf("row %q", row)
		}
	}
	n.has(described, "Status: Running", "IP: "+pods[0].Status.PodIP, "Controlled By: ReplicaSet/echo-", "Container ID: process://"+string(pods[0].UID)+"/echo/0",
		"Ready: True", "Restart Count: 0", "http-get http://:http/readyz", "Scheduled", "Started container echo")
	n.has(n.run("get", "endpoints", "echo", "--no-headers"), "echo "+strings.ReplaceAll(leadTo(8080, pods...), " ", ","))
	n.has(n.run("describe", "endpoints", "echo"), "Addresses: "+strings.ReplaceAll(strings.ReplaceAll(leadTo(8080, pods...), ":8080", ""), " ", ","), "8080 TCP")
	n.has(n.run("describe", "service", "echo"), "TargetPort: http/TCP", pods[0].Status.PodIP+":8080")
	n.has(n.run("describe", "node", pods[0].Spec.NodeName), pods[0].Name, "Ready True", "PodCIDR: 10.244.")
}

// talker writes numbered lines and, when it is told to, ends. Its two streams are two pipes, so the order of what is written at once is open.
const talker = `{apiVersion: v1, kind: Pod, metadata: {name: talker}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: endpointd/echo,
command: [bash, -c, 'for i in 1 2 3 4 5; do echo life $START line $i; done; sleep 0.1; echo complaint >&2; trap "exit 0" TERM; while ! [ -e /box/end ]; do sleep 0.05; [ -e /box/more ] && rm /box/more && echo one more; done; rm /box/end; exit 3'],
env: [{name: START, value: "x"}], volumeMounts: [{name: box, mountPath: /box}]}], volumes: [{name: box, emptyDir: {}}]}}`

func basicLogs(n *nodes) {
	n.apply(talker)
	n.awaitPod("talker", patience, isReady)
	n.await(func(context.Context) error { return says(n.run("logs", "talker"), "complaint") })
	if got := n.run("logs", "talker", "--tail=2"); got != "life x line 5\ncomplaint\n" {
		n.Errorf("--tail=2: %q", got)
	}
	if got := n.run("logs", "talker", "--timestamps", "--tail=1"); !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z complaint\n$`).MatchString(got) {
		n.Errorf("--timestamps: %q", got)
	}
	if got := n.run("logs", "talker", "--since=10m", "--limit-bytes=6"); got != "life x" {
		n.Errorf("--limit-bytes: %q", got)
	}
	if got := n.run("logs", "talker", "--since-time=2100-01-01T00:00:00Z"); got != "" {
		n.Errorf("since a time to come: %q", got)
	}
	follower := n.follow("logs", "-f", "talker", "--tail=1")
	n.next(follower, "complaint")
	n.run("exec", "talker", "--", "touch", "/box/more")
	n.next(follower, "one more")
	n.run("exec", "talker", "--", "touch", "/box/end")
	for range follower { // until kubectl ends, because the container has
	}
	n.await(func(context.Context) error {
		out, err := n.try("logs", "-p", "talker")
		return errors.Join(err, says(out.Stdout, "life x line 1", "one more"))
	})
	n.await(func(context.Context) error {
		if text := n.run("logs", "talker"); strings.Contains(text, "one more") || !strings.Contains(text, "line 5") {
			return fmt.Errorf("of the new life: %q", text)
		}
		return nil
	})
	n.has(n.refused("logs", "talker", "-c", "nobody"), "container nobody is not valid for pod talker")
}

func says(text string, want ...string) error {
	for _, w := range want {
		if !strings.Contains(text, w) {
			return fmt.Errorf("%q is not in %q", w, text)
		}
	}
	return nil
}

func basicExec(n *nodes) {
	n.apply(oneEcho("e"))
	pod := n.awaitPod("e", patience, isReady)
	if got := n.run("exec", "e", "--", "cat", "/proc/sys/kernel/hostname"); got != "e\n" {
		n.Errorf("host name: %q", got)
	}
	n.has(n.run("exec", "e", "--", "cat", "/etc/hosts"), pod.Status.PodIP+" e")
	n.has(n.run("exec", "e", "--", "cat", "/etc/resolv.conf"), "nameserver 10.96.0.10", "search "+n.name+".svc.cluster.local svc.cluster.local cluster.local", "ndots:5")
	out, err := n.kubectl.WithInput("hello").Try("-n", n.name, "exec", "-i", "e", "--", "sh", "-c", "cat; echo complaint >&2; exit 7")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || out.Stdout != "hello" || !strings.HasPrefix(out.Stderr, "complaint\n") {
		n.Errorf("%v: %q %q", err, out.Stdout, out.Stderr)
	}
	n.has(n.refused("exec", "e", "--", "no-such-command"), "no-such-command")

	// With a terminal, as a person would. Its size comes by itself, maybe after the start.
	cmd := n.kubectl.Command("-n", n.name, "exec", "-it", "e", "--", "sh", "-c", `tty >/dev/null && until [ "$(stty size)" = "31 91" ]; do sleep 0.01; done; stty size; read line; echo "got $line"; exit 5`)
	cmd.Stdin = nil
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 31, Cols: 91})
	check(n.T, err)
	defer terminal.Close() //nolint:errcheck // a test
	lines := bufio.NewReader(terminal)
	for text := ""; !strings.Contains(text, "31 91"); {
		text, err = lines.ReadString('\n')
		check(n.T, err)
	}
	_, err = io.WriteString(terminal, "word\r")
	check(n.T, err)
	rest, _ := io.ReadAll(lines) // EIO is a terminal's end
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 5 || !strings.Contains(string(rest), "got word\r\n") {
		n.Errorf("%v: %q", err, rest)
	}
}

func basicAttach(n *nodes) {
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {restartPolicy: Never, containers: [{name: c, image: endpointd/echo, stdin: true, stdinOnce: true,
command: [sh, -c, 'while read line; do echo "got $line"; done; echo over']}]}}`)
	n.awaitPod("a", patience, isReady)
	out, err := n.kubectl.WithInput("one\ntwo\n").Try("-n", n.name, "attach", "-i", "a", "-q")
	check(n.T, err)
	if out.Stdout != "got one\ngot two\nover\n" {
		n.Errorf("attached: %q", out.Stdout)
	}
	n.awaitPod("a", patience, phaseIs("Succeeded"))
	n.has(n.run("logs", "a"), "got one got two over")
}

func basicForward(n *nodes) {
	n.apply(oneEcho("f"))
	n.awaitPod("f", patience, isReady)
	cmd := n.kubectl.Command("-n", n.name, "port-forward", "pod/f", "--address=127.0.0.1", ":8080")
	stdout, err := cmd.StdoutPipe()
	check(n.T, err)
	check(n.T, cmd.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	check(n.T, err)
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range 3 {
		r, err := client.Get("http://" + address + "/")
		check(n.T, err)
		text, err := io.ReadAll(r.Body)
		check(n.T, errors.Join(err, r.Body.Close()))
		n.has(string(text), "f")
	}
	check(n.T, cmd.Process.Signal(syscall.SIGTERM))
	_ = cmd.Wait() // it was told to end
}

func basicCopy(n *nodes) {
	testkit.Need(n.T, testkit.Program("tar"))
	n.apply(talker)
	n.awaitPod("talker", patience, isReady)
	dir := n.TempDir()
	content := strings.Repeat("some text\n", 100_000)
	check(n.T, os.WriteFile(filepath.Join(dir, "there"), []byte(content), 0o600))
	n.run("cp", filepath.Join(dir, "there"), "talker:/box/copied")
	n.run("cp", "talker:/box/copied", filepath.Join(dir, "back"))
	if back, err := os.ReadFile(filepath.Join(dir, "back")); err != nil || string(back) != content {
		n.Errorf("%d bytes came back: %v", len(back), err)
	}
}
