package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// badScenarios: what is wrong is refused in upstream's words, with an exit code, and nothing is changed.
func badScenarios() []scenario {
	return []scenario{{"manifests", badManifests}, {"commands", badCommands}, {"bodies", badBodies}}
}

// everything is all that a namespace holds, with resource versions.
func (s *space) everything() string {
	s.Helper()
	var all strings.Builder
	for _, path := range []string{
		"/api/v1/namespaces/" + s.name + "/services", "/api/v1/namespaces/" + s.name + "/endpoints", "/api/v1/namespaces/" + s.name + "/configmaps",
		"/api/v1/namespaces/" + s.name + "/pods", "/apis/discovery.k8s.io/v1/namespaces/" + s.name + "/endpointslices",
	} {
		raw, err := s.client.RESTClient().Get().AbsPath(path).DoRaw(s.Context())
		check(s.T, err)
		var list struct{ Items []json.RawMessage }
		check(s.T, json.Unmarshal(raw, &list))
		for _, item := range list.Items {
			all.Write(item)
			all.WriteByte('\n')
		}
	}
	return all.String()
}

// unchanged runs f and fails if it changed something. It begins when the namespace is quiet.
func (s *space) unchanged(f func()) {
	s.Helper()
	s.run("wait", "--for=create", "configmap/kube-root-ca.crt", "--timeout=20s")
	s.apply(`{apiVersion: v1, kind: Service, metadata: {name: kept}, spec: {ports: [{name: a, port: 80, targetPort: 9376}]}}
---
{apiVersion: v1, kind: Endpoints, metadata: {name: kept}, subsets: [{addresses: [{ip: 192.0.2.45}], ports: [{name: a, port: 9376}]}]}`)
	s.awaitReady("kept", mirrorManager, "192.0.2.45:9376")
	before := s.everything()
	f()
	if after := s.everything(); after != before {
		s.Errorf("what was refused changed something:\nbefore\n%s\nafter\n%s", before, after)
	}
}

func badManifests(s *space) {
	ep := func(address, port string) string {
		return `{apiVersion: v1, kind: Endpoints, metadata: {name: e}, subsets: [{addresses: [{ip: "` + address + `"}], ports: [{port: ` + port + `}]}]}`
	}
	slice := func(address, port string) string {
		return `{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: e}, addressType: IPv4, endpoints: [{addresses: ["` + address + `"]}], ports: [{port: ` + port + `}]}`
	}
	svc := func(spec string) string {
		return `{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {` + spec + `}}`
	}
	named := func(kind, name string) string {
		return `{apiVersion: v1, kind: ` + kind + `, metadata: {name: ` + name + `}, spec: {ports: [{port: 80}]}}`
	}
	const (
		badPort   = ": must be between 1 and 65535, inclusive"
		address   = `The Endpoints "e" is invalid: subsets[0].addresses[0].ip: Invalid value: `
		endpoint  = `The EndpointSlice "e" is invalid: endpoints[0].addresses[0]: Invalid value: `
		loopback  = ": may not be in the loopback range (127.0.0.0/8, ::1/128)"
		linkLocal = ": may not be in the link-local range (169.254.0.0/16, fe80::/10)"
	)
	s.unchanged(func() {
		for _, bad := range []struct{ manifest, want string }{
			{ep("192.0.2.45", "0"), `The Endpoints "e" is invalid: subsets[0].ports[0].port: Invalid value: 0` + badPort},
			{ep("192.0.2.45", "65536"), `The Endpoints "e" is invalid: subsets[0].ports[0].port: Invalid value: 65536` + badPort},
			{ep("192.0.2.45", "-1"), `Invalid value: -1` + badPort},
			{ep("192.0.2.45", "http"), `cannot unmarshal string into Go struct field EndpointPort.subsets.ports.port of type int32`},
			{ep("127.0.0.1", "80"), address + `"127.0.0.1"` + loopback},
			{ep("::1", "80"), address + `"::1"` + loopback},
			{ep("169.254.1.1", "80"), address + `"169.254.1.1"` + linkLocal},
			{ep("fe80::1", "80"), address + `"fe80::1"` + linkLocal},
			{ep("224.0.0.1", "80"), address + `"224.0.0.1": may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)`},
			{ep("0.0.0.0", "80"), address + `"0.0.0.0": may not be unspecified (0.0.0.0)`},
			{ep("192.0.2.999", "80"), `Invalid value: "192.0.2.999": must be a valid IP address`},
			{ep("db.example.test", "80"), `Invalid value: "db.example.test": must be a valid IP address`},
			{slice("127.0.0.1", "80"), endpoint + `"127.0.0.1"` + loopback},
			{slice("169.254.1.1", "80"), endpoint + `"169.254.1.1"` + linkLocal},
			{slice("192.0.2.999", "80"), `endpoints[0].addresses[0]: Invalid value: "192.0.2.999": must be a valid IP address`},
			{slice("fd00::1", "80"), `endpoints[0].addresses: Invalid value: "fd00::1": must be an IPv4 address`},
			// Upstream does not look at the number of a slice's port, only at its type, name and protocol.
			{slice("192.0.2.1", "http"), `cannot unmarshal string into Go struct field EndpointPort.ports.port of type int32`},
			{slice("192.0.2.1", "80, protocol: ICMP"), `ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"`},
			{slice("192.0.2.1", "80, name: A"), `ports[0].name: Invalid value: "A": a lowercase RFC 1123 label must consist of`},
			{strings.Replace(slice("192.0.2.1", "80"), "IPv4", "IPv5", 1), `addressType: Unsupported value: "IPv5": supported values: "FQDN", "IPv4", "IPv6"`},
			{named("Service", "Web"), `The Service "Web" is invalid: metadata.name: Invalid value: "Web": a lowercase RFC 1123 label must consist of`},
			{named("Service", strings.Repeat("a", 64)), `must be no more than 63`},
			{svc(`ports: [{port: 0}]`), `spec.ports[0].port: Invalid value: 0` + badPort},
			{svc(`ports: [{port: 80}, {port: 81}]`), `* spec.ports[1].name: Required value`},
			{svc(`ports: [{port: 80, targetPort: A_B}]`), `spec.ports[0].targetPort: Invalid value: "A_B"`},
			{svc(`ports: [{port: 80, protocol: ICMP}]`), `spec.ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"`},
			{svc(`clusterIP: 192.0.2.1, ports: [{port: 80}]`), `The Service "s" is invalid: spec.clusterIPs: Invalid value: ["192.0.2.1"]: failed to allocate IP 192.0.2.1: the provided network does not match the current range`},
			{svc(`clusterIP: 10.96.0.1, ports: [{port: 80}]`), `The Service "s" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.1"]: failed to allocate IP 10.96.0.1: provided IP is already allocated`},
			{svc(`clusterIP: ten, ports: [{port: 80}]`), `The Service "s" is invalid: spec.clusterIPs[0]: Invalid value: "ten": must be a valid IP address`},
			{svc(`type: NodePort, ports: [{port: 80, nodePort: 80}]`), `spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767`},
			{svc(`type: ExternalName`), `The Service "s" is invalid: spec.externalName: Required value`},
			{svc(`type: Nothing, ports: [{port: 80}]`), `spec.type: Unsupported value: "Nothing"`},
			{svc(`selector: {"a b": c}, ports: [{port: 80}]`), `spec.selector: Invalid value: "a b"`},
			{svc(`sellector: {run: x}, ports: [{port: 80}]`), `strict decoding error: unknown field "spec.sellector"`},
			{svc(`ports: eighty`), `cannot unmarshal string into Go struct field ServiceSpec.spec.ports of type []v1.ServicePort`},
			{svc(`ports: [{port: "80"}]`), `cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32`},
			{`{apiVersion: v1, kind: Nothing, metadata: {name: s}}`, `no matches for kind "Nothing" in version "v1"`},
			{`{apiVersion: v2, kind: Service, metadata: {name: s}}`, `no matches for kind "Service" in version "v2"`},
			{`{apiVersion: v1, kind: Endpoints}`, `metadata.name: Required value: name or generateName is required`},
			{`{kind: Service, metadata: {name: s}}`, `apiVersion not set`},
			{`{apiVersion: v1, kind: Service, metadata: {name: s, namespace: default}, spec: {ports: [{port: 80}]}}`, `the namespace from the provided object "default" does not match the namespace "` + s.name + `"`},
			{"a: [1\nb: }", `error converting YAML to JSON: yaml:`},
			{"\ta: b", `found character that cannot start any token`},
		} {
			if got := s.refusedInput(yaml(bad.manifest), "create", "--validate=strict", "-f", "-"); !strings.Contains(got, bad.want) {
				s.Errorf("create %s\n got %swant %s", bad.manifest, got, bad.want)
			}
		}
		if got := s.refusedInput(`{"apiVersion":"v1",`, "create", "-f", "-"); !strings.Contains(got, "error parsing STDIN: unexpected EOF") {
			s.Errorf("malformed JSON: %s", got)
		}
	})
	// Without strict validation an unknown field is a warning, and is dropped.
	out, err := s.kubectl.WithInput(yaml(svc(`sellector: {run: x}, ports: [{port: 80}]`))).Try("-n", s.name, "create", "--validate=warn", "-f", "-")
	check(s.T, err)
	s.has(out.Stderr, `Warning: unknown field "spec.sellector"`)
}

func badCommands(s *space) {
	s.unchanged(func() {
		for _, bad := range []struct {
			args string
			want string
		}{
			{`patch service kept -p {"spec":{"ports":[{"port":80,"targetPort":99999}]}}`, `spec.ports[0].targetPort: Invalid value: 99999: must be between 1 and 65535, inclusive`},
			{`patch service kept -p {"spec":{"clusterIP":"10.96.9.9","clusterIPs":["10.96.9.9"]}}`, `may not change once set`},
			{`patch service kept -p {"spec":{"clusterIP":"None","clusterIPs":["None"]}}`, `may not change once set`},
			{`patch service kept --type=merge -p {`, `invalid JSON patch`},
			{`patch service kept --type=json -p [{"op":"remove","path":"/spec/nothing"}]`, `The request is invalid`},
			{`patch endpoints kept --type=json -p [{"op":"replace","path":"/subsets/0/addresses/0/ip","value":"127.0.0.1"}]`, `may not be in the loopback range`},
			{`patch endpoints kept --type=json -p [{"op":"replace","path":"/subsets/0/ports/0/port","value":0}]`, `must be between 1 and 65535, inclusive`},
			{`patch endpoints kept --type=json -p [{"op":"replace","path":"/subsets","value":"none"}]`, `cannot unmarshal string`},
			{`label service kept a/b/c=d`, `a/b/c`},
			{`label service kept a=b!c`, `a valid label must be an empty string or consist of`},
			{`annotate service kept Ä=b`, `name part must consist of alphanumeric characters`},
			{`get services -l a===b`, `unable to parse requirement`},
			{`get services --field-selector spec.nothing=a`, `field label not supported: spec.nothing`},
			{`get nothing`, `the server doesn't have a resource type "nothing"`},
			{`get service missing`, `Error from server (NotFound): services "missing" not found`},
			{`delete service missing`, `services "missing" not found`},
			{`delete namespace kube-system`, `is forbidden: this namespace may not be deleted`},
			{`expose service missing --port=80`, `services "missing" not found`},
			{`create service clusterip kept --tcp=80`, `services "kept" already exists`},
			{`create service nodeport s --tcp=80 --node-port=80`, `provided port is not in the valid range`},
			{`create token missing`, `serviceaccounts "missing" not found`},
			{`logs missing`, `pods "missing" not found`},
			{`get --raw /apis/nothing.example.test/v1`, `the server could not find the requested resource`},
			{`replace --raw /api/v1/namespaces/` + s.name + `/services/kept -f /dev/null`, ``},
			{`get services --server https://127.0.0.1:1`, `connection refused`},
		} {
			if got := s.refused(strings.Fields(bad.args)...); !strings.Contains(got, bad.want) || strings.Contains(got, "goroutine ") {
				s.Errorf("%s\n got %swant %s", bad.args, got, bad.want)
			}
		}
		stale := strings.Replace(s.run("get", "service", "kept", "-o", "json"), `"resourceVersion": "`, `"resourceVersion": "1`, 1)
		s.has(s.refusedInput(stale, "replace", "-f", "-"), `Operation cannot be fulfilled on services "kept": the object has been modified; please apply your changes to the latest version and try again`)
	})
}

func badBodies(s *space) {
	s.unchanged(func() {
		file := filepath.Join(s.TempDir(), "large")
		check(s.T, os.WriteFile(file, []byte(strings.Repeat("x", 10<<20)), 0o600))
		s.has(s.refused("create", "configmap", "large", "--from-file="+file), "Request entity too large: limit is 3145728")
		check(s.T, os.Truncate(file, 1<<20+1))
		s.has(s.refused("create", "configmap", "large", "--from-file="+file), `ConfigMap "large" is invalid: []: Too long: may not be more than 1048576 bytes`)
		s.has(s.refused("patch", "configmap", "kube-root-ca.crt", "--type=merge", "--patch-file", largePatch(s)), "Request entity too large")

		// What kubectl would not send.
		for _, body := range []struct{ kind, text, want string }{
			{"application/json", `{"apiVersion":"v1",`, "unexpected end of JSON input"},
			{"application/json", `[1,2,3]`, "cannot unmarshal array into Go value"},
			{"application/yaml", "a: [1\nb: }", "did not find expected ',' or ']'"},
			{"application/vnd.kubernetes.protobuf", "k8s\x00\xff\xff\xff\xff", "unexpected EOF"},
			{"text/plain", "x", "the body of the request was in an unknown format"},
		} {
			err := s.client.CoreV1().RESTClient().Post().Namespace(s.name).Resource("services").SetHeader("Content-Type", body.kind).
				Body([]byte(body.text)).Do(s.Context()).Error()
			if err == nil || !strings.Contains(err.Error(), body.want) {
				s.Errorf("%s %q: %v, want %s", body.kind, body.text, err, body.want)
			}
		}
	})
	// The connection and the server are fine after all that.
	_, err := s.client.CoreV1().Services(s.name).Get(s.Context(), "kept", metav1.GetOptions{})
	check(s.T, err)
}

func largePatch(s *space) string {
	file := filepath.Join(s.TempDir(), "patch")
	check(s.T, os.WriteFile(file, []byte(`{"data":{"x":"`+strings.Repeat("x", 4<<20)+`"}}`), 0o600))
	return file
}
