package peers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/endpointd/endpointd/internal/node/stream"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// authority is a CA of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "test-ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

func (a *authority) issue(t testing.TB, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
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

// user is a client's configuration.
func (a *authority) user(t testing.TB, name string, groups ...string) *tls.Config {
	t.Helper()
	cert, key := a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name, Organization: groups}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return &tls.Config{RootCAs: a.pool(), Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
}

// node is one as package pki issues it for a node, good for both directions.
func (a *authority) node(t testing.TB, name string) tls.Certificate {
	t.Helper()
	cert, key := a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: nodeUserPrefix + name, Organization: []string{nodesGroup}}, DNSNames: []string{name},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// patient is more than anything takes on a loaded machine.
const patient = 30 * time.Second

// client is node-1's.
func (a *authority) client(t testing.TB, change func(*Options)) *Client {
	t.Helper()
	o := Options{TLS: &tls.Config{RootCAs: a.pool(), Certificates: []tls.Certificate{a.node(t, "node-1")}}, Timeout: patient}
	if change != nil {
		change(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// counting counts the connections that it accepts.
type counting struct {
	net.Listener
	accepted atomic.Int32
}

func (l *counting) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.accepted.Add(1)
	}
	return conn, err
}

// watermark is what a node has applied. Its zero value is nothing at all.
type watermark struct {
	mu      sync.Mutex    // guards all below
	version string        // "" = none yet
	raised  chan struct{} // closed at the next change; nil = nobody waits
}

// reach says that everything up to a resourceVersion was done.
func (m *watermark) reach(resourceVersion string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.version = resourceVersion
	if m.raised != nil {
		close(m.raised)
		m.raised = nil
	}
}

// wait returns nil when the resourceVersion was reached, or the error of ctx when that ends.
func (m *watermark) wait(ctx context.Context, resourceVersion string) error {
	for {
		m.mu.Lock()
		if reached(m.version, resourceVersion) {
			m.mu.Unlock()
			return nil
		}
		if m.raised == nil {
			m.raised = make(chan struct{})
		}
		raised := m.raised
		m.mu.Unlock()
		select {
		case <-raised:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func reached(is, asked string) bool {
	c, err := resourceversion.CompareResourceVersion(is, asked)
	return err == nil && c >= 0
}

// agent is another node's.
type agent struct {
	peer     Peer
	applied  watermark
	listener *counting
	stop     func() // ends it and waits
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// reserve gives an address on which nobody listens, and nobody else will.
func reserve(t testing.TB) string {
	t.Helper()
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(socket) })
	local := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Bind(socket, local); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(socket)
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(netip.AddrFrom4(local.Addr), uint16(at.(*unix.SockaddrInet4).Port)).String()
}

// lent is a listener that is given back when it is closed, so that several servers have one address after the other.
type lent struct{ net.Listener }

func (l lent) Close() error { return l.Listener.(*net.TCPListener).SetDeadline(time.Unix(1, 0)) }

func (l lent) open() { _ = l.Listener.(*net.TCPListener).SetDeadline(time.Time{}) }

// start starts a node's HTTPS API with a handler, nil for that of an agent.
func (a *authority) start(t testing.TB, name string, l net.Listener, certificate tls.Certificate, peers http.Handler) *agent {
	t.Helper()
	if l, ok := l.(lent); ok {
		l.open()
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	g := &agent{peer: Peer{Name: name, Addr: at.Addr(), Port: at.Port()}, listener: &counting{Listener: l}}
	if peers == nil {
		peers = NewHandler(HandlerOptions{Wait: g.applied.wait})
	}
	server := stream.New(stream.Options{
		Logger: slog.New(slog.DiscardHandler), Peers: peers,
		TLS: &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: a.pool()},
	})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, g.listener) }()
	g.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("node %s: %v", name, err)
		}
	})
	t.Cleanup(g.stop)
	return g
}

// agent starts one that is as it should be.
func (a *authority) agent(t testing.TB, name string) *agent {
	t.Helper()
	return a.start(t, name, listen(t), a.node(t, name), nil)
}
