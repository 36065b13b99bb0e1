package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/testkit"
)

func specScenarios() []nodeScenario {
	return []nodeScenario{
		{"environment", specEnv},
		{"host port", specHostPort},
		{"host network", specHostNetwork},
		{"user", specUser},
		{"shared processes", specShared},
		{"image", specImage},
		{"resources", specResources},
	}
}

// imageTable is a file for --images: an image that is this machine's shell, and one with files of its own.
func imageTable(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	check(t, os.MkdirAll(filepath.Join(root, "etc"), 0o755))
	check(t, os.WriteFile(filepath.Join(root, "etc", "own"), []byte("own file\n"), 0o644))
	program := testkit.Binary(t)
	if err := os.Link(program, filepath.Join(root, "program")); err != nil {
		from, err := os.Open(program)
		check(t, err)
		defer from.Close() //nolint:errcheck // only read
		to, err := os.OpenFile(filepath.Join(root, "program"), os.O_CREATE|os.O_WRONLY, 0o755)
		check(t, err)
		_, err = io.Copy(to, from)
		check(t, errors.Join(err, to.Close()))
	}
	file := filepath.Join(dir, "images.yaml")
	check(t, os.WriteFile(file, []byte(`images:
- {name: "e2e/shell:*", entrypoint: [bash, -c], args: ["echo from the image; exec sleep 1000"], workingDir: /tmp, env: [{name: FROM, value: image}, {name: BOTH, value: image}]}
- {name: e2e/rooted, entrypoint: [/program, endpointd-echo], rootfs: `+root+`}
`), 0o600))
	return file
}

func specEnv(n *nodes) {
	n.run("create", "configmap", "cm", "--from-literal=key=from the map", "--from-literal=OTHER=all of it")
	n.run("create", "secret", "generic", "sec", "--from-literal=key=from the secret")
	n.run("create", "service", "clusterip", "backend", "--tcp=80")
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {tier: front}, annotations: {note: remember}}, spec: {containers: [{name: c, image: endpointd/echo, resources: {limits: {cpu: 250m, memory: 64Mi}},
envFrom: [{prefix: P_, configMapRef: {name: cm}}, {secretRef: {name: none, optional: true}}],
env: [{name: PLAIN, value: "x"}, {name: COMPOSED, value: "$(PLAIN)-$(MAPPED)-$$(PLAIN)-$(NOBODY)"}, {name: MAPPED, valueFrom: {configMapKeyRef: {name: cm, key: key}}},
{name: AFTER, value: "$(PLAIN)-$(MAPPED)"},
{name: SECRET, valueFrom: {secretKeyRef: {name: sec, key: key}}}, {name: OPTIONAL, valueFrom: {secretKeyRef: {name: sec, key: none, optional: true}}},
{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}, {name: UID_, valueFrom: {fieldRef: {fieldPath: metadata.uid}}},
{name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}, {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}},
{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}, {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}},
{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}, {name: HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}},
{name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}, {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}]}]}}`)
	pod := n.awaitPod("p", patience, isReady)
	got := n.run("exec", "p", "--", "env")
	for name, want := range map[string]string{
		"PLAIN": "x", "COMPOSED": "x-$(MAPPED)-$(PLAIN)-$(NOBODY)", "AFTER": "x-from the map", "MAPPED": "from the map", "P_key": "from the map", "P_OTHER": "all of it",
		"SECRET": "from the secret", "NAME": "p", "NAMESPACE": n.name, "UID_": string(pod.UID), "TIER": "front", "NOTE": "remember",
		"NODE": pod.Spec.NodeName, "ACCOUNT": "default", "IP": pod.Status.PodIP, "IPS": pod.Status.PodIP, "HOST": pod.Status.HostIP,
		"CPU": "250", "MEMORY": "64", "BACKEND_SERVICE_PORT": "80", "KUBERNETES_SERVICE_PORT_HTTPS": "443", "HOSTNAME": "p",
	} {
		if !strings.Contains("\n"+got, "\n"+name+"="+want+"\n") {
			n.Errorf("%s is not %q in\n%s", name, want, got)
		}
	}
	if strings.Contains(got, "OPTIONAL=") {
		n.Errorf("an optional one that is not there:\n%s", got)
	}
}

// A host port leads to the pod, from the node and from others.
func specHostPort(n *nodes) {
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {nodeName: node-2, terminationGracePeriodSeconds: 1, containers: [{name: c, image: endpointd/echo, ports: [{containerPort: 8080, hostPort: 18080}]}]}}`)
	n.awaitPod("p", patience, isReady)
	for _, node := range []string{"", "node-1", "node-2"} {
		n.has(n.get(node, "http://10.200.0.12:18080/"), "p ")
	}
	n.run("delete", "pod", "p")
	if text, err := n.tryGet("", "http://10.200.0.12:18080/"); err == nil {
		n.Errorf("the host port of a pod that is gone answers %q", text)
	}
}

func specHostNetwork(n *nodes) {
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {nodeName: node-3, hostNetwork: true, terminationGracePeriodSeconds: 1, containers: [{name: c, image: endpointd/echo, env: [{name: PORT, value: "18090"}], ports: [{containerPort: 18090}]}]}}`)
	pod := n.awaitPod("p", patience, isReady)
	if pod.Status.PodIP != "10.200.0.13" || pod.Status.HostIP != pod.Status.PodIP {
		n.Errorf("addresses %s, %s", pod.Status.PodIP, pod.Status.HostIP)
	}
	n.has(n.get("node-1", "http://10.200.0.13:18090/"), "node-3")
	if name := n.run("exec", "p", "--", "cat", "/proc/sys/kernel/hostname"); name != "node-3\n" {
		n.Errorf("host name %q", name)
	}
}

// rootUser is for pods of other users.
func rootUser() testkit.Feature {
	return testkit.Feature{Name: "root", Probe: func(context.Context) error {
		if os.Geteuid() != 0 {
			return errors.New("the user namespace of somebody who is not root has no other users")
		}
		return nil
	}}
}

func specUser(n *nodes) {
	testkit.Need(n.T, rootUser())
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {securityContext: {runAsUser: 1234, runAsGroup: 2345, supplementalGroups: [3456], fsGroup: 4567}, containers: [
{name: c, image: e2e/shell, securityContext: {capabilities: {add: [NET_BIND_SERVICE], drop: [ALL]}, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true}, volumeMounts: [{name: d, mountPath: /d}]},
{name: root, image: e2e/shell, securityContext: {runAsUser: 0}}], volumes: [{name: d, emptyDir: {}}]}}`)
	n.awaitPod("p", patience, isReady)
	n.has(n.run("exec", "p", "-c", "c", "--", "id"), "uid=1234 gid=2345", "2345,3456,4567")
	n.has(n.run("exec", "p", "-c", "root", "--", "id", "-u"), "0")
	n.has(n.run("exec", "p", "-c", "c", "--", "head", "-c", "2", "/var/run/secrets/kubernetes.io/serviceaccount/token"), "ey") // its user can go there
	if text := n.run("exec", "p", "-c", "c", "--", "sh", "-c", "touch /d/mine && stat -c %g /d/mine; touch /usr/mine 2>&1 || true; grep NoNewPrivs /proc/self/status"); !strings.HasPrefix(text, "4567\n") ||
		!strings.Contains(text, "Read-only file system") || !strings.Contains(text, "NoNewPrivs:\t1") {
		n.Errorf("%q", text)
	}
}

// Containers of a pod share its network and, when it says so, its processes.
func specShared(n *nodes) {
	manifest := func(name string, share bool) string {
		return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {shareProcessNamespace: %v, containers: [{name: a, image: endpointd/echo}, {name: b, image: e2e/shell}]}}
---
`, name, share)
	}
	n.apply(manifest("shared", true) + manifest("apart", false))
	n.awaitPod("shared", patience, isReady)
	n.awaitPod("apart", patience, isReady)
	const list = `for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline; echo; done`
	if text := n.run("exec", "shared", "-c", "b", "--", "bash", "-c", list); !strings.Contains(text, "endpointd-echo") {
		n.Errorf("shared: %s", text)
	}
	if text := n.run("exec", "apart", "-c", "b", "--", "bash", "-c", list); strings.Contains(text, "endpointd-echo") || !strings.Contains(text, "sleep 1000") {
		n.Errorf("not shared: %s", text)
	}
	n.has(n.run("exec", "apart", "-c", "b", "--", self(n.T), helperArg, "get", "http://127.0.0.1:8080/"), "apart")
}

func specImage(n *nodes) {
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: shell}, spec: {containers: [{name: c, image: "e2e/shell:v1", env: [{name: BOTH, value: pod}]}, {name: own, image: "e2e/shell:v2", args: ["echo from the pod; exec sleep 1000"], workingDir: /usr}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: rooted}, spec: {containers: [{name: c, image: e2e/rooted, volumeMounts: [{name: d, mountPath: /deep/down}]}], volumes: [{name: d, emptyDir: {}}]}}`)
	n.awaitPod("shell", patience, isReady)
	pod := n.awaitPod("rooted", patience, isReady)
	n.await(func(context.Context) error { return says(n.run("logs", "shell", "-c", "c"), "from the image") })
	n.await(func(context.Context) error { return says(n.run("logs", "shell", "-c", "own"), "from the pod") })
	n.has(n.run("exec", "shell", "-c", "c", "--", "bash", "-c", "echo $FROM $BOTH; pwd"), "image pod /tmp")
	n.has(n.run("exec", "shell", "-c", "own", "--", "pwd"), "/usr")

	n.has(n.get("", fmt.Sprintf("http://%s:8080/", pod.Status.PodIP)), "rooted")
	n.has(n.run("exec", "rooted", "--", "/program", "version"), "endpointd")
	n.has(n.refused("exec", "rooted", "--", "bash"), "bash") // the machine's is out of reach
}

// Limits are the kernel's, where there is cgroup v2.
func specResources(n *nodes) {
	testkit.Need(n.T, testkit.Feature{Name: "cgroup2", Probe: func(context.Context) error { return cgroups() }})
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {restartPolicy: Never, containers: [{name: c, image: e2e/shell, resources: {limits: {memory: 32Mi, cpu: 500m}}, args: ["sleep 0.5; x=$(head -c 200000000 /dev/zero | tr '\\0' x); sleep 1000"]}]}}`)
	pod := n.awaitPod("p", patience, phaseIs("Failed"))
	if s := pod.Status.ContainerStatuses[0].State.Terminated; s == nil || s.Reason != "OOMKilled" || s.ExitCode != 137 {
		n.Errorf("%s", briefly(pod))
	}
}

// cgroups says why no cgroup v2 hierarchy limits memory.
func cgroups() error {
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if text, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err == nil && strings.Contains(string(text), "memory") {
			return nil
		}
	}
	return errors.New("no cgroup v2 with the memory controller")
}
