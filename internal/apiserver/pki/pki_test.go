package pki

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func options() Options {
	return Options{
		Hosts: []string{"localhost", "kubernetes.default", "localhost"},
		IPs:   []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("::ffff:10.96.0.1"), netip.MustParseAddr("::1")},
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ensure(t *testing.T, dir string, o Options) *Files {
	t.Helper()
	f, err := Ensure(dir, o)
	check(t, err)
	return f
}

// contents: path → text of each file of f.
func contents(t *testing.T, f *Files) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, path := range f.all() {
		text, err := os.ReadFile(path)
		check(t, err)
		out[path] = string(text)
	}
	return out
}

// changed are the base names of files that differ, sorted.
func changed(a, b map[string]string) []string {
	var out []string
	for path := range a {
		if a[path] != b[path] {
			out = append(out, filepath.Base(path))
		}
	}
	slices.Sort(out)
	return out
}

func TestFilesAreUsable(t *testing.T) {
	f := ensure(t, filepath.Join(t.TempDir(), "pki"), options())
	ca, err := os.ReadFile(f.CACert)
	check(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	server, err := tls.LoadX509KeyPair(f.ServerCert, f.ServerKey)
	check(t, err)
	admin, err := tls.LoadX509KeyPair(f.AdminCert, f.AdminKey)
	check(t, err)
	for _, name := range []string{"localhost", "kubernetes.default", "127.0.0.1", "10.96.0.1", "::1"} {
		t.Run(name, func(t *testing.T) {
			peer := handshake(t, &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert},
				&tls.Config{Certificates: []tls.Certificate{admin}, RootCAs: pool, ServerName: name})
			if peer.Subject.CommonName != "admin" || !slices.Equal(peer.Subject.Organization, []string{"system:masters"}) {
				t.Errorf("the server sees %v", peer.Subject)
			}
		})
	}
	if n := len(server.Leaf.IPAddresses); n != 3 {
		t.Errorf("%d addresses in the certificate, want 3: the same one twice is one", n)
	}
	cert, err := readCert(f.CACert)
	check(t, err)
	if years := time.Until(cert.NotAfter).Hours() / 24 / 365; years < 9.9 || years > 10.1 {
		t.Errorf("the CA lives %.1f years, want 10", years)
	}
	for _, path := range []string{f.CAKey, f.ServerKey, f.AdminKey, f.ServiceAccountKey} {
		key, err := readKey(path)
		if err != nil || key.Curve != elliptic.P256() {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// handshake returns the client certificate that the server sees.
func handshake(t *testing.T, server, client *tls.Config) *x509.Certificate {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close() //nolint:errcheck // a pipe
	defer b.Close() //nolint:errcheck // a pipe
	errc := make(chan error, 1)
	c := tls.Client(b, client)
	go func() { errc <- c.HandshakeContext(t.Context()) }()
	s := tls.Server(a, server)
	check(t, s.HandshakeContext(t.Context()))
	check(t, <-errc)
	return s.ConnectionState().PeerCertificates[0]
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "pki")
	f := ensure(t, dir, options())
	kubeconfig := filepath.Join(dir, "admin.kubeconfig")
	check(t, WriteKubeconfig(kubeconfig, "https://127.0.0.1:6443", f))
	widen := func(mode fs.FileMode) {
		check(t, os.Chmod(dir, mode|0o111))
		for _, path := range append(f.all(), kubeconfig) {
			check(t, os.Chmod(path, mode))
		}
	}
	for _, again := range []bool{false, true} {
		if again {
			widen(0o644)
			ensure(t, dir, options())
			check(t, WriteKubeconfig(kubeconfig, "https://127.0.0.1:6443", f))
		}
		for _, path := range append(f.all(), kubeconfig) {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v; want mode 0600", path, info.Mode(), err)
			}
		}
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v; want mode 0700", dir, info.Mode(), err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, ".new-*"))
	check(t, err)
	if len(left) > 0 {
		t.Errorf("temporary files left: %v", left)
	}
}

func TestReissue(t *testing.T) {
	in := func(days int) func() time.Time {
		return func() time.Time { return time.Now().AddDate(0, 0, days) }
	}
	tests := map[string]struct {
		change func(*Options)
		want   []string // changed files
	}{
		"nothing changed":              {func(*Options) {}, nil},
		"order and repeats of names":   {func(o *Options) { slices.Reverse(o.Hosts); slices.Reverse(o.IPs) }, nil},
		"another host":                 {func(o *Options) { o.Hosts = append(o.Hosts, "example.org") }, []string{"server.crt"}},
		"an address less":              {func(o *Options) { o.IPs = o.IPs[:2] }, []string{"server.crt"}},
		"40 days before the end":       {func(o *Options) { o.Now = in(325) }, nil},
		"29 days before the end":       {func(o *Options) { o.Now = in(336) }, []string{"admin.crt", "node-client.crt", "server.crt"}},
		"long after the end":           {func(o *Options) { o.Now = in(1000) }, []string{"admin.crt", "node-client.crt", "server.crt"}},
		"a clock that was in the past": {func(o *Options) { o.Now = in(-100) }, []string{"admin.crt", "node-client.crt", "server.crt"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f := ensure(t, dir, options())
			before := contents(t, f)
			o := options()
			test.change(&o)
			ensure(t, dir, o)
			after := contents(t, f)
			if got := changed(before, after); !slices.Equal(got, test.want) {
				t.Errorf("changed %v, want %v", got, test.want)
			}
			cert, err := readCert(f.ServerCert)
			check(t, err)
			if now := o.now(); now.After(cert.NotAfter) || now.Before(cert.NotBefore) {
				t.Errorf("the serving certificate is not valid at %v", now)
			}
		})
	}
}

// A start may die between any two files.
func TestCutShort(t *testing.T) {
	whole := ensure(t, t.TempDir(), options())
	order := []string{whole.CAKey, whole.CACert, whole.ServiceAccountKey, whole.ServerKey, whole.ServerCert, whole.AdminKey, whole.AdminCert, whole.NodeClientKey, whole.NodeClientCert}
	for n := range order {
		dir := t.TempDir()
		for _, path := range order[:n] {
			text, err := os.ReadFile(path)
			check(t, err)
			check(t, os.WriteFile(filepath.Join(dir, filepath.Base(path)), text, 0o600))
		}
		f, err := Ensure(dir, options())
		if err != nil {
			t.Errorf("after %d files: %v", n, err)
			continue
		}
		if _, err := tls.LoadX509KeyPair(f.ServerCert, f.ServerKey); err != nil {
			t.Errorf("after %d files: %v", n, err)
		}
	}
}

func TestConcurrentCallersAgree(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	var callers sync.WaitGroup
	seen := make([]map[string]string, 8)
	for i := range seen {
		callers.Go(func() {
			f, err := Ensure(dir, options())
			if err != nil {
				t.Error(err)
				return
			}
			seen[i] = contents(t, f)
		})
	}
	callers.Wait()
	for i := range seen {
		if diff := changed(seen[0], seen[i]); len(diff) > 0 {
			t.Errorf("caller %d saw other %v", i, diff)
		}
	}
}

func TestDamagedAndForeignFiles(t *testing.T) {
	other := ensure(t, t.TempDir(), options())
	take := func(t *testing.T, from, to string) {
		text, err := os.ReadFile(from)
		check(t, err)
		check(t, os.WriteFile(to, text, 0o600))
	}
	empty := func(t *testing.T, path string) { check(t, os.WriteFile(path, nil, 0o600)) }
	tests := map[string]struct {
		harm func(t *testing.T, f *Files)
		file func(*Files) string // named in the error
		want string
	}{
		"empty CA":        {func(t *testing.T, f *Files) { empty(t, f.CACert) }, caCert, "is not a certificate in PEM: restore it"},
		"empty CA key":    {func(t *testing.T, f *Files) { empty(t, f.CAKey) }, caKey, "is not an ECDSA P-256 private key in PEM: restore it"},
		"empty token key": {func(t *testing.T, f *Files) { empty(t, f.ServiceAccountKey) }, tokenKey, "is not an ECDSA P-256 private key in PEM: restore it"},
		"garbage certificate": {func(t *testing.T, f *Files) {
			check(t, os.WriteFile(f.ServerCert, encode(certBlock, []byte("x")), 0o600))
		}, serverCert, "malformed certificate"},
		"missing CA key":     {func(t *testing.T, f *Files) { check(t, os.Remove(f.CAKey)) }, caKey, "is missing beside"},
		"missing server key": {func(t *testing.T, f *Files) { check(t, os.Remove(f.ServerKey)) }, serverKey, "is missing beside"},
		"CA of another":      {func(t *testing.T, f *Files) { take(t, other.CACert, f.CACert) }, caCert, "does not belong to its key"},
		"both of another CA": {func(t *testing.T, f *Files) { take(t, other.CACert, f.CACert); take(t, other.CAKey, f.CAKey) },
			serverCert, "was not issued by"},
		"leaf as CA":            {func(t *testing.T, f *Files) { take(t, f.AdminCert, f.CACert) }, caCert, "is not a CA certificate"},
		"server cert of other":  {func(t *testing.T, f *Files) { take(t, other.ServerCert, f.ServerCert) }, serverCert, "was not issued by"},
		"server key of another": {func(t *testing.T, f *Files) { take(t, other.ServerKey, f.ServerKey) }, serverKey, "remove both to have them made anew"},
		"certificate as key":    {func(t *testing.T, f *Files) { take(t, f.AdminCert, f.AdminKey) }, func(f *Files) string { return f.AdminKey }, "is not an ECDSA"},
		"folder as key": {func(t *testing.T, f *Files) { check(t, os.Remove(f.CAKey)); check(t, os.Mkdir(f.CAKey, 0o700)) },
			caKey, "choose another folder with --data-dir"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f := ensure(t, dir, options())
			test.harm(t, f)
			before := snapshot(t, dir)
			_, err := Ensure(dir, options())
			if err == nil {
				t.Fatal("no error")
			}
			if text := err.Error(); !strings.Contains(text, test.file(f)) || !strings.Contains(text, test.want) || strings.Contains(text, "\n") {
				t.Errorf("got  %s\nwant one line with %s and %q", text, test.file(f), test.want)
			}
			if diff := changed(before, snapshot(t, dir)); len(diff) > 0 {
				t.Errorf("changed %v", diff)
			}
		})
	}
	t.Run("expired CA", func(t *testing.T) {
		dir := t.TempDir()
		ensure(t, dir, options())
		o := options()
		o.Now = func() time.Time { return time.Now().AddDate(11, 0, 0) }
		if _, err := Ensure(dir, o); err == nil || !strings.Contains(err.Error(), "ca.crt expired on") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a file where the folder should be", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "pki")
		empty(t, path)
		if _, err := Ensure(path, options()); err == nil || !strings.Contains(err.Error(), "--data-dir") {
			t.Errorf("got %v", err)
		}
	})
}

func caCert(f *Files) string     { return f.CACert }
func caKey(f *Files) string      { return f.CAKey }
func tokenKey(f *Files) string   { return f.ServiceAccountKey }
func serverCert(f *Files) string { return f.ServerCert }
func serverKey(f *Files) string  { return f.ServerKey }

// snapshot: path → text of all regular files in dir.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		out[path] = string(text)
		return err
	}))
	return out
}

func TestKubeconfigFollowsTheCertificates(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "admin.kubeconfig")
	f := ensure(t, dir, options())
	check(t, WriteKubeconfig(path, "https://127.0.0.1:6443", f))
	first, err := os.ReadFile(path)
	check(t, err)
	old := time.Now().Add(-time.Hour)
	check(t, os.Chtimes(path, old, old))
	check(t, WriteKubeconfig(path, "https://127.0.0.1:6443", f))
	if info, err := os.Stat(path); err != nil || !info.ModTime().Equal(old) {
		t.Errorf("written although nothing changed: %v", err)
	}
	o := options()
	o.Now = func() time.Time { return time.Now().AddDate(0, 0, 340) }
	check(t, WriteKubeconfig(path, "https://127.0.0.1:6443", ensure(t, dir, o)))
	second, err := os.ReadFile(path)
	check(t, err)
	if bytes.Equal(first, second) {
		t.Error("the re-issued certificate is not in it")
	}
}

// memory is a Store; etcd's own is tested with Join in join_test.go.
type memory struct {
	mu    sync.Mutex // guards value
	value []byte
}

func (m *memory) CreateOnce(_ context.Context, _ string, value []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.value == nil {
		m.value = value
	}
	return m.value, nil
}

func TestJoinErrors(t *testing.T) {
	down := errors.New("etcd is down")
	if err := Join(t.Context(), t.TempDir(), storeFunc(func() ([]byte, error) { return nil, down }), Options{}); !errors.Is(err, down) {
		t.Errorf("got %v", err)
	}
	for _, text := range []string{"", "garbage", string(encode(certBlock, []byte("x")))} {
		dir := t.TempDir()
		err := Join(t.Context(), dir, storeFunc(func() ([]byte, error) { return []byte(text), nil }), Options{})
		if err == nil || !strings.Contains(err.Error(), SharedKey) {
			t.Errorf("stored %q: %v", text, err)
		}
		if left := snapshot(t, dir); len(left) > 0 {
			t.Errorf("stored %q: files were written: %v", text, left)
		}
	}
	store := &memory{}
	check(t, Join(t.Context(), t.TempDir(), store, Options{}))
	for _, part := range []func(*Files) string{caCert, caKey, tokenKey} {
		dir := t.TempDir()
		f := ensure(t, dir, options())
		for _, path := range f.all() {
			if path != part(f) {
				check(t, os.Remove(path))
			}
		}
		err := Join(t.Context(), dir, store, Options{})
		if err == nil || !strings.Contains(err.Error(), part(f)) || !strings.Contains(err.Error(), "move the folder") {
			t.Errorf("foreign %s: %v", part(f), err)
		}
	}
}

type storeFunc func() ([]byte, error)

func (f storeFunc) CreateOnce(context.Context, string, []byte) ([]byte, error) { return f() }
