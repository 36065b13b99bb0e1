package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

func volumeScenarios() []nodeScenario {
	return []nodeScenario{
		{"objects", volumeObjects},
		{"directories", volumeDirectories},
		{"token", volumeToken},
	}
}

// ConfigMaps, Secrets and the pod's own fields are files, which follow their objects.
func volumeObjects(n *nodes) {
	n.run("create", "configmap", "cm", "--from-literal=a=one", "--from-literal=b=two")
	n.run("create", "secret", "generic", "sec", "--from-literal=password=swordfish")
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {tier: front}}, spec: {containers: [{name: c, image: e2e/shell, volumeMounts: [
{name: cm, mountPath: /v/cm}, {name: item, mountPath: /v/item}, {name: sec, mountPath: /v/sec, readOnly: true}, {name: all, mountPath: /v/all}, {name: none, mountPath: /v/none}, {name: cm, mountPath: /v/single, subPath: a}]}],
volumes: [{name: cm, configMap: {name: cm}}, {name: item, configMap: {name: cm, defaultMode: 0400, items: [{key: b, path: deep/renamed}]}}, {name: sec, secret: {secretName: sec}},
{name: none, configMap: {name: none, optional: true}},
{name: all, projected: {sources: [{configMap: {name: cm}}, {secret: {name: sec}}, {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}]}}]}}`)
	n.awaitPod("p", patience, isReady)
	cat := func(file string) string { return n.run("exec", "p", "--", "cat", file) }
	for file, want := range map[string]string{
		"/v/cm/a": "one", "/v/cm/b": "two", "/v/item/deep/renamed": "two", "/v/sec/password": "swordfish", "/v/all/a": "one", "/v/all/password": "swordfish", "/v/all/labels": `tier="front"`, "/v/single": "one",
	} {
		if got := cat(file); strings.TrimSpace(got) != want {
			n.Errorf("%s: %q, want %q", file, got, want)
		}
	}
	if got := n.run("exec", "p", "--", "sh", "-c", "stat -L -c %a /v/item/deep/renamed; ls /v/none; touch /v/sec/x 2>&1 || true"); !strings.HasPrefix(got, "400\n") || !strings.Contains(got, "Read-only") {
		n.Errorf("%q", got)
	}
	n.run("patch", "configmap", "cm", "-p", `{"data":{"a":"changed","c":"new"}}`)
	n.run("patch", "secret", "sec", "-p", `{"stringData":{"password":"marlin"}}`)
	n.run("label", "pod", "p", "tier=back", "--overwrite")
	for file, want := range map[string]string{"/v/cm/a": "changed", "/v/cm/c": "new", "/v/all/a": "changed", "/v/sec/password": "marlin", "/v/all/labels": `tier="back"`} {
		n.await(func(context.Context) error {
			out, err := n.try("exec", "p", "--", "cat", file)
			if err != nil {
				return err
			}
			return says(out.Stdout, want)
		})
	}
	if got := cat("/v/single"); got != "one" {
		n.Errorf("a subPath does not follow, as in Kubernetes: %q", got)
	}
}

func volumeDirectories(n *nodes) {
	dir := n.TempDir()
	check(n.T, os.WriteFile(filepath.Join(dir, "given"), []byte("from the node"), 0o644))
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {terminationGracePeriodSeconds: 1, containers: [
{name: a, image: e2e/shell, volumeMounts: [{name: empty, mountPath: /shared}, {name: host, mountPath: /host}, {name: empty, mountPath: /sub, subPath: deep/er}, {name: memory, mountPath: /memory}]},
{name: b, image: e2e/shell, volumeMounts: [{name: empty, mountPath: /else/where}, {name: host, mountPath: /host, readOnly: true}]}],
volumes: [{name: empty, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}, {name: host, hostPath: {path: ` + dir + `, type: Directory}}]}}`)
	n.awaitPod("p", patience, isReady)
	in := func(container, script string) string {
		out, _ := n.try("exec", "p", "-c", container, "--", "sh", "-c", script+" 2>&1")
		return out.Stdout
	}
	in("a", "echo shared >/shared/file; echo sub >/sub/file")
	n.has(in("b", "cat /else/where/file /else/where/deep/er/file /host/given; touch /host/mine"), "shared", "sub", "from the node", "Read-only file system")
	n.has(in("a", "echo back >/host/back && cat /host/given"), "from the node")
	if text, err := os.ReadFile(filepath.Join(dir, "back")); err != nil || string(text) != "back\n" {
		n.Errorf("%q %v", text, err)
	}
	n.has(in("a", "stat -f -c %T /memory; dd if=/dev/zero of=/memory/x bs=1M count=3"), "tmpfs", "No space left on device")
	n.run("delete", "pod", "p")
	for _, path := range []string{"/shared", "/else", "/memory", "/sub"} {
		if _, err := os.Stat(path); err == nil {
			n.Errorf("a mount point is on the machine: %s", path)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "given")); err != nil {
		n.Errorf("the host path went with the pod: %v", err)
	}
}

// The token of the pod's service account is good for the API, for what it may do.
func volumeToken(n *nodes) {
	n.run("create", "serviceaccount", "reader")
	n.run("create", "role", "reader", "--verb=get,list", "--resource=pods")
	n.run("create", "rolebinding", "reader", "--role=reader", "--serviceaccount="+n.name+":reader")
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {serviceAccountName: reader, containers: [{name: c, image: e2e/shell, volumeMounts: [{name: t, mountPath: /t}]}],
volumes: [{name: t, projected: {sources: [{serviceAccountToken: {path: token, audience: somebody, expirationSeconds: 600}}]}}]}}`)
	n.awaitPod("p", patience, isReady)
	const dir = "/var/run/secrets/kubernetes.io/serviceaccount"
	ask := func(path, token string) string {
		out, err := n.try("exec", "p", "--", self(n.T), helperArg, "api", "https://10.200.0.1:6443"+path, dir+"/ca.crt", token)
		check(n.T, err)
		return out.Stdout + out.Stderr
	}
	n.has(ask("/api/v1/namespaces/"+n.name+"/pods/p", dir+"/token"), `"kind":"Pod"`, `"name":"p"`)
	n.has(ask("/api/v1/namespaces/"+n.name+"/secrets", dir+"/token"), "403", `system:serviceaccount:`+n.name+`:reader\" cannot list resource \"secrets\"`)
	n.has(ask("/api/v1/namespaces/"+n.name+"/pods/p", "/t/token"), "401") // it is for somebody else
	if got := n.run("exec", "p", "--", "cat", dir+"/namespace"); got != n.name {
		n.Errorf("namespace %q", got)
	}
}
