package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/testkit"
)

// badPod is a pod that cannot be as it should, and what kubectl describe says of it.
type badPod struct {
	name string
	spec string // of the pod, without braces; DIR is a folder
	meta string // more metadata
	want []string
}

func badPods() []badPod {
	const c = `containers: [{name: c, image: endpointd/echo`
	return []badPod{
		{"command not found", c + `, command: [no-such-program]}]`, "", []string{`command "no-such-program" not found in PATH`, "Exit Code: 127", "Warning Failed"}},
		{"permission denied", c + `, command: [/etc/hostname]}]`, "", []string{"/etc/hostname", "permission denied", "Exit Code: 126"}},
		{"unknown image", `containers: [{name: c, image: "nobody/knows:1"}]`, "", []string{"nobody/knows:1", "ImagePull", "endpointd pulls no images; add it to", "images.yaml"}},
		{"image that lacks its program", `containers: [{name: c, image: e2e/broken}]`, "", []string{`"/x"`, "Exit Code: 127"}},
		{"missing secret", c + `, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, secret: {secretName: nobodys}}]`, "", []string{"FailedMount", `"nobodys" not found`}},
		{"missing key", c + `, env: [{name: X, valueFrom: {configMapKeyRef: {name: kube-root-ca.crt, key: none}}}]}]`, "", []string{"CreateContainerConfigError", "none", "kube-root-ca.crt"}},
		{"host path of another type", c + `, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, hostPath: {path: DIR, type: File}}]`, "", []string{"FailedMount", "DIR is not a File"}},
		{"volume of another kind", c + `, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, nfs: {server: x, path: /y}}]`, "", []string{"FailedMount", "nfs"}},
		{"unknown runtime class", `runtimeClassName: kata, ` + c + `}]`, "", []string{`runtime class "kata" is unknown on this node`, "set runtimeClassName to external or process"}},
		{"address of an external pod", `runtimeClassName: external, ` + c + `}]`, "annotations: {endpointd.io/address: nowhere}", []string{"endpointd.io/address", "give an IP address"}},
		{"host port taken by a pod", c + `, ports: [{containerPort: 8080, hostPort: 18999}]}]`, "", []string{"18999", "host port is taken", "choose another hostPort"}},
		{"host port taken by a process", c + `, ports: [{containerPort: 8080, hostPort: 10250}]}]`, "", []string{"10250", "host port is taken"}},
		{"port taken", `hostNetwork: true, ` + c + `, terminationMessagePolicy: FallbackToLogsOnError, env: [{name: PORT, value: "10250"}]}]`, "", []string{"10250", "address already in use", "Exit Code: 1"}},
		{"port of a probe", c + `, readinessProbe: {httpGet: {port: nobody}}}]`, "", []string{"Unhealthy", "Readiness probe cannot be made", "nobody"}},
		{"root refused", `securityContext: {runAsNonRoot: true}, ` + c + `}]`, "", []string{"CreateContainerConfigError", "runAsNonRoot"}},
		{"sub path leads out", c + `, volumeMounts: [{name: v, mountPath: /v, subPath: out/side}]}], volumes: [{name: v, hostPath: {path: DIR}}]`, "", []string{"out/side"}},
		{"working directory", c + `, workingDir: /no/such/folder}]`, "", []string{"/no/such/folder"}},
		{"init container fails", `restartPolicy: Never, initContainers: [{name: i, image: endpointd/echo, command: [bash, -c, exit 9]}], ` + c + `}]`, "", []string{"Exit Code: 9", "Status: Failed"}},
		{"post start hook fails", c + `, lifecycle: {postStart: {exec: {command: [bash, -c, "echo cannot; exit 4"]}}}}]`, "", []string{"FailedPostStartHook", "exited with 4", "cannot"}},
	}
}

// badImages is an image table for [badPods].
func badImages(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "images.yaml")
	check(t, os.WriteFile(file, []byte("images: [{name: e2e/broken, entrypoint: [/x], rootfs: "+dir+"}]\n"), 0o600))
	return file
}

// TestNodeBadPods: a pod that cannot start says why, and leaves nothing behind when it goes.
func TestNodeBadPods(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 1, Args: []string{"--images", badImages(t)}})
	c := clusterOf(t, u.Server())
	n := nodesOf(t, c, u)
	dir := t.TempDir()
	check(t, os.Symlink("/etc", filepath.Join(dir, "out")))
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: first}, spec: {containers: [{name: c, image: endpointd/echo, ports: [{containerPort: 8080, hostPort: 18999}]}]}}`)
	n.awaitPod("first", patience, isReady)
	before := n.leftovers("node-1")
	for _, bad := range badPods() {
		t.Run(bad.name, func(t *testing.T) {
			n := &nodes{&space{T: t, cluster: c, kubectl: n.kubectl.In(t), name: n.name}, u.In(t)}
			defer func() { // the next one has its name
				_, _ = n.try("delete", "pod", "bad", "--ignore-not-found", "--grace-period=1")
			}()
			n.apply(strings.ReplaceAll(fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: bad, %s}, spec: {nodeName: node-1, terminationGracePeriodSeconds: 1, %s}}`, bad.meta, bad.spec), "DIR", dir))
			testkit.Await(n, patience, func() error {
				text := squeeze(n.run("describe", "pod", "bad"))
				for _, want := range bad.want {
					if want = strings.ReplaceAll(want, "DIR", dir); !strings.Contains(text, want) {
						return fmt.Errorf("%q is not in\n%s", want, n.run("describe", "pod", "bad"))
					}
				}
				return nil
			})
			n.run("delete", "pod", "bad", "--timeout=15s")
			n.nothingLeft("node-1", before)
		})
	}
}

// nothingLeft waits until a node is as it was.
func (n *nodes) nothingLeft(node string, before map[string][]string) {
	n.Helper()
	testkit.Await(n, patience, func() error {
		for what, now := range n.leftovers(node) {
			if was := before[what]; !slices.Equal(now, was) {
				return fmt.Errorf("%s: now\n%s\nbefore\n%s", what, strings.Join(now, "\n"), strings.Join(was, "\n"))
			}
		}
		return nil
	})
}

// leftovers is everything on a node that a pod may leave: what → a sorted list.
func (n *nodes) leftovers(node string) map[string][]string {
	n.Helper()
	found := map[string][]string{}
	agent := n.u.Part(node).PID
	for _, p := range processesOf(n.T, n.u) {
		if !strings.Contains(p.line, " exec --data-dir ") { // our own
			found["processes"] = append(found["processes"], p.line)
		}
		if _, cgroup, ok := strings.Cut(p.line, " --cgroup "); ok && p.pid == agent {
			found["cgroups"] = folders(cgroup, 2)
		}
	}
	lines := func(text string) []string {
		all := strings.Split(strings.TrimSpace(text), "\n")
		slices.Sort(all)
		return all
	}
	for what, file := range map[string]string{"mounts of the node": fmt.Sprintf("/proc/%d/mounts", agent), "mounts of the machine": "/proc/self/mounts"} {
		text, err := os.ReadFile(file)
		check(n.T, err)
		found[what] = lines(string(text))
	}
	found["links, addresses and routes"] = lines(n.u.Exec(node, self(n.T), helperArg, "net"))
	if _, err := exec.LookPath("nft"); err == nil {
		counts := regexp.MustCompile(`packets \d+ bytes \d+`)
		found["packet rules"] = lines(counts.ReplaceAllString(n.u.Exec(node, "nft", "list", "ruleset"), ""))
	}
	for _, sub := range []string{"pods", "volumes"} {
		found[sub] = folders(filepath.Join(n.u.DataDir, "nodes", node, sub), 1)
	}
	for what := range found {
		slices.Sort(found[what])
	}
	return found
}

// folders lists the folders below root, so many levels deep.
func folders(root string, depth int) []string {
	var found []string
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error { // one may vanish meanwhile
		if err != nil || !d.IsDir() || path == root {
			return nil //nolint:nilerr // see above
		}
		rel, _ := filepath.Rel(root, path)
		found = append(found, rel)
		if strings.Count(rel, "/")+1 >= depth {
			return fs.SkipDir
		}
		return nil
	})
	return found
}
