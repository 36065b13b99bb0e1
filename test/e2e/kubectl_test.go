package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// kubectlScenarios are what people do with kubectl, with both of them.
func kubectlScenarios() []scenario {
	return []scenario{
		{"apply", kubectlApply},
		{"server-side", kubectlServerSide},
		{"patch", kubectlPatch},
		{"print", kubectlPrint},
		{"describe", kubectlDescribe},
		{"explain", kubectlExplain},
		{"watch", kubectlWatch},
		{"about", kubectlAbout},
		{"every-kind", kubectlEveryKind},
		{"crd", kubectlCRD},
		{"expose", kubectlExpose},
		{"rollout", kubectlRollout},
		{"cascade", kubectlCascade},
		{"namespace", kubectlNamespace},
	}
}

const plainService = `{apiVersion: v1, kind: Service, metadata: {name: plain}, spec: {ports: [{name: a, port: %d}, {name: b, port: 81}]}}`

func kubectlApply(s *space) {
	manifest := filepath.Join(s.TempDir(), "plain.yaml")
	write := func(port int) {
		check(s.T, os.WriteFile(manifest, fmt.Appendf(nil, yaml(plainService), port), 0o600))
	}
	write(80)
	s.has(s.run("apply", "-f", manifest), "service/plain created")
	s.has(s.run("apply", "-f", manifest), "service/plain unchanged")
	if out, err := s.try("diff", "-f", manifest); err != nil || out.Stdout != "" {
		s.Errorf("diff without a difference: %v\n%s", err, out.Stdout)
	}
	write(8080)
	out, err := s.try("diff", "-f", manifest)
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		s.Errorf("diff with a difference: %v, want exit code 1", err)
	}
	s.has(out.Stdout, "- port: 80", "+ port: 8080")
	s.has(s.run("apply", "-f", manifest, "--dry-run=server"), "service/plain configured (server dry run)")
	s.has(s.run("get", "service", "plain"), "80/TCP,81/TCP")
	s.has(s.run("apply", "-f", manifest), "service/plain configured")
	s.has(s.run("get", "service", "plain"), "8080/TCP,81/TCP")

	// What is no longer in the manifest goes.
	check(s.T, os.WriteFile(manifest, []byte(yaml(`{apiVersion: v1, kind: Service, metadata: {name: plain}, spec: {ports: [{name: a, port: 8080}]}}`)), 0o600))
	s.run("apply", "-f", manifest)
	if got := s.run("get", "service", "plain", "-o", "jsonpath={.spec.ports[*].name}"); got != "a" {
		s.Errorf("ports %s, want a", got)
	}
	s.has(s.refused("create", "-f", manifest), `Error from server (AlreadyExists): error when creating "`+manifest+`": services "plain" already exists`)
	s.has(s.run("replace", "-f", manifest), "service/plain replaced")
	s.has(s.run("delete", "-f", manifest), `service "plain" deleted`)
	s.has(s.refused("get", "service", "plain"), `Error from server (NotFound): services "plain" not found`)
}

func kubectlServerSide(s *space) {
	apply := func(manager, value string, more ...string) (string, error) {
		manifest := fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: shared}, data: {%s}}", value)
		args := append([]string{"-n", s.name, "apply", "--server-side", "--field-manager", manager, "-f", "-"}, more...)
		out, err := s.kubectl.WithInput(yaml(manifest)).Try(args...)
		return out.Stdout + out.Stderr, err
	}
	step := func(wantError bool, want, manager, value string, more ...string) {
		s.Helper()
		text, err := apply(manager, value, more...)
		if (err != nil) != wantError {
			s.Errorf("%s applies %s: %v", manager, value, err)
		}
		s.has(text, want)
	}
	data := func(want string) {
		s.Helper()
		if got := s.run("get", "configmap", "shared", "-o", "jsonpath={.data}"); got != want {
			s.Errorf("data %s, want %s", got, want)
		}
	}
	step(false, "configmap/shared serverside-applied", "one", `a: "1"`)
	step(false, "configmap/shared serverside-applied", "two", `b: "1"`)
	data(`{"a":"1","b":"1"}`)
	step(true, `conflict with "one": .data.a`, "two", `a: "2", b: "1"`)
	data(`{"a":"1","b":"1"}`)
	step(false, "configmap/shared serverside-applied", "two", `a: "2", b: "1"`, "--force-conflicts")
	data(`{"a":"2","b":"1"}`)
	step(false, "configmap/shared serverside-applied", "two", `b: "1"`) // gives a up, which nobody else owns
	data(`{"b":"1"}`)
	s.has(s.run("get", "configmap", "shared", "-o", "yaml", "--show-managed-fields"), "manager: two", "operation: Apply")

	// Services merge their ports by number and protocol.
	service := func(manager, port string) {
		s.Helper()
		s.kubectl.WithInput(yaml(`{apiVersion: v1, kind: Service, metadata: {name: shared}, spec: {ports: [`+port+`]}}`)).
			Run("-n", s.name, "apply", "--server-side", "--field-manager", manager, "-f", "-")
	}
	service("one", "{name: a, port: 80}")
	service("two", "{name: b, port: 81}")
	if got := s.run("get", "service", "shared", "-o", "jsonpath={.spec.ports[*].name}"); got != "a b" {
		s.Errorf("ports %s, want a b", got)
	}
}

func kubectlPatch(s *space) {
	s.apply(fmt.Sprintf(plainService, 80))
	ports := func(want string) {
		s.Helper()
		if got := s.run("get", "service", "plain", "-o", `jsonpath={range .spec.ports[*]}{.name}={.port}->{.targetPort} {end}`); strings.TrimSpace(got) != want {
			s.Errorf("ports %s, want %s", got, want)
		}
	}
	s.run("patch", "service", "plain", "-p", `{"spec":{"ports":[{"port":81,"targetPort":8081}]}}`) // strategic: merges by port
	ports("a=80->80 b=81->8081")
	s.run("patch", "service", "plain", "--type=merge", "-p", `{"spec":{"ports":[{"name":"c","port":82}]}}`) // merge: a list is a value
	ports("c=82->82")
	s.run("patch", "service", "plain", "--type=json", "-p", `[{"op":"test","path":"/spec/ports/0/name","value":"c"},{"op":"replace","path":"/spec/ports/0/port","value":83}]`)
	ports("c=83->82")
	s.has(s.refused("patch", "service", "plain", "--type=json", "-p", `[{"op":"test","path":"/spec/ports/0/name","value":"z"}]`), "The request is invalid")
	s.has(s.run("patch", "service", "plain", "-p", `{"metadata":{"labels":null}}`), "service/plain patched (no change)")

	s.has(s.run("label", "service", "plain", "team=blue", "tier=web"), "service/plain labeled")
	s.has(s.refused("label", "service", "plain", "team=red"), "'team' already has a value (blue), and --overwrite is false")
	s.run("label", "service", "plain", "team=red", "tier-", "--overwrite")
	s.has(s.run("get", "services", "-l", "team=red,!tier", "--show-labels"), "plain", "team=red")
	s.has(s.run("annotate", "service", "plain", "note=a b c"), "service/plain annotated")
	if got := s.run("get", "service", "plain", "-o", "jsonpath={.metadata.annotations.note}"); got != "a b c" {
		s.Errorf("annotation %q", got)
	}
	s.run("set", "selector", "service", "plain", "app=plain")
	s.has(s.run("get", "service", "plain", "-o", "wide"), "app=plain")
}

func kubectlPrint(s *space) {
	somePods(s)
	get := func(args ...string) string { s.Helper(); return s.run(append([]string{"get"}, args...)...) }
	s.has(get("pods"), "NAME READY STATUS RESTARTS AGE", "some-run-1 0/1 Running 0")
	s.has(get("pods", "-o", "wide"), "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES", "10.1.0.11 node-a <none> <none>")
	s.has(get("services", "-o", "wide"), "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE SELECTOR", "some-service ClusterIP 10.96.", "80/TCP", "run=some-run")
	s.has(get("endpointslices"), "NAME ADDRESSTYPE PORTS ENDPOINTS AGE")
	s.has(get("endpoints"), "NAME ENDPOINTS AGE")
	s.has(get("nodes", "-o", "wide"), "NAME STATUS ROLES AGE VERSION INTERNAL-IP EXTERNAL-IP OS-IMAGE KERNEL-VERSION CONTAINER-RUNTIME", "node-a", "node-b")
	s.has(get("service/some-service", "pod/some-run-1", "-o", "name"), "service/some-service pod/some-run-1")
	s.has(get("pods", "-L", "run", "--no-headers"), "some-run-1 0/1 Running 0", "some-run")
	s.has(get("service", "some-service", "-o", "yaml"), "apiVersion: v1", "kind: Service", "targetPort: 8080", "loadBalancer: {}", "sessionAffinity: None")
	var service struct{ Spec struct{ ClusterIP string } }
	check(s.T, json.Unmarshal([]byte(get("service", "some-service", "-o", "json")), &service))
	for _, print := range []struct{ format, want string }{
		{"jsonpath={.spec.clusterIP}", service.Spec.ClusterIP},
		{"go-template={{.spec.clusterIP}}", service.Spec.ClusterIP},
		{"jsonpath={.spec.ports[?(@.name==\"http\")].targetPort}", "8080"},
		{"custom-columns=IP:.spec.clusterIP,PORT:.spec.ports[0].port", "IP PORT " + service.Spec.ClusterIP + " 80"},
	} {
		if got := squeeze(get("service", "some-service", "-o", print.format)); got != print.want {
			s.Errorf("-o %s: %s, want %s", print.format, got, print.want)
		}
	}
	if got := squeeze(get("pods", "-o", "custom-columns=NAME:.metadata.name,IP:.status.podIP", "--sort-by=.status.podIP", "--no-headers")); got !=
		"some-run-1 10.1.0.11 some-run-2 10.1.1.12 some-run-3 10.1.1.13" {
		s.Errorf("sorted: %s", got)
	}
	s.has(get("pods", "--field-selector", "spec.nodeName=node-b", "-o", "name"), "pod/some-run-2 pod/some-run-3")
	s.has(get("pods", "--chunk-size=1", "-o", "name"), "pod/some-run-1 pod/some-run-2 pod/some-run-3")
	s.has(get("all"), "pod/some-run-1", "service/some-service")
}

func kubectlDescribe(s *space) {
	somePods(s)
	s.apply(`
{apiVersion: v1, kind: Secret, metadata: {name: secret}, stringData: {password: hidden}}
---
{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: in}, spec: {rules: [{host: a.example.test, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: some-service, port: {number: 80}}}}]}}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: policy}, spec: {podSelector: {matchLabels: {run: some-run}}}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: role}, rules: [{apiGroups: [""], resources: [services], verbs: [get]}]}
`)
	slice := s.slices("some-service")[0].Name
	for _, d := range []struct {
		object string
		want   []string
	}{
		{"endpoints/some-service", []string{"Subsets:", "Addresses: 10.1.0.11,10.1.1.12,10.1.1.13", "http 8080 TCP"}},
		{"endpointslice/" + slice, []string{"AddressType: IPv4", "http 8080 TCP", "Addresses: 10.1.0.11", "Ready: true", "TargetRef: Pod/some-run-1", "NodeName: node-a", "Zone: zone-1"}},
		{"node/node-a", []string{"Name: node-a", "topology.kubernetes.io/zone=zone-1", "Non-terminated Pods:", "some-run-1"}},
		{"namespace/" + s.name, []string{"Name: " + s.name, "Status: Active"}},
		{"secret/secret", []string{"Type: Opaque", "password: 6 bytes"}},
		{"ingress/in", []string{"a.example.test", "some-service:80"}},
		{"networkpolicy/policy", []string{"PodSelector: run=some-run"}},
		{"role/role", []string{"services [] [] [get]"}},
		{"serviceaccount/default", []string{"Name: default"}},
	} {
		text := s.run("describe", d.object)
		s.has(text, d.want...)
		if strings.Contains(text, "hidden") {
			s.Error("describe shows a secret")
		}
	}
}

func kubectlExplain(s *space) {
	for _, e := range []struct {
		field string
		want  []string
	}{
		{"service.spec.ports", []string{"KIND: Service VERSION: v1", "FIELD: ports <[]ServicePort>", "targetPort <IntOrString>"}},
		{"endpoints.subsets", []string{"KIND: Endpoints", "notReadyAddresses <[]EndpointAddress>"}},
		{"endpointslices.endpoints.conditions", []string{"GROUP: discovery.k8s.io KIND: EndpointSlice VERSION: v1", "terminating <boolean>"}},
		{"pod.status.podIPs", []string{"KIND: Pod", "ip <string> -required-"}},
		{"deployment.spec.strategy", []string{"GROUP: apps", "rollingUpdate <RollingUpdateDeployment>"}},
		{"lease.spec", []string{"holderIdentity <string>"}},
		{"crd.spec.versions.schema", []string{"openAPIV3Schema <JSONSchemaProps>"}},
	} {
		s.has(s.run("explain", e.field), e.want...)
	}
	s.has(s.run("explain", "service", "--recursive"), "sessionAffinityConfig <SessionAffinityConfig>", "timeoutSeconds <integer>")
	s.has(s.refused("explain", "service.spec.nothing"), `field "nothing" does not exist`)
	for line := range strings.Lines(s.run("api-resources", "--verbs=list", "--no-headers")) {
		fields := strings.Fields(line) // the second, short names, may be missing
		version := fields[len(fields)-3]
		if strings.Contains(version, "example.test") {
			continue // another test's, which may be gone by now
		}
		s.has(s.run("explain", fields[0], "--api-version="+version), "KIND: "+fields[len(fields)-1], "FIELDS:", "metadata <ObjectMeta>")
	}
}

// follow runs a command that goes on, and hands over its lines; the command ends with the test.
func (s *space) follow(args ...string) <-chan string {
	s.Helper()
	cmd := s.kubectl.Command(append([]string{"-n", s.name}, args...)...)
	out, err := cmd.StdoutPipe()
	check(s.T, err)
	check(s.T, cmd.Start())
	lines := make(chan string, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			lines <- scanner.Text()
		}
		_ = cmd.Wait() // it is killed
	}()
	s.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	return lines
}

// next skips to the first line that holds the text.
func (s *space) next(lines <-chan string, text string) string {
	s.Helper()
	late := time.After(patience)
	var skipped []string
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				s.Fatalf("no line with %q; got %q", text, skipped)
			}
			if strings.Contains(squeeze(line), text) {
				return line
			}
			skipped = append(skipped, line)
		case <-late:
			s.Fatalf("no line with %q in time; got %q", text, skipped)
		}
	}
}

func kubectlWatch(s *space) {
	s.apply(webService)
	endpoints := s.follow("get", "endpoints", "-w")
	events := s.follow("get", "endpointslices", "--watch-only", "--output-watch-events", "-o", "custom-columns=TYPE:.type,ADDRESSES:.object.endpoints[*].addresses[*]")
	s.next(endpoints, "web <none>")
	s.pods("app=web", 8080, "a", "b")
	s.status("a", true, "10.2.0.1")
	s.next(endpoints, "web 10.2.0.1:8080")
	s.next(events, "MODIFIED 10.2.0.1")
	s.status("b", true, "10.2.0.2")
	s.next(endpoints, "web 10.2.0.1:8080,10.2.0.2:8080")
	s.status("a", false, "10.2.0.1")
	s.next(endpoints, "web 10.2.0.2:8080")
	s.run("delete", "service", "web")
	s.next(events, "DELETED")
	s.apply(webService)
	s.next(events, "ADDED 10.2.0.1,10.2.0.2")

	// wait is a watch that ends.
	waiting := s.follow("wait", "service/web", "--for=jsonpath={.metadata.labels.done}=yes", "--timeout=20s")
	s.run("label", "service", "web", "done=yes")
	s.next(waiting, "service/web condition met")
}

func kubectlAbout(s *space) {
	out, err := s.try("version")
	check(s.T, err)
	s.has(out.Stdout, "Server Version: v1.37.")
	if s.kubectl.Name != "kubectl" {
		s.has(out.Stdout, "Client Version: v1.37.")
		if out.Stderr != "" {
			s.Errorf("the built-in kubectl warns: %s", out.Stderr)
		}
	}
	s.has(s.run("cluster-info"), "Kubernetes control plane", "is running at", "https://"+s.server.Listen)
	resources := s.run("api-resources", "--no-headers", "-o", "wide")
	for _, want := range []string{
		"namespaces ns v1 false Namespace", "nodes no v1 false Node", "pods po v1 true Pod", "services svc v1 true Service", "endpoints ep v1 true Endpoints",
		"events ev v1 true Event", "configmaps cm v1 true ConfigMap", "secrets v1 true Secret", "serviceaccounts sa v1 true ServiceAccount",
		"events ev events.k8s.io/v1 true Event", "endpointslices discovery.k8s.io/v1 true EndpointSlice",
		"ingresses ing networking.k8s.io/v1 true Ingress", "ingressclasses networking.k8s.io/v1 false IngressClass", "networkpolicies netpol networking.k8s.io/v1 true NetworkPolicy",
		"servicecidrs networking.k8s.io/v1 false ServiceCIDR", "ipaddresses ip networking.k8s.io/v1 false IPAddress", "leases coordination.k8s.io/v1 true Lease",
		"deployments deploy apps/v1 true Deployment", "replicasets rs apps/v1 true ReplicaSet", "daemonsets ds apps/v1 true DaemonSet", "statefulsets sts apps/v1 true StatefulSet",
		"roles rbac.authorization.k8s.io/v1 true Role", "clusterrolebindings rbac.authorization.k8s.io/v1 false ClusterRoleBinding",
		"tokenreviews authentication.k8s.io/v1 false TokenReview", "subjectaccessreviews authorization.k8s.io/v1 false SubjectAccessReview",
		"customresourcedefinitions crd,crds apiextensions.k8s.io/v1 false CustomResourceDefinition",
	} {
		s.has(resources, want)
	}
	s.has(s.run("api-versions"), "v1", "discovery.k8s.io/v1", "apps/v1", "events.k8s.io/v1")
	s.has(s.run("get", "--raw", "/readyz"), "ok")
	s.has(s.run("get", "--raw", "/version"), `"gitVersion": "v1.37.`)
	s.has(s.run("get", "service", "kubernetes", "-n", "default"), "kubernetes ClusterIP 10.96.0.1 <none> 443/TCP")
	s.has(s.run("get", "servicecidr", "kubernetes"), "10.96.0.0/16,fd00:96::/112")
}

// kubectlEveryKind makes, changes, lists and deletes an object of each kind.
func kubectlEveryKind(s *space) {
	const template = `template: {metadata: {labels: {app: x}}, spec: {nodeName: node-a, containers: [{name: c, image: i}]}}`
	global := s.name + "-x"
	kinds := map[string]string{
		"configmap": `apiVersion: v1`, "secret": `apiVersion: v1`, "serviceaccount": `apiVersion: v1`, "endpoints": `apiVersion: v1`,
		"pod":                `apiVersion: v1, spec: {containers: [{name: c, image: i}]}`,
		"service":            `apiVersion: v1, spec: {ports: [{port: 80}]}`,
		"namespace":          `apiVersion: v1`,
		"node":               `apiVersion: v1`,
		"event":              `apiVersion: v1, involvedObject: {kind: Pod, namespace: ` + s.name + `, name: x}, reason: Seen, type: Normal`,
		"endpointslice":      `apiVersion: discovery.k8s.io/v1, addressType: FQDN, endpoints: [{addresses: [a.example.test]}]`,
		"lease":              `apiVersion: coordination.k8s.io/v1, spec: {holderIdentity: me}`,
		"ingress":            `apiVersion: networking.k8s.io/v1, spec: {defaultBackend: {service: {name: x, port: {number: 80}}}}`,
		"ingressclass":       `apiVersion: networking.k8s.io/v1, spec: {controller: example.test/c}`,
		"networkpolicy":      `apiVersion: networking.k8s.io/v1, spec: {podSelector: {}}`,
		"deployment":         `apiVersion: apps/v1, spec: {replicas: 0, selector: {matchLabels: {app: x}}, ` + template + `}`,
		"replicaset":         `apiVersion: apps/v1, spec: {replicas: 0, selector: {matchLabels: {app: x}}, ` + template + `}`,
		"statefulset":        `apiVersion: apps/v1, spec: {replicas: 0, serviceName: x, selector: {matchLabels: {app: x}}, ` + template + `}`,
		"daemonset":          `apiVersion: apps/v1, spec: {selector: {matchLabels: {app: x}}, template: {metadata: {labels: {app: x}}, spec: {nodeSelector: {no: where}, containers: [{name: c, image: i}]}}}`,
		"role":               `apiVersion: rbac.authorization.k8s.io/v1`,
		"rolebinding":        `apiVersion: rbac.authorization.k8s.io/v1, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: x}`,
		"clusterrole":        `apiVersion: rbac.authorization.k8s.io/v1`,
		"clusterrolebinding": `apiVersion: rbac.authorization.k8s.io/v1, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: x}`,
	}
	kindNames := map[string]string{
		"configmap": "ConfigMap", "secret": "Secret", "serviceaccount": "ServiceAccount", "endpoints": "Endpoints", "pod": "Pod", "service": "Service",
		"namespace": "Namespace", "node": "Node", "event": "Event", "endpointslice": "EndpointSlice", "lease": "Lease", "ingress": "Ingress", "ingressclass": "IngressClass",
		"networkpolicy": "NetworkPolicy", "deployment": "Deployment", "replicaset": "ReplicaSet", "statefulset": "StatefulSet", "daemonset": "DaemonSet",
		"role": "Role", "rolebinding": "RoleBinding", "clusterrole": "ClusterRole", "clusterrolebinding": "ClusterRoleBinding",
	}
	global = global[max(0, len(global)-50):]
	var manifest strings.Builder
	var objects []string
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		fmt.Fprintf(&manifest, "---\n{kind: %s, metadata: {name: %s}, %s}\n", kindNames[kind], global, kinds[kind])
		objects = append(objects, kind+"/"+global)
	}
	printed := s.apply(manifest.String())
	for _, object := range objects {
		kind, name, _ := strings.Cut(object, "/")
		found := false
		for line := range strings.Lines(printed) {
			found = found || strings.HasPrefix(line, kind) && strings.HasSuffix(strings.TrimSpace(line), "/"+name+" created")
		}
		if !found {
			s.Errorf("%s was not created:\n%s", object, printed)
		}
	}
	s.run(append(append([]string{"label"}, objects...), "seen=yes")...)
	names := s.run(append([]string{"get", "-o", "name"}, objects...)...)
	if got := len(strings.Fields(names)); got != len(objects) {
		s.Errorf("%d of %d objects:\n%s", got, len(objects), names)
	}
	s.run(append([]string{"describe"}, objects...)...)
	s.run(append([]string{"delete", "--wait=false"}, objects...)...)
	s.await(func(context.Context) error {
		out, err := s.try(append([]string{"get", "--ignore-not-found", "-o", "name"}, objects...)...)
		if err == nil && out.Stdout != "" {
			err = fmt.Errorf("left: %s", out.Stdout)
		}
		return err
	})
}

func kubectlExpose(s *space) {
	s.agent("10.3.0.")
	s.run("apply", "-f", played(s.T, "deployment.yaml"))
	s.run("delete", "service", "web")
	s.has(s.run("expose", "deployment", "web", "--port=80", "--target-port=8080"), "service/web exposed")
	s.run("rollout", "status", "deployment/web", "--timeout=20s")
	s.has(s.run("scale", "deployment/web", "--replicas=3"), "deployment.apps/web scaled")
	s.await(func(context.Context) error {
		if got := strings.Fields(ready(s.slices("web")...)); len(got) != 3 {
			return fmt.Errorf("endpoints %q, want three", got)
		}
		return nil
	})
	s.has(s.run("get", "deployment", "web"), "web 3/3 3 3")
	s.has(s.refused("scale", "deployment/web", "--replicas=1", "--current-replicas=5"), "Expected replicas to be 5, was 3")
	pod := strings.TrimPrefix(strings.Fields(s.run("get", "pods", "-l", "app=web", "-o", "name"))[0], "pod/")
	s.run("label", "pod", pod, "only=this")
	s.has(s.run("expose", "pod", pod, "--name=one", "--port=81", "--target-port=8080", "--selector=only=this", "--type=NodePort"), "service/one exposed")
	s.await(func(context.Context) error {
		if got := strings.Fields(ready(s.slices("one")...)); len(got) != 1 {
			return fmt.Errorf("endpoints %q, want one", got)
		}
		return nil
	})
	s.has(s.run("get", "service", "one"), "one NodePort", "81:3")
	s.run("create", "service", "clusterip", "made", "--tcp=80:8080")
	s.run("create", "service", "externalname", "name", "--external-name=db.example.test")
	s.has(s.run("get", "services"), "made ClusterIP", "name ExternalName <none> db.example.test")
	s.has(s.run("run", "runs", "--image=i", "--port=8080", "--expose"), "service/runs created", "pod/runs created")
}

func kubectlRollout(s *space) {
	s.agent("10.4.0.")
	s.run("apply", "-f", played(s.T, "deployment.yaml"))
	done := func(want string) {
		s.Helper()
		s.has(s.run("rollout", "status", "deployment/web", "--timeout=20s"), "successfully rolled out")
		if got := s.run("get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0].image} {.status.updatedReplicas}/{.status.availableReplicas}"); got != want+" 2/2" {
			s.Errorf("rolled out: %s, want %s", got, want)
		}
	}
	done("example.test/web")
	r := s.record("web")
	s.run("set", "image", "deployment/web", "web=example.test/web:2")
	done("example.test/web:2")
	s.has(s.run("rollout", "history", "deployment/web"), "1", "2")
	s.has(s.run("rollout", "undo", "deployment/web"), "deployment.apps/web rolled back")
	done("example.test/web")
	s.run("rollout", "restart", "deployment/web")
	done("example.test/web")
	s.run("rollout", "pause", "deployment/web")
	s.run("rollout", "resume", "deployment/web")
	s.has(s.run("get", "events"), "ScalingReplicaSet", "SuccessfulCreate")

	var want []string
	s.await(func(context.Context) error {
		want = strings.Fields(s.run("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"))
		if len(want) != 2 {
			return fmt.Errorf("pods %q", want)
		}
		return nil
	})
	slices.Sort(want)
	r.neverEmpty(endpointsManager, want[0]+":8080 "+want[1]+":8080")
}

func kubectlCascade(s *space) {
	s.agent("10.5.0.")
	deploy := func() {
		s.Helper()
		s.run("apply", "-f", played(s.T, "deployment.yaml"))
		s.run("rollout", "status", "deployment/web", "--timeout=20s")
	}
	left := func() string { return s.run("get", "deployments,replicasets,pods", "-l", "app=web", "-o", "name") }

	deploy()
	s.run("delete", "deployment", "web", "--cascade=foreground", "--timeout=20s")
	if got := left(); got != "" { // what it owned went first
		s.Errorf("foreground left %s", got)
	}
	deploy()
	s.run("delete", "deployment", "web", "--cascade=background")
	s.await(func(context.Context) error {
		if got := left(); got != "" {
			return fmt.Errorf("background left %s", got)
		}
		return nil
	})
	deploy()
	s.run("delete", "deployment", "web", "--cascade=orphan")
	kept := strings.Fields(left())
	if len(kept) != 3 {
		s.Errorf("orphan left %q, want a ReplicaSet and two pods", kept)
	}
	owners := func(object string) string {
		return s.run("get", object, "-l", "app=web", "-o", "jsonpath={.items[*].metadata.ownerReferences}")
	}
	if got := owners("replicasets"); got != "" {
		s.Errorf("the orphan has owners %s", got)
	}
	s.run("delete", "replicaset", "-l", "app=web", "--cascade=orphan")
	if got := strings.Fields(left()); len(got) != 2 || owners("pods") != "" {
		s.Errorf("orphan left %q with owners %s, want two pods without", got, owners("pods"))
	}
	deploy() // adopts them
	s.run("delete", "deployment", "web")
	s.await(func(context.Context) error {
		if got := left(); got != "" {
			return fmt.Errorf("left %s", got)
		}
		return nil
	})
}

func kubectlNamespace(s *space) {
	root := func() {
		s.Helper()
		s.run("wait", "--for=create", "serviceaccount/default", "configmap/kube-root-ca.crt", "--timeout=20s")
		ca, err := os.ReadFile(filepath.Join(s.server.DataDir, "pki", "ca.crt"))
		check(s.T, err)
		if got := s.run("get", "configmap", "kube-root-ca.crt", `-o=jsonpath={.data.ca\.crt}`); got != string(ca) {
			s.Errorf("kube-root-ca.crt is\n%s", got)
		}
	}
	root()
	s.run("delete", "configmap", "kube-root-ca.crt")
	s.run("delete", "serviceaccount", "default")
	root() // they come back

	s.agent("10.6.0.")
	s.run("apply", "-f", example(s.T, "my-service.yaml"), "-f", example(s.T, "headless.yaml"))
	// Of pods with the usual 30 s to end, upstream's namespace controller looks again after 16 s.
	s.apply(`{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 2, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}},
  spec: {nodeName: node-a, terminationGracePeriodSeconds: 1, containers: [{name: web, image: i}]}}}}`)
	s.run("create", "secret", "generic", "secret", "--from-literal=a=b")
	s.run("create", "role", "role", "--verb=get", "--resource=services")
	s.run("rollout", "status", "deployment/web", "--timeout=20s")
	s.awaitReady("my-service", mirrorManager, "192.0.2.45:9376")
	s.has(s.run("delete", "namespace", s.name, "--timeout=20s"), "deleted")
	s.has(s.refused("get", "namespace", s.name), "not found")
	s.has(s.refused("create", "configmap", "late"), `namespaces "`+s.name+`" not found`)
	kinds := strings.Fields(s.run("api-resources", "--namespaced", "--verbs=list", "-o", "name"))
	kinds = slices.DeleteFunc(kinds, func(kind string) bool { return strings.Contains(kind, "example.test") })
	if got := s.run("get", strings.Join(kinds, ","), "-o", "name"); got != "" {
		s.Errorf("left after the namespace was deleted:\n%s", got)
	}
	s.run("create", "namespace", s.name)
	root()
	_, err := s.client.CoreV1().Services(s.name).List(s.Context(), metav1.ListOptions{})
	check(s.T, err)
}
