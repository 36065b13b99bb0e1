package manifest

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const head = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n"

func TestDefaultsAreThoseOfTheAPIServer(t *testing.T) {
	pods, err := parse([]byte(head+`
  hostNetwork: true
  volumes: [{name: v}, {name: h, hostPath: {path: /x}}]
  containers:
  - name: c
    image: registry/app
    ports: [{containerPort: 80}]
    resources: {limits: {cpu: 1}}
    env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
    readinessProbe: {httpGet: {port: 80}}
    livenessProbe: {grpc: {port: 81}}
    lifecycle: {preStop: {httpGet: {port: 80}}}
  - name: d
    image: app:1.2
  - name: e
    image: host:5000/app@sha256:0
`), "n1")
	if err != nil {
		t.Fatal(err)
	}
	s := pods[0].Spec
	c := s.Containers[0]
	for what, ok := range map[string]bool{
		"restartPolicy":          s.RestartPolicy == "Always",
		"dnsPolicy":              s.DNSPolicy == "ClusterFirst",
		"grace":                  *s.TerminationGracePeriodSeconds == 30,
		"service links":          *s.EnableServiceLinks,
		"security context":       s.SecurityContext != nil,
		"emptyDir":               s.Volumes[0].EmptyDir != nil,
		"hostPath type":          *s.Volumes[1].HostPath.Type == "",
		"NoExecute is tolerated": len(s.Tolerations) == 1,
		"pull without tag":       c.ImagePullPolicy == "Always",
		"pull with tag":          s.Containers[1].ImagePullPolicy == "IfNotPresent",
		"pull with digest":       s.Containers[2].ImagePullPolicy == "IfNotPresent",
		"termination message":    c.TerminationMessagePath == "/dev/termination-log" && c.TerminationMessagePolicy == "File",
		"protocol":               c.Ports[0].Protocol == "TCP",
		"hostPort":               c.Ports[0].HostPort == 80,
		"requests":               c.Resources.Requests.Cpu().Value() == 1,
		"fieldRef":               c.Env[0].ValueFrom.FieldRef.APIVersion == "v1",
		"probe times":            c.ReadinessProbe.TimeoutSeconds == 1 && c.ReadinessProbe.PeriodSeconds == 10,
		"probe thresholds":       c.ReadinessProbe.SuccessThreshold == 1 && c.ReadinessProbe.FailureThreshold == 3,
		"probe http":             c.ReadinessProbe.HTTPGet.Path == "/" && c.ReadinessProbe.HTTPGet.Scheme == "HTTP",
		"probe grpc":             *c.LivenessProbe.GRPC.Service == "",
		"lifecycle":              c.Lifecycle.PreStop.HTTPGet.Scheme == "HTTP",
		"phase":                  pods[0].Status.Phase == corev1.PodPending,
	} {
		if !ok {
			t.Errorf("wrong: %s", what)
		}
	}
}

func TestUIDIsOfTheContentAndTheNode(t *testing.T) {
	uid := func(text, node string) string {
		t.Helper()
		pods, err := parse([]byte(text), node)
		if err != nil {
			t.Fatal(err)
		}
		return string(pods[0].UID)
	}
	const one = head + "  containers: [{name: c, image: i}]\n"
	if a, b := uid(one, "n1"), uid(head+"  # order and comments do not count\n  containers: [{image: i, name: c}]\n", "n1"); a != b {
		t.Errorf("%s and %s of the same content", a, b)
	}
	if uid(one, "n1") == uid(one, "n2") || uid(one, "n1") == uid(strings.Replace(one, "image: i", "image: j", 1), "n1") {
		t.Error("one UID for two pods")
	}
}

func TestBadPodsAreRefusedByTheField(t *testing.T) {
	with := func(container string) string { return "  containers: [{name: c, image: i, " + container + "}]\n" }
	for body, want := range map[string]string{
		"  containers: []\n": "spec.containers",
		"  containers: [{name: c, image: i}, {name: c, image: i}]\n":                                  "spec.containers[1].name",
		"  containers: [{name: c}]\n":                                                                 "image",
		"  containers: [{name: C_, image: i}]\n":                                                      "spec.containers[0].name",
		"  restartPolicy: Sometimes\n" + with(""):                                                     "spec.restartPolicy",
		"  nodeName: other\n" + with(""):                                                              "spec.nodeName",
		"  terminationGracePeriodSeconds: -1\n" + with(""):                                            "terminationGracePeriodSeconds",
		with("ports: [{containerPort: 70000}]"):                                                       "ports[0].containerPort",
		with("ports: [{containerPort: 1, protocol: ICMP}]"):                                           "protocol",
		with("ports: [{containerPort: 1, hostPort: 5}, {containerPort: 2, hostPort: 5}]"):             "ports[1].hostPort",
		with("ports: [{containerPort: 1, name: a}, {containerPort: 2, name: a}]"):                     "ports[1].name",
		with("volumeMounts: [{name: v, mountPath: /x}]"):                                              "volumeMounts[0].name",
		"  volumes: [{name: v}, {name: v}]\n" + with(""):                                              "spec.volumes[1].name",
		"  volumes: [{name: v, hostPath: {path: x}}]\n" + with(""):                                    "hostPath.path",
		with("readinessProbe: {periodSeconds: 1}"):                                                    "readinessProbe",
		with("livenessProbe: {successThreshold: 2, exec: {command: [x]}}"):                            "successThreshold",
		with("livenessProbe: {exec: {command: [x]}, tcpSocket: {port: 1}}"):                           "livenessProbe",
		with("env: [{name: a=b, value: c}]"):                                                          "env[0].name",
		"  serviceAccountName: s\n" + with(""):                                                        "spec.serviceAccountName",
		"  volumes: [{name: v, configMap: {name: m}}]\n" + with(""):                                   "spec.volumes[0]",
		"  volumes: [{name: v, projected: {sources: [{secret: {name: s}}]}}]\n" + with(""):            "projected.sources[0]",
		with("envFrom: [{secretRef: {name: s}}]"):                                                     "envFrom",
		with("env: [{name: A, valueFrom: {configMapKeyRef: {name: m, key: k}}}]"):                     "env[0].valueFrom",
		"  initContainers: [{name: i, image: i, livenessProbe: {exec: {command: [x]}}}]\n" + with(""): "spec.initContainers[0]",
	} {
		_, err := parse([]byte(head+body), "n1")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngave %v, want it to name %s", body, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(head + "  containers: [{name: c, image: i}]\n---\n# nothing\n---\n")
	f.Add(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i","lifecycle":{}}]}}`)
	f.Fuzz(func(t *testing.T, content string) {
		pods, err := parse([]byte(content), "n1")
		if err == nil && len(pods) == 0 {
			t.Error("neither pods nor an error")
		}
		for _, p := range pods {
			if p.UID == "" || p.Name == "" || p.Namespace == "" || len(p.Spec.Containers) == 0 {
				t.Errorf("half a pod: %+v", p)
			}
		}
	})
}
