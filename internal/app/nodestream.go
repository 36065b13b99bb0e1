package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/logs"
	"github.com/endpointd/endpointd/internal/node/peers"
	"github.com/endpointd/endpointd/internal/node/stream"
	"github.com/endpointd/endpointd/internal/node/usage"
)

// openNodeFolder makes the agent's folder and locks it: two agents would take each other's pods for their own.
func openNodeFolder(path string) (io.Closer, error) { return lockFolder(path, "node.lock") }

// streams are the parts of the server of logs, exec and port-forward.
func (a *agent) streams() (stream.Options, error) {
	config, err := servingTLS(a.config, a.o)
	if err != nil {
		return stream.Options{}, err
	}
	metrics := http.NewServeMux()
	metrics.HandleFunc("GET /metrics", metricsHandler(a.plane))
	return stream.Options{
		Metrics: metrics, Peers: peers.NewHandler(peers.HandlerOptions{Wait: a.acknowledged}),
		Pods: podsOf{a}, Runtime: podsOf{a}, TLS: config, Logger: a.o.Logger,
		Authorize: stream.Review(a.o.Name, a.client.AuthorizationV1().SubjectAccessReviews()),
		Stats:     usage.New(usage.Options{Node: a.o.Name, Pods: a.processes.Pods, Cgroup: a.groups}).Stats,
	}, nil
}

// podsOf gives the server what it needs of the agent.
type podsOf struct{ a *agent }

func (p podsOf) Lookup(namespace, name string) (*corev1.Pod, bool) {
	return p.a.node.Lookup(namespace, name)
}
func (p podsOf) List() []*corev1.Pod { return p.a.node.Pods() }

func (p podsOf) NetNS(uid string) string {
	pods, err := p.a.processes.Pods(context.Background())
	if err != nil {
		return ""
	}
	if i := slices.IndexFunc(pods, func(pod container.Pod) bool { return pod.Sandbox.UID == uid }); i >= 0 {
		return pods[i].NetNS
	}
	return ""
}

// runtime is the one that the pod belongs to.
func (p podsOf) runtime(uid string) container.Runtime {
	for _, pod := range p.a.node.Pods() {
		if string(pod.UID) == uid && pod.Spec.RuntimeClassName != nil && *pod.Spec.RuntimeClassName != "" {
			if r := p.a.runtimes[*pod.Spec.RuntimeClassName]; r != nil {
				return r
			}
		}
	}
	return p.a.processes
}

func (p podsOf) Exec(ctx context.Context, o container.ExecOptions, s container.Streams) (int, error) {
	return p.runtime(o.Pod).Exec(ctx, o, s)
}

func (p podsOf) Attach(ctx context.Context, pod, name string, s container.Streams) error {
	return p.runtime(pod).Attach(ctx, pod, name, s)
}

func (p podsOf) LogFile(pod, name string, attempt int) string {
	return p.runtime(pod).LogFile(pod, name, attempt)
}

// servingTLS is for the agent's own port: the certificate of its kubeconfig where that may serve, else one that nobody
// vouches for; clients must have one of the cluster's CA.
func servingTLS(config *rest.Config, o NodeOptions) (*tls.Config, error) {
	client, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", o.Kubeconfig, err)
	}
	if client == nil || client.RootCAs == nil {
		return nil, fmt.Errorf("kubeconfig %s: no certificate-authority: the agent needs it to know who asks for logs and exec", o.Kubeconfig)
	}
	serving := &tls.Config{MinVersion: tls.VersionTLS12, ClientCAs: client.RootCAs}
	if client.GetClientCertificate != nil {
		cert, err := client.GetClientCertificate(&tls.CertificateRequestInfo{})
		if err == nil && mayServe(cert) {
			serving.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return client.GetClientCertificate(&tls.CertificateRequestInfo{})
			}
			return serving, nil
		}
	}
	o.Logger.Warn("the kubeconfig's certificate is not one of a node: an API server that verifies nodes cannot get logs or exec from this one; "+
		"make one with endpointd kubeconfig --node", "node", o.Name)
	cert, err := selfSigned(o)
	if err != nil {
		return nil, err
	}
	serving.Certificates = []tls.Certificate{cert}
	return serving, nil
}

func mayServe(cert *tls.Certificate) bool {
	if cert == nil || len(cert.Certificate) == 0 {
		return false
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	return err == nil && slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
}

func selfSigned(o NodeOptions) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: o.Name}, DNSNames: []string{o.Name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, addr := range o.Addrs {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate of the node's own port: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// How much of a container's output is its last words, if it left none (core/v1 TerminationMessageFallbackToLogsOnError).
const (
	lastLines = 80
	lastBytes = 2048
)

// lastWords is the termination message of a container.
func (a *agent) lastWords(pod *corev1.Pod, c *corev1.Container, s *container.Status, logFile string) string {
	text, err := a.specs.TerminationMessage(string(pod.UID), c.Name, s.Attempt)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		a.o.Logger.Debug("termination message", "pod", pod.Namespace+"/"+pod.Name, "container", c.Name, "err", err)
	}
	if text == "" && s.ExitCode != 0 && c.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError {
		text = logs.Tail(logFile, lastLines, lastBytes)
	}
	return text
}
