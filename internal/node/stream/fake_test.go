package stream

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.Main(m,
		// client-go's heartbeat hears of a connection that its own side closed with the next ping, 5 s later.
		goleak.IgnoreTopFunction("k8s.io/client-go/tools/remotecommand.(*heartbeat).start"),
		// A SPDY connection that the other side closed first waits a second for somebody to take the error of its Close.
		goleak.IgnoreTopFunction("github.com/moby/spdystream.(*Connection).shutdown"),
	)
}

// authority is a CA of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "test-ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

func (a *authority) issue(t *testing.T, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a *authority) server(t *testing.T) tls.Certificate {
	cert, key := a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "node-1"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// client is how a user reaches a server.
func (a *authority) client(t *testing.T, address, name string, groups ...string) *rest.Config {
	t.Helper()
	cert, key := a.issue(t, &x509.Certificate{
		Subject:     pkix.Name{CommonName: name, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &rest.Config{Host: "https://" + address, TLSClientConfig: rest.TLSClientConfig{
		CAData:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}),
		CertData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
		KeyData:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
	}}
}

// fakePods are pods of which a test may change the status.
type fakePods struct {
	mu   sync.Mutex // guards pods
	pods map[string]*corev1.Pod
}

func (f *fakePods) Lookup(namespace, name string) (*corev1.Pod, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	pod, ok := f.pods[namespace+"/"+name]
	return pod, ok
}

func (f *fakePods) List() []*corev1.Pod {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []*corev1.Pod
	for _, pod := range f.pods {
		list = append(list, pod)
	}
	return list
}

func (f *fakePods) NetNS(uid string) string {
	if uid == "uid-web" {
		return "/the/netns/of/web"
	}
	return ""
}

func (f *fakePods) set(pod *corev1.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pods[pod.Namespace+"/"+pod.Name] = pod
}

func podOf(name string, statuses ...corev1.ContainerStatus) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: statuses, PodIPs: []corev1.PodIP{{IP: "127.0.0.1"}}},
	}
	for _, status := range statuses {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: status.Name})
	}
	return pod
}

func idOf(pod, name string, attempt int) string {
	return fmt.Sprintf("process://uid-%s/%s/%d", pod, name, attempt)
}

func runningStatus(pod, name string, attempt int) corev1.ContainerStatus {
	status := corev1.ContainerStatus{
		Name: name, ContainerID: idOf(pod, name, attempt),
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}
	if attempt > 0 {
		status.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ContainerID: idOf(pod, name, attempt-1)}
	}
	return status
}

// fakeRuntime plays a few commands.
type fakeRuntime struct {
	dir   string
	ended chan error // gets why a "wait" ended
}

func (f *fakeRuntime) LogFile(pod, name string, attempt int) string {
	return filepath.Join(f.dir, pod+"_"+name+"_"+strconv.Itoa(attempt)+".log")
}

func (f *fakeRuntime) Exec(ctx context.Context, o container.ExecOptions, s container.Streams) (int, error) {
	if o.Pod != "uid-web" || o.Container != "app" {
		return 0, fmt.Errorf("pod %s has no container %s", o.Pod, o.Container)
	}
	switch o.Args[0] {
	case "cat":
		_, err := io.Copy(s.Stdout, s.Stdin)
		return 0, err
	case "both":
		fmt.Fprint(s.Stdout, "to stdout")
		fmt.Fprint(s.Stderr, "to stderr")
		return 0, nil
	case "exit":
		return strconv.Atoi(o.Args[1])
	case "echo":
		fmt.Fprint(s.Stdout, strings.Join(o.Args[1:], "|"))
		return 0, nil
	case "streams":
		fmt.Fprintf(s.Stdout, "in %t err %t resize %t tty %t", s.Stdin != nil, s.Stderr != nil, s.Resize != nil, o.TTY)
		return 0, nil
	case "size":
		for size := range s.Resize {
			fmt.Fprintf(s.Stdout, "%dx%d ", size.Columns, size.Rows)
			if size.Columns == 2 {
				return 0, nil
			}
		}
		return 1, nil
	case "flood":
		for {
			if _, err := s.Stdout.Write(make([]byte, 32<<10)); err != nil {
				f.ended <- err
				return 0, err
			}
		}
	case "wait":
		fmt.Fprint(s.Stdout, "waiting")
		<-ctx.Done()
		f.ended <- ctx.Err()
		return 137, ctx.Err()
	}
	return 0, errors.New("no such program")
}

func (f *fakeRuntime) Attach(_ context.Context, pod, name string, s container.Streams) error {
	fmt.Fprintf(s.Stdout, "attached to %s of %s: ", name, pod)
	if s.Stdin == nil {
		return nil
	}
	_, err := io.Copy(s.Stdout, s.Stdin)
	return err
}

// rig is a server with a pod "web" that runs, and a client that may do everything.
type rig struct {
	ca      *authority
	pods    *fakePods
	runtime *fakeRuntime
	address string
	admin   *rest.Config
	stop    func() error // ends the server and waits
}

func newRig(t *testing.T, change func(*Options)) *rig {
	t.Helper()
	r := &rig{
		ca:      newAuthority(t),
		pods:    &fakePods{pods: map[string]*corev1.Pod{}},
		runtime: &fakeRuntime{dir: t.TempDir(), ended: make(chan error, 10)},
	}
	r.pods.set(podOf("web", runningStatus("web", "app", 1)))
	certificate := r.ca.server(t)
	o := Options{
		Pods: r.pods, Runtime: r.runtime, Logger: slog.New(slog.DiscardHandler),
		TLS: &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &certificate, nil },
			ClientCAs:      r.ca.pool(),
		},
	}
	if change != nil {
		change(&o)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = l.Addr().String()
	r.admin = r.ca.client(t, r.address, "admin", "system:masters")
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- New(o).Serve(ctx, l) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-served
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Serve ended with %v", err)
		}
	})
	return r
}

// httpClient is one for a user; its connections end with the test.
func httpClient(t *testing.T, config *rest.Config) *http.Client {
	t.Helper()
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// do asks for a path as a user.
func do(t *testing.T, config *rest.Config, method, path string) (code int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, config.Host+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := httpClient(t, config).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var text bytes.Buffer
	if _, err := text.ReadFrom(response.Body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, text.String()
}
