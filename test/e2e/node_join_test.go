package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/testkit"
)

// TestNodeJoins starts `endpointd node` by hand, as on a real machine, in the outer network of a sandbox.
func TestNodeJoins(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 1})
	c := clusterOf(t, u.Server())
	for _, s := range []nodeScenario{
		{"static pods", joinStatic},
		{"no address left", joinFull},
		{"range in use", joinOverlap},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(nodesOf(t, c, u)) })
	}
}

// joined is a node that a test started.
type joined struct {
	n         *nodes
	args      []string
	manifests string // folder
	cmd       *exec.Cmd
	log       *bytes.Buffer // not to be read before the process has ended
}

// join makes a node; it is not started yet.
func (n *nodes) join(name, pods string) *joined {
	n.Helper()
	dir := n.TempDir()
	j := &joined{n: n, manifests: filepath.Join(dir, "manifests")}
	check(n.T, os.Mkdir(j.manifests, 0o755))
	config := filepath.Join(dir, "kubeconfig")
	_, err := n.u.Try("kubeconfig", "--data-dir", n.u.DataDir, "--node", name, "--address", "10.200.0.1", "--server", "https://10.200.0.1:6443", "--out", config)
	check(n.T, err)
	j.args = []string{"node", "--kubeconfig", config, "--name", name, "--data-dir", filepath.Join(dir, "node"), "--node-ip", "10.200.0.1", "--pod-cidr", pods, "--manifests", j.manifests}
	for _, p := range processesOf(n.T, n.u) { // its cgroup goes with the sandbox
		if _, cgroup, ok := strings.Cut(p.line, " --cgroup "); ok {
			cgroup = filepath.Join(filepath.Dir(strings.Fields(cgroup)[0]), name)
			if err := os.Mkdir(cgroup, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				n.Fatal(err)
			}
			j.args = append(j.args, "--cgroup", cgroup)
		}
	}
	n.Cleanup(func() {
		if j.cmd != nil {
			_ = j.end(syscall.SIGKILL) // it did not come to the test's own end
		}
	})
	return j
}

// start returns when the node says that it is ready.
func (j *joined) start() {
	j.n.Helper()
	j.log = &bytes.Buffer{}
	j.cmd = j.n.u.Command(j.n.u.ExecArgs("", append([]string{testkit.Binary(j.n.T)}, j.args...)...)...)
	j.cmd.Stderr = j.log
	out, err := j.cmd.StdoutPipe()
	check(j.n.T, err)
	check(j.n.T, j.cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "endpointd node ") {
		err = errors.Join(err, j.end(syscall.SIGKILL))
		j.n.Fatalf("%q %v\n%s", line, err, j.log)
	}
}

// pid is the agent's own.
func (j *joined) pid() int {
	for _, p := range processesOf(j.n.T, j.n.u) {
		if strings.Contains(p.line, strings.Join(j.args, " ")) && !strings.Contains(p.line, " exec ") {
			return p.pid
		}
	}
	return 0
}

// end signals the agent and waits.
func (j *joined) end(signal syscall.Signal) error {
	if pid := j.pid(); pid != 0 {
		_ = syscall.Kill(pid, signal) // it may have ended just now
	}
	cmd := j.cmd
	j.cmd = nil
	err := cmd.Wait()
	if j.n.Failed() {
		j.n.Logf("the agent said\n%s", j.log)
	}
	return err
}

func (j *joined) manifest(file, text string) {
	j.n.Helper()
	draft := filepath.Join(filepath.Dir(j.manifests), file)
	check(j.n.T, os.WriteFile(draft, []byte(yaml(text)), 0o600))
	check(j.n.T, os.Rename(draft, filepath.Join(j.manifests, file)))
}

// Static pods come from files, show in the API, and follow their files; the agent's end is not theirs.
func joinStatic(n *nodes) {
	j := n.join("extra", "10.244.201.0/24")
	static := func(word string) string {
		return `{apiVersion: v1, kind: Pod, metadata: {name: s, namespace: ` + n.name + `, labels: {app: s}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: endpointd/echo, env: [{name: WORD, value: ` + word + `}]}]}}`
	}
	j.manifest("s.yaml", static("one"))
	j.start()
	pod := n.awaitPod("s-extra", patience, isReady)
	if pod.Spec.NodeName != "extra" || !strings.HasPrefix(pod.Status.PodIP, "10.244.201.") || pod.Annotations["kubernetes.io/config.source"] != "file" {
		n.Errorf("%s on %s has %s, %v", pod.Name, pod.Spec.NodeName, pod.Status.PodIP, pod.Annotations)
	}
	testkit.Await(n, patience, func() error { _, err := n.tryGet("node-1", "http://"+pod.Status.PodIP+":8080/"); return err })
	word := func() string { return n.run("exec", "s-extra", "--", "sh", "-c", "echo $WORD") }
	if got := word(); got != "one\n" {
		n.Errorf("%q", got)
	}
	pid := n.first("s-extra")

	// Its mirror is not the pod.
	n.run("delete", "pod", "s-extra", "--wait=false", "--grace-period=0", "--force")
	again := n.awaitPod("s-extra", patience, func(p *corev1.Pod) error {
		if p.UID == pod.UID {
			return errors.New("the same mirror")
		}
		return isReady(p)
	})
	if got := n.first("s-extra"); got != pid {
		n.Errorf("the pod went with its mirror: process %d, before %d", got, pid)
	}

	// An agent that dies, and one that is told to end, leave it alone.
	_ = j.end(syscall.SIGKILL) // its error is that it was killed
	j.start()
	if err := j.end(syscall.SIGTERM); err != nil {
		n.Errorf("the agent was told to end: %v\n%s", err, j.log)
	}
	if got := n.first("s-extra"); got != pid {
		n.Errorf("process %d, before %d", got, pid)
	}
	j.start()
	n.awaitPod("s-extra", patience, isReady)
	if got := n.first("s-extra"); got != pid {
		n.Errorf("process %d, before %d", got, pid)
	}

	j.manifest("s.yaml", static("two"))
	n.awaitPod("s-extra", patience, func(p *corev1.Pod) error {
		if p.UID == again.UID {
			return errors.New("the same mirror")
		}
		return isReady(p)
	})
	if got := word(); got != "two\n" {
		n.Errorf("%q", got)
	}
	n.gone(pid)
	pid = n.first("s-extra")
	j.manifest("bad.yaml", `{apiVersion: v1, kind: Pod, metadata: {name: `) // harms nobody
	check(n.T, os.Remove(filepath.Join(j.manifests, "s.yaml")))
	n.awaitPodGone("s-extra", patience)
	n.gone(pid)
	check(n.T, j.end(syscall.SIGTERM))
}

// gone waits until a process has ended.
func (n *nodes) gone(pid int) {
	n.Helper()
	testkit.Await(n, patience, func() error {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			return fmt.Errorf("process %d runs on", pid)
		}
		return nil
	})
}

// A pod for which the range has no address waits, says so, and gets one when another pod goes.
func joinFull(n *nodes) {
	j := n.join("small", "10.244.202.0/30")
	j.start()
	made := 0
	full := ""
	testkit.Await(n, patience, func() error {
		if full != "" {
			return nil
		}
		name := fmt.Sprintf("p%d", made)
		made++
		n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: ` + name + `}, spec: {nodeName: small, terminationGracePeriodSeconds: 0, containers: [{name: c, image: endpointd/echo}]}}`)
		text := ""
		testkit.Await(n, patience, func() error {
			text = n.run("describe", "pod", name)
			if isReady(n.pod(name)) == nil || strings.Contains(text, "FailedCreatePodSandBox") {
				return nil
			}
			return errors.New(text)
		})
		if strings.Contains(text, "FailedCreatePodSandBox") {
			full = name
			n.has(text, "10.244.202.0/30", "--pod-cidr")
			return nil
		}
		return fmt.Errorf("%d pods have addresses of a range of four", made)
	})
	if made < 2 || made > 5 {
		n.Errorf("%d pods had addresses", made-1)
	}
	n.run("delete", "pod", "p0")
	n.awaitPod(full, 30*time.Second, isReady)
	n.run("delete", "pods", "--all")
	check(n.T, j.end(syscall.SIGTERM))
}

// A range that is in use for something else is refused before anything is changed.
func joinOverlap(n *nodes) {
	network := func() string { return n.u.Exec("", self(n.T), helperArg, "net") }
	before := network()
	for _, pods := range []string{"10.244.0.0/16", "10.200.0.128/25", "127.0.0.0/24"} {
		j := n.join("refused", pods)
		cmd := n.u.Command(n.u.ExecArgs("", append([]string{testkit.Binary(n.T)}, j.args...)...)...)
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = io.Discard, &said
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			n.Errorf("%s: %v", pods, err)
		}
		n.has(said.String(), pods, "--pod-cidr")
		if strings.Count(said.String(), "\n") != 1 {
			n.Errorf("more than a line: %s", said.String())
		}
		if _, err := n.client.CoreV1().Nodes().Get(n.Context(), "refused", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			n.Errorf("%s: the node was registered: %v", pods, err)
		}
	}
	if now := network(); now != before {
		n.Errorf("now\n%s\nbefore\n%s", now, before)
	}
}
