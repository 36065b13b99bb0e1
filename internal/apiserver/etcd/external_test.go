package etcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/embed"
)

// authority is a certificate authority for one test.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.issue(t, "ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue writes NAME.crt and NAME.key.
func (a *authority) issue(t *testing.T, name string, tmpl *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl.SerialNumber, tmpl.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	check(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	check(t, err)
	write(t, a.file(name+".crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, a.file(name+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})))
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	return cert, key
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// startTLS runs an etcd that asks for client certificates on a loopback port.
func startTLS(t *testing.T, a *authority) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	address := free.Addr().String()
	check(t, free.Close())
	dir := t.TempDir()
	cfg := config(dir, dir)
	cfg.LogLevel = "panic"
	u := url.URL{Scheme: "https", Host: address}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{u}, []url.URL{u}
	cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile = a.file("server.crt"), a.file("server.key")
	cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = a.file("ca.crt"), true
	e, err := embed.StartEtcd(cfg)
	check(t, err)
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return u.String()
}

func TestCheck(t *testing.T) {
	ours, foreign := newAuthority(t), newAuthority(t)
	ours.issue(t, "server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
	clientUse := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	ours.issue(t, "client", &x509.Certificate{ExtKeyUsage: clientUse})
	foreign.issue(t, "client", &x509.Certificate{ExtKeyUsage: clientUse})
	secure := startTLS(t, ours)
	plain := start(t, filepath.Join(t.TempDir(), "etcd")).Endpoints()[0]
	closed := closedPort(t)
	good := External{Servers: []string{secure}, CAFile: ours.file("ca.crt"), CertFile: ours.file("client.crt"), KeyFile: ours.file("client.key")}

	tests := map[string]struct {
		change func(*External)
		want   string // the end of the error; empty: no error
	}{
		"TLS and a client certificate": {func(*External) {}, ""},
		"unix socket":                  {func(e *External) { *e = External{Servers: []string{plain}} }, ""},
		"one of two members down":      {func(e *External) { e.Servers = []string{"https://" + closed, secure} }, ""},
		"nobody listens":               {func(e *External) { e.Servers = []string{"http://" + closed} }, "is etcd running there? start it, or correct --etcd-servers"},
		"no socket":                    {func(e *External) { e.Servers = []string{"unix:///nowhere/etcd.sock"} }, "is etcd running there? start it, or correct --etcd-servers"},
		"foreign CA":                   {func(e *External) { e.CAFile = foreign.file("ca.crt") }, "give the CA that signed its certificate with --etcd-cafile"},
		"no client certificate":        {func(e *External) { e.CertFile, e.KeyFile = "", "" }, "give one that it trusts with --etcd-certfile and --etcd-keyfile"},
		"foreign client certificate": {func(e *External) { e.CertFile, e.KeyFile = foreign.file("client.crt"), foreign.file("client.key") },
			"give one that it trusts with --etcd-certfile and --etcd-keyfile"},
		"name not in the certificate": {func(e *External) { e.Servers = []string{strings.Replace(secure, "127.0.0.1", "localhost", 1)} },
			"use a name or address from its certificate in --etcd-servers"},
		"http to a TLS port":         {func(e *External) { e.Servers = []string{strings.Replace(secure, "https", "http", 1)} }, "(https:// where it uses TLS)"},
		"missing CA file":            {func(e *External) { e.CAFile = "/nowhere/ca.crt" }, "no such file or directory"},
		"CA file without a CA":       {func(e *External) { e.CAFile = ours.file("ca.key") }, "no PEM certificate in it"},
		"key of another certificate": {func(e *External) { e.KeyFile = ours.file("server.key") }, "give both files of one pair"},
		"only half of the pair":      {func(e *External) { e.KeyFile = "" }, "give both files of one pair"},
		"not etcd": {func(e *External) {
			e.Servers = []string{"http://" + answering(t, "HTTP/1.1 400 Bad Request\r\n\r\n")}
		}, "check scheme and port in --etcd-servers (https:// where it uses TLS)"},
		"TLS to a plain port": {func(e *External) { e.Servers = []string{"https://" + answering(t, "HTTP/1.1 400 Bad Request\r\n\r\n")} }, "use http:// in --etcd-servers"},
		"a member that never answers": {func(e *External) {
			e.Servers = []string{"http://" + answering(t, "\x00\x00\x00\x04\x00\x00\x00\x00\x00")}
		}, "has the cluster lost its majority?"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := good
			test.change(&e)
			begin := time.Now()
			err := Check(context.Background(), e)
			if took := time.Since(begin); took > 2*checkTimeout+time.Second {
				t.Errorf("took %v", took)
			}
			switch {
			case test.want == "" && err != nil:
				t.Errorf("got %v, want no error", err)
			case test.want != "" && (err == nil || !strings.HasSuffix(err.Error(), test.want) || strings.Contains(err.Error(), "\n")):
				t.Errorf("got  %v\nwant one line ending in %q", err, test.want)
			}
		})
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	check(t, l.Close())
	return l.Addr().String()
}

// answering accepts connections, sends each the same bytes and then says nothing more.
func answering(t *testing.T, bytes string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var open []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			open = append(open, c)
			_, _ = io.WriteString(c, bytes)
		}
		for _, c := range open {
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

func TestAdvise(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"expired certificate": {&tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}}, "renewed or replaced"},
		"unknown host":        {&net.DNSError{Err: "no such host", Name: "etcd.invalid", IsNotFound: true}, "correct the host name in --etcd-servers"},
		"silence":             {os.ErrDeadlineExceeded, "nothing answers there: check the address in --etcd-servers and the firewall"},
		"anything else":       {errors.New("boom"), "check --etcd-servers"},
	} {
		if got := advise("https://etcd:2379", test.err); !strings.HasSuffix(got.Error(), test.want) || !errors.Is(got, test.err) {
			t.Errorf("%s: got %v, want it to end in %q", name, got, test.want)
		}
	}
	if got := adviseCluster("s", rpctypes.ErrPermissionDenied); !strings.Contains(got.Error(), "whose user may read and write /registry") {
		t.Errorf("permission denied: %v", got)
	}
}
