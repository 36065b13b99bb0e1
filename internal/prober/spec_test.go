package prober

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func web() *corev1.Container {
	return &corev1.Container{
		Name:  "web",
		Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "bad", ContainerPort: 70000}},
		Env:   []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "REF", ValueFrom: &corev1.EnvVarSource{}}},
	}
}

// handler is a probe from the JSON of its handler.
func handler(t *testing.T, text string) *corev1.Probe {
	t.Helper()
	var p corev1.Probe
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	return &p
}

func nothing(context.Context, []string) (int, string, error) { return 0, "", nil }

func TestFromSpecRefuses(t *testing.T) {
	for _, c := range []struct{ probe, want string }{
		{`{}`, "probe of container web: 0 handlers; give it exactly one of exec, httpGet, tcpSocket, grpc"},
		{`{"grpc":{"port":1},"tcpSocket":{"port":1}}`, "2 handlers"},
		{`{"httpGet":{"port":"htpt"}}`, `port "htpt" not found; give the number`},
		{`{"httpGet":{"port":"bad"}}`, "invalid port number: 70000; use 1 to 65535"},
		{`{"httpGet":{"port":80,"scheme":"GOPHER"}}`, `unknown scheme "GOPHER"; use HTTP or HTTPS`},
		{`{"tcpSocket":{"port":0}}`, "invalid port number: 0"},
		{`{"grpc":{"port":-1}}`, "invalid port number: -1"},
		{`{"exec":{}}`, "no command"},
	} {
		p, err := FromSpec(handler(t, c.probe), web(), "10.0.0.1", nothing)
		if p != nil || err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "container web") {
			t.Errorf("%s: %v, want %q", c.probe, err, c.want)
		}
	}
	if _, err := FromSpec(handler(t, `{"tcpSocket":{"port":1}}`), web(), "", nothing); err == nil {
		t.Error("a pod without an address: no error")
	}
	if _, err := FromSpec(handler(t, `{"exec":{"command":["x"]}}`), web(), "10.0.0.1", nil); err == nil {
		t.Error("exec where that is impossible: no error")
	}
}

func TestFromSpecReachesTheTarget(t *testing.T) {
	var got *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r }))
	defer server.Close()
	at := options(t, server.URL, "")
	c := web()
	c.Ports[0].ContainerPort = int32(at.Port)
	p := handler(t, `{"httpGet":{"port":"http","path":"/healthz","httpHeaders":[{"name":"x-a","value":"1"},{"name":"X-A","value":"2"}]}}`)
	for _, kind := range []struct{ addr, host string }{{"127.0.0.1", ""}, {"192.0.2.1", "127.0.0.1"}, {"192.0.2.1", "localhost"}} {
		p.HTTPGet.Host = kind.host
		probe, err := FromSpec(p, c, kind.addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := try(t, probe, time.Second); err != nil {
			t.Error(err)
		}
		if got.URL.Path != "/healthz" || !slices.Equal(got.Header["X-A"], []string{"1", "2"}) {
			t.Errorf("%s %q", got.URL.Path, got.Header)
		}
	}
	probe, err := FromSpec(&corev1.Probe{ProbeHandler: corev1.ProbeHandler{
		TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(int32(at.Port)), Host: "localhost"},
	}}, c, "192.0.2.1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := try(t, probe, time.Second); err != nil {
		t.Error(err)
	}
}

func TestFromSpecExec(t *testing.T) {
	var got []string
	exec := func(_ context.Context, args []string) (int, string, error) { got = args; return 1, "why", nil }
	p := handler(t, `{"exec":{"command":["/bin/$(A)","$$(A)","$(NONE)","$(REF)","$","$(A","a$x$(A)$"]}}`)
	probe, err := FromSpec(p, web(), "", exec)
	if err != nil {
		t.Fatal(err)
	}
	wantFailure(t, try(t, probe, time.Second), "why")
	want := []string{"/bin/1", "$(A)", "$(NONE)", "$(REF)", "$", "$(A", "a$x1$"}
	if !slices.Equal(got, want) {
		t.Errorf("args %q, want %q", got, want)
	}
}

func TestNewSpec(t *testing.T) {
	s := NewSpec(&corev1.Probe{})
	if s.InitialDelay != 0 || s.Period != 10*time.Second || s.Timeout != time.Second || s.SuccessThreshold != 1 || s.FailureThreshold != 3 {
		t.Errorf("defaults %+v", s)
	}
	s = NewSpec(&corev1.Probe{InitialDelaySeconds: 1, PeriodSeconds: 2, TimeoutSeconds: 3, SuccessThreshold: 4, FailureThreshold: 5})
	if s.InitialDelay != time.Second || s.Period != 2*time.Second || s.Timeout != 3*time.Second || s.SuccessThreshold != 4 || s.FailureThreshold != 5 {
		t.Errorf("given %+v", s)
	}
	exec := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}}}
	if net := NewSpec(&corev1.Probe{}).Quick; net <= 0 || NewSpec(exec).Quick <= net {
		t.Errorf("quick: %v, exec %v", net, NewSpec(exec).Quick)
	}
	if g := GracePeriod(&corev1.Probe{}, 30); g != 30 {
		t.Errorf("grace %d, want the pod's", g)
	}
	if g := GracePeriod(&corev1.Probe{TerminationGracePeriodSeconds: new(int64(7))}, 30); g != 7 {
		t.Errorf("grace %d, want the probe's", g)
	}
}

// FuzzFromSpec: whatever a probe looks like, it is refused or it can be made; and expansion ends.
func FuzzFromSpec(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"httpGet":{"port":"http","path":"//x?y#z","scheme":"HTTPS","host":"a b"}}`, `{"httpGet":{"port":1,"path":"mailto:x"}}`,
		`{"httpGet":{"port":1,"path":"%","httpHeaders":[{"name":"a b","value":"\r\n"}]}}`, `{"exec":{"command":["$($(A)$$"]}}`,
		`{"grpc":{"port":1,"service":"x","mode":"TLS"}}`, `{"tcpSocket":{"port":"http","host":"::1"}}`,
	} {
		f.Add(seed)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	f.Fuzz(func(t *testing.T, text string) {
		var p corev1.Probe
		if json.Unmarshal([]byte(text), &p) != nil {
			return
		}
		probe, err := FromSpec(&p, web(), "127.0.0.1", nothing)
		if (probe == nil) == (err == nil) {
			t.Fatalf("probe %v, error %v", probe != nil, err)
		}
		if err == nil && p.Exec == nil && probe(ended) == nil {
			t.Fatal("a probe succeeded whose time was over")
		}
		NewSpec(&p)
	})
}
