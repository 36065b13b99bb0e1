package apiserver

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
)

// badInput is one request that must be refused.
type badInput struct {
	name         string
	method, path string // default POST
	contentType  string // default application/yaml
	body         string
	code         int
	message      string // of the Status, exact; "…" at its end = a prefix
}

func badInputs() []badInput {
	const (
		services  = "/api/v1/namespaces/bad/services"
		endpoints = "/api/v1/namespaces/bad/endpoints"
		strict    = "?fieldValidation=Strict"
		jsonType  = "application/json"
	)
	ep := func(address, port string) string {
		return `{apiVersion: v1, kind: Endpoints, metadata: {name: e}, subsets: [{addresses: [{ip: ` + address + `}], ports: [{port: ` + port + `}]}]}`
	}
	svc := func(spec string) string {
		return `{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 80}], ` + spec + `}}`
	}
	return []badInput{
		{name: "endpoints port 0", path: endpoints, body: ep("192.0.2.45", "0"), code: 422,
			message: `Endpoints "e" is invalid: subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive`},
		{name: "endpoints port too high", path: endpoints, body: ep("192.0.2.45", "65536"), code: 422,
			message: `Endpoints "e" is invalid: subsets[0].ports[0].port: Invalid value: 65536: must be between 1 and 65535, inclusive`},
		{name: "endpoints address not an address", path: endpoints, body: ep("192.0.2.999", "80"), code: 422,
			message: `Endpoints "e" is invalid: [subsets[0].addresses[0].ip: Invalid value: "192.0.2.999": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff), subsets[0].addresses[0].ip: Invalid value: "192.0.2.999": must be a valid IP address]`},
		{name: "endpoints loopback", path: endpoints, body: ep("127.0.0.1", "80"), code: 422,
			message: `Endpoints "e" is invalid: subsets[0].addresses[0].ip: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)`},
		{name: "endpoints IPv6 loopback", path: endpoints, body: ep(`"::1"`, "80"), code: 422,
			message: `Endpoints "e" is invalid: subsets[0].addresses[0].ip: Invalid value: "::1": may not be in the loopback range (127.0.0.0/8, ::1/128)`},
		{name: "endpoints link-local", path: endpoints, body: ep("169.254.1.1", "80"), code: 422,
			message: `Endpoints "e" is invalid: subsets[0].addresses[0].ip: Invalid value: "169.254.1.1": may not be in the link-local range (169.254.0.0/16, fe80::/10)`},
		{name: "endpoints unspecified", path: endpoints, body: ep("0.0.0.0", "80"), code: 422,
			message: `Endpoints "e" is invalid: subsets[0].addresses[0].ip: Invalid value: "0.0.0.0": may not be unspecified (0.0.0.0)`},
		{name: "endpoints multicast", path: endpoints, body: ep("224.0.0.1", "80"), code: 422,
			message: `Endpoints "e" is invalid: subsets[0].addresses[0].ip: Invalid value: "224.0.0.1": may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)`},
		{name: "slice loopback", path: "/apis/discovery.k8s.io/v1/namespaces/bad/endpointslices", code: 422,
			body:    `{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: e}, addressType: IPv4, endpoints: [{addresses: [127.0.0.1]}]}`,
			message: `EndpointSlice.discovery.k8s.io "e" is invalid: endpoints[0].addresses[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)`},
		{name: "name with capitals", path: services, body: `{apiVersion: v1, kind: Service, metadata: {name: Web}, spec: {ports: [{port: 80}]}}`, code: 422,
			message: `Service "Web" is invalid: metadata.name: Invalid value: "Web": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')`},
		{name: "no name", path: endpoints, body: `{apiVersion: v1, kind: Endpoints}`, code: 422,
			message: `Endpoints "" is invalid: metadata.name: Required value: name or generateName is required`},
		{name: "service port too high", path: services, body: `{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 70000}]}}`, code: 422,
			message: `Service "s" is invalid: [spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive, spec.ports[0].targetPort: Invalid value: 70000: must be between 1 and 65535, inclusive]`},
		{name: "cluster IP outside the range", path: services, body: svc(`clusterIP: 192.0.2.1`), code: 422,
			message: `Service "s" is invalid: spec.clusterIPs: Invalid value: ["192.0.2.1"]: failed to allocate IP 192.0.2.1: the provided network does not match the current range`},
		{name: "cluster IP taken", path: services, body: svc(`clusterIP: 10.96.0.1`), code: 422,
			message: `Service "s" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.1"]: failed to allocate IP 10.96.0.1: provided IP is already allocated`},
		{name: "cluster IP not an address", path: services, body: svc(`clusterIP: ten`), code: 422, message: `Service "s" is invalid: …`},
		{name: "node port outside the range", path: services, body: `{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {type: NodePort, ports: [{port: 80, nodePort: 80}]}}`, code: 422,
			message: `Service "s" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767`},
		{name: "node port taken", path: services, body: `{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {type: NodePort, ports: [{port: 80, nodePort: 30007}]}}`, code: 422,
			message: `Service "s" is invalid: spec.ports[0].nodePort: Invalid value: 30007: provided port is already allocated`},
		{name: "external name without a name", path: services, body: `{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {type: ExternalName}}`, code: 422,
			message: `Service "s" is invalid: spec.externalName: Required value`},
		{name: "unknown field, strict", path: services + strict, body: svc(`sellector: {run: x}`), code: 400,
			message: `Service in version "v1" cannot be handled as a Service: strict decoding error: unknown field "spec.sellector"`},
		{name: "duplicate field, strict", path: services + strict, contentType: jsonType, code: 400,
			body:    `{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"type":"ClusterIP","type":"NodePort","ports":[{"port":80}]}}`,
			message: `Service in version "v1" cannot be handled as a Service: strict decoding error: duplicate field "spec.type"`},
		{name: "wrong type", path: services, contentType: jsonType, code: 400,
			body:    `{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"ports":[{"port":"eighty"}]}}`,
			message: `Service in version "v1" cannot be handled as a Service: json: cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32`},
		{name: "list instead of object", path: services, contentType: jsonType, body: `[1,2,3]`, code: 400,
			message: `the object provided is unrecognized (must be of type Service): couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" } (5b312c322c335d)`},
		{name: "another kind", path: services, body: `{apiVersion: v1, kind: Pod, metadata: {name: s}}`, code: 400,
			message: `Pod in version "v1" cannot be handled as a Service: converting (v1.Pod) to (core.Service): unknown conversion`},
		{name: "kind that is not served", path: "/api/v1/namespaces/bad/persistentvolumeclaims", body: `{}`, code: 404, message: `the server could not find the requested resource`},
		{name: "another namespace", path: services, body: `{apiVersion: v1, kind: Service, metadata: {name: s, namespace: default}, spec: {ports: [{port: 80}]}}`, code: 400,
			message: `the namespace of the provided object does not match the namespace sent on the request`},
		{name: "namespace that is missing", path: "/api/v1/namespaces/missing/services", body: svc(`type: ClusterIP`), code: 404, message: `namespaces "missing" not found`},
		{name: "malformed JSON", path: services, contentType: jsonType, body: `{"apiVersion":"v1",`, code: 400,
			message: `the object provided is unrecognized (must be of type Service): couldn't get version/kind; json parse error: unexpected end of JSON input ({"apiVersion":"v1",)`},
		{name: "malformed YAML", path: services, body: "a: [1\nb: }", code: 400, message: `the object provided is unrecognized (must be of type Service): yaml: line 1: did not find expected ',' or ']' (613a205b310a623a207d)`},
		{name: "malformed protobuf", path: services, contentType: "application/vnd.kubernetes.protobuf", body: "k8s\x00\xff\xff\xff\xff", code: 400, message: `…`},
		{name: "protobuf that is none", path: services, contentType: "application/vnd.kubernetes.protobuf", body: `{"kind":"Service"}`, code: 400, message: `the object provided is unrecognized (must be of type Service): provided data does not appear to be a protobuf message, expected prefix [107 56 115 0] ({"kind":"Service"})`},
		{name: "empty body", path: services, contentType: jsonType, body: ``, code: 400, message: `…`},
		{name: "unknown content type", path: services, contentType: "text/plain", body: `x`, code: 415,
			message: `the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf`},
		{name: "10 MB body", path: "/api/v1/namespaces/bad/configmaps", contentType: jsonType, code: 413,
			body:    `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"k":"` + strings.Repeat("x", 10<<20) + `"}}`,
			message: `Request entity too large: limit is 3145728`},
		{name: "config map over 1 MiB", path: "/api/v1/namespaces/bad/configmaps", contentType: jsonType, code: 422,
			body:    `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"k":"` + strings.Repeat("x", 1<<20+1) + `"}}`,
			message: `ConfigMap "c" is invalid: []: Too long: may not be more than 1048576 bytes`},
		{name: "malformed merge patch", method: http.MethodPatch, path: services + "/kept", contentType: "application/merge-patch+json", body: `{`, code: 400, message: `invalid JSON patch`},
		{name: "JSON patch of a missing path", method: http.MethodPatch, path: services + "/kept", contentType: "application/json-patch+json",
			body: `[{"op":"remove","path":"/spec/nothing"}]`, code: 422, message: `the server rejected our request due to an error in our request`},
		{name: "apply without manager", method: http.MethodPatch, path: services + "/kept", contentType: "application/apply-patch+yaml", body: `{apiVersion: v1, kind: Service}`, code: 422, message: `PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch`},
		{name: "change of the cluster IP", method: http.MethodPatch, path: services + "/kept", contentType: "application/merge-patch+json", body: `{"spec":{"clusterIP":"10.96.9.9"}}`, code: 422,
			message: `Service "kept" is invalid: spec.clusterIPs[0]: Invalid value: ["10.96.9.9"]: may not change once set`},
		{name: "stale update", method: http.MethodPut, path: services + "/kept", body: `{apiVersion: v1, kind: Service, metadata: {name: kept, resourceVersion: "1"}, spec: {ports: [{port: 81}]}}`, code: 409,
			message: `Operation cannot be fulfilled on services "kept": the object has been modified; please apply your changes to the latest version and try again`},
		{name: "bad label selector", method: http.MethodGet, path: services + "?labelSelector=a%3D%3D%3Db", code: 400, message: `unable to parse requirement: …`},
		{name: "bad field selector", method: http.MethodGet, path: services + "?fieldSelector=spec.nothing%3Da", code: 400, message: `field label not supported: spec.nothing`},
		{name: "watch from no version", method: http.MethodGet, path: services + "?watch=1&resourceVersion=soon", code: 500, message: `resourceVersion: Invalid value: "soon": strconv.ParseUint: parsing "soon": invalid syntax`},
		{name: "bad continue token", method: http.MethodGet, path: services + "?continue=nonsense", code: 400, message: `invalid continue token: continue key is not valid: …`},
		{name: "eviction of nothing", path: "/api/v1/namespaces/bad/pods/none/eviction", body: `{apiVersion: policy/v1, kind: Eviction, metadata: {name: none}}`, code: 404, message: `pods "none" not found`},
		{name: "deletion of a system namespace", method: http.MethodDelete, path: "/api/v1/namespaces/kube-system", code: 403, message: `namespaces "kube-system" is forbidden: this namespace may not be deleted`},
	}
}

// TestBadInput: upstream's words, and nothing is changed.
func TestBadInput(t *testing.T) {
	t.Parallel()
	ctx, admin := t.Context(), shared.client(t)
	namespace(t, "bad")
	kept := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(9376), NodePort: 30007}},
	}}
	if _, err := admin.CoreV1().Services("bad").Create(ctx, kept, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	config := shared.admin()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	everything := func() string {
		var b strings.Builder
		for _, path := range []string{"/api/v1/namespaces/bad/services", "/api/v1/namespaces/bad/endpoints", "/api/v1/namespaces/bad/configmaps", "/apis/discovery.k8s.io/v1/namespaces/bad/endpointslices"} {
			raw, err := admin.RESTClient().Get().AbsPath(path).DoRaw(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var list struct{ Items []any }
			if err := json.Unmarshal(raw, &list); err != nil {
				t.Fatal(err)
			}
			items, _ := json.Marshal(list.Items)
			b.Write(items)
		}
		return b.String()
	}
	before := everything()
	for _, c := range badInputs() {
		method, contentType := c.method, c.contentType
		if method == "" {
			method = http.MethodPost
		}
		if contentType == "" {
			contentType = "application/yaml"
		}
		request, err := http.NewRequestWithContext(ctx, method, config.Host+c.path, bytes.NewReader([]byte(c.body)))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", contentType)
		request.Header.Set("Accept", "application/json")
		response, err := client.Do(request)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		raw, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var status metav1.Status
		if err := json.Unmarshal(raw, &status); err != nil {
			t.Errorf("%s: %d, not a Status: %.300s", c.name, response.StatusCode, raw)
			continue
		}
		prefix, open := strings.CutSuffix(c.message, "…")
		if response.StatusCode != c.code || status.Message != c.message && (!open || !strings.HasPrefix(status.Message, prefix)) {
			t.Errorf("%s:\n got %d %s\nwant %d %s", c.name, response.StatusCode, status.Message, c.code, c.message)
		}
	}
	if after := everything(); after != before {
		t.Errorf("refused requests changed something:\nbefore %s\nafter  %s", before, after)
	}
}

// TestTruncatedWatch: a client that goes away in the middle of a watch, and one that asks for too old a version.
func TestTruncatedWatch(t *testing.T) {
	t.Parallel()
	ctx, admin := t.Context(), shared.client(t)
	namespace(t, "cut")
	client, err := rest.HTTPClientFor(shared.admin())
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		response, err := client.Get("https://" + shared.addr + "/api/v1/namespaces/cut/configmaps?watch=1")
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != http.StatusOK {
			t.Fatalf("watch: %d", response.StatusCode)
		}
		_ = response.Body.Close()
	}
	config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "after"}}
	if _, err := admin.CoreV1().ConfigMaps("cut").Create(ctx, config, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	raw, err := client.Get("https://" + shared.addr + "/api/v1/namespaces/cut/configmaps?watch=1&resourceVersion=1&timeoutSeconds=2")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(raw.Body)
	_ = raw.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	// Either the history from 1 is still there, or the answer says that it is not; silence would lose events.
	if text := string(body); !strings.Contains(text, `"after"`) && !strings.Contains(text, `"code":410`) {
		t.Errorf("watch from version 1: %.300s", text)
	}
}

func TestBadOptions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		change func(*Options)
		want   string
	}{
		{func(o *Options) { o.Listener = nil }, "no listener"},
		{func(o *Options) { o.Etcd.Servers = nil }, "no etcd servers"},
		{func(o *Options) { o.Certs.CAFile = "" }, "no CA certificate file"},
		{func(o *Options) { o.ServiceCIDRs = nil }, "service CIDRs: want one"},
		{func(o *Options) { o.ServiceCIDRs = prefixes("10.96.0.1/16") }, "did you mean 10.96.0.0/16?"},
		{func(o *Options) { o.ServiceCIDRs = prefixes("10.96.0.0/31") }, "fewer than 8 addresses"},
		{func(o *Options) { o.ServiceCIDRs = prefixes("fd00::/48") }, "at least /64"},
		{func(o *Options) { o.ServiceCIDRs = prefixes("10.96.0.0/16", "10.97.0.0/16") }, "same address family"},
		{func(o *Options) { o.Advertise = address("127.0.0.1") }, "advertised address 127.0.0.1"},
		{func(o *Options) { o.Advertise = address("169.254.1.1") }, "link-local"},
		{func(o *Options) { o.Etcd.Servers = []string{"http://127.0.0.1:1"} }, "127.0.0.1:1"},
	} {
		f, err := start(t.TempDir(), "127.0.0.1:0", shared, c.change)
		if err == nil {
			_ = f.stop()
			t.Errorf("no error, want %q", c.want)
		} else if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %q, want one line with %q", err, c.want)
		}
	}
}
