package apiserver

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/endpointd/endpointd/internal/apiserver/pki"
)

// kubeletOf is an agent that has logs.
func kubeletOf(t *testing.T, name, addr string) {
	t.Helper()
	agentOf(t, name, addr, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "log of", r.URL.Path) })
}

// agentOf serves a node's port at 127.0.0.1 with a certificate for addr, and has the Node state it.
func agentOf(t *testing.T, name, addr string, handler http.HandlerFunc) {
	t.Helper()
	text, err := pki.NodeKubeconfig(filepath.Dir(shared.files.CACert), "https://"+shared.addr, pki.Node{Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}})
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(config.CertData, config.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // the handshakes that are to fail
	server.StartTLS()
	t.Cleanup(server.Close)
	testNode(t, name)
	port := netip.MustParseAddrPort(server.Listener.Addr().String()).Port()
	body := fmt.Sprintf(`{"status":{"addresses":[{"type":"InternalIP","address":"127.0.0.1"}],"daemonEndpoints":{"kubeletEndpoint":{"Port":%d}}}}`, port)
	if _, err := shared.client(t).CoreV1().Nodes().Patch(t.Context(), name, types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}

// A node whose certificate lacks the address it states: the error says so, and what to do; never is it trusted.
func TestNodeCertificateThatDoesNotVerify(t *testing.T) {
	t.Parallel()
	namespace(t, "logs")
	kubeletOf(t, "right", "127.0.0.1")
	kubeletOf(t, "wrong", "127.0.0.2")
	pods := shared.client(t).CoreV1()
	createPod(t, boundPod("logs", "fine", "right"))
	createPod(t, boundPod("logs", "bad", "wrong"))

	text, err := pods.Pods("logs").GetLogs("fine", &corev1.PodLogOptions{Container: "c"}).DoRaw(t.Context())
	if err != nil || string(text) != "log of /containerLogs/logs/fine/c\n" {
		t.Errorf("logs from a node that is right: %q, %v", text, err)
	}
	_, err = pods.Pods("logs").GetLogs("bad", &corev1.PodLogOptions{Container: "c"}).Stream(t.Context()) // as kubectl does
	for _, want := range []string{"node wrong", "certificate is valid for 127.0.0.2, not 127.0.0.1", "endpointd kubeconfig --node wrong --address 127.0.0.1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("logs: %v, want %q in it", err, want)
		}
	}
	request := pods.RESTClient().Post().Resource("pods").Namespace("logs").Name("bad").SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: "c", Command: []string{"true"}, Stdout: true}, scheme.ParameterCodec)
	exec, err := remotecommand.NewSPDYExecutor(shared.admin(), http.MethodPost, request.URL())
	if err != nil {
		t.Fatal(err)
	}
	err = exec.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &strings.Builder{}})
	if err == nil || !strings.Contains(err.Error(), "certificate is valid for 127.0.0.2, not 127.0.0.1") {
		t.Errorf("exec: %v", err)
	}
}
