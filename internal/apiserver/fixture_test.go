package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/endpointd/endpointd/internal/apiserver/etcd"
	"github.com/endpointd/endpointd/internal/apiserver/pki"
)

// shared is the one server of most tests. They run in parallel and keep to their own namespace or names.
var shared *fixture

// fixture is a running server with an etcd of its own.
type fixture struct {
	server *Server
	files  *pki.Files
	etcd   *etcd.Server
	addr   string
	log    *lines
	stop   func() error
	took   time.Duration // New to Ready
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "endpointd-apiserver")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	shared, err = start(dir, "127.0.0.1:0", nil, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start server:", err)
		return 1
	}
	code := m.Run()
	if err := shared.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stop server:", err)
		return 1
	}
	return code
}

// start runs a server with its state in dir, on the etcd of on if that is given, until stop.
func start(dir, listen string, on *fixture, change func(*Options)) (*fixture, error) {
	ctx, cancel := context.WithCancel(context.Background())
	f := &fixture{log: &lines{}}
	var err error
	if on != nil {
		f.etcd, f.files = on.etcd, on.files
	} else {
		if f.etcd, err = etcd.Start(ctx, etcd.Options{Dir: filepath.Join(dir, "etcd")}); err != nil {
			cancel()
			return nil, err
		}
		if f.files, err = pki.Ensure(filepath.Join(dir, "pki"), pki.Options{Hosts: []string{"localhost"}, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}); err != nil {
			cancel()
			return nil, err
		}
	}
	began := time.Now()
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		cancel()
		return nil, err
	}
	f.addr = listener.Addr().String()
	o := f.options(listener)
	if change != nil {
		change(&o)
	}
	if f.server, err = New(ctx, o); err != nil {
		cancel()
		return nil, errors.Join(err, listener.Close())
	}
	done := make(chan error, 1)
	go func() { done <- f.server.Run(ctx) }()
	f.stop = sync.OnceValue(func() error {
		cancel()
		err := <-done
		if on == nil {
			f.etcd.Close()
		}
		return err
	})
	select {
	case <-f.server.Ready():
		f.took = time.Since(began)
		return f, nil
	case err := <-done:
		cancel()
		return nil, fmt.Errorf("ended before it was ready: %w", err)
	case <-time.After(30 * time.Second):
		return nil, errors.Join(fmt.Errorf("not ready after 30 s; log:\n%s", f.log), f.stop())
	}
}

// options are those of a dual-stack server on f's etcd.
func (f *fixture) options(listener net.Listener) Options {
	return Options{
		Listener: listener, Etcd: EtcdOptions{Servers: f.etcd.Endpoints()},
		Certs: Certs{
			CAFile: f.files.CACert, ServerCertFile: f.files.ServerCert, ServerKeyFile: f.files.ServerKey, ServiceAccountKeyFile: f.files.ServiceAccountKey,
			NodeClientCertFile: f.files.NodeClientCert, NodeClientKeyFile: f.files.NodeClientKey,
		},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
		Logger:       slog.New(slog.NewTextHandler(f.log, nil)),
	}
}

// lines is a log that tests read.
type lines struct {
	mu  sync.Mutex // guards buf
	buf strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// admin is a configuration for JSON over TLS with the admin's client certificate.
func (f *fixture) admin() *rest.Config {
	return &rest.Config{
		Host: "https://" + f.addr, QPS: -1, WarningHandler: rest.NoWarnings{},
		TLSClientConfig: rest.TLSClientConfig{CAFile: f.files.CACert, CertFile: f.files.AdminCert, KeyFile: f.files.AdminKey},
	}
}

func (f *fixture) client(t *testing.T) *kubernetes.Clientset {
	t.Helper()
	c, err := kubernetes.NewForConfig(f.admin())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestReady(t *testing.T) {
	t.Logf("ready after %s", shared.took)
	v, err := shared.client(t).Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if v.Major != "1" || v.Minor != "37" || !strings.HasPrefix(v.GitVersion, "v1.37.") {
		t.Errorf("version %+v, want v1.37", v)
	}
}
