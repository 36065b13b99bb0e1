// Package pki makes and keeps the server's keys and certificates: an own CA, the serving certificate, the
// administrator's client certificate, the one that the server shows to nodes, and the key that signs ServiceAccount
// tokens. It issues the certificates of nodes, which it does not keep.
//
// In: a folder and the names and addresses under which the server is reached; for several servers, the store they
// share (docs/adr/0003-shared-pki.md). Out: the paths of the files, and kubeconfigs.
//
// Invariants: all keys are ECDSA P-256, all files have mode 0600 in a 0700 folder and are written atomically; a key is
// written before its certificate and survives a re-issue, so the pair fits at any moment of a crash; Ensure is
// idempotent and safe to call concurrently, from several processes too.
//
// It refuses files that it cannot parse or that do not belong together: it names them and never replaces them.
//
// To test it: go test -race ./internal/apiserver/pki.
package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	dirMode  = 0o700
	fileMode = 0o600

	caYears = 10
	// renewBefore the end, certificates are issued anew.
	renewBefore = 30 * 24 * time.Hour
	// backdate makes new certificates valid for clients whose clock is a little late.
	backdate = time.Hour
)

// Options say for whom the serving certificate is. The zero value issues one for nobody.
type Options struct {
	Hosts []string
	IPs   []netip.Addr
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Files are the paths of what Ensure made; certificates and keys in PEM.
type Files struct {
	CACert, CAKey         string
	ServerCert, ServerKey string
	AdminCert, AdminKey   string // CN admin, O system:masters
	// NodeClientCert and NodeClientKey are how the server shows itself to nodes: CN NodeClientName, O NodeClientGroup.
	NodeClientCert, NodeClientKey string
	ServiceAccountKey             string
}

func files(dir string) *Files {
	in := func(name string) string { return filepath.Join(dir, name) }
	return &Files{
		CACert: in("ca.crt"), CAKey: in("ca.key"),
		ServerCert: in("server.crt"), ServerKey: in("server.key"),
		AdminCert: in("admin.crt"), AdminKey: in("admin.key"),
		NodeClientCert: in("node-client.crt"), NodeClientKey: in("node-client.key"),
		ServiceAccountKey: in("serviceaccount.key"),
	}
}

func (f *Files) all() []string {
	return []string{f.CACert, f.CAKey, f.ServerCert, f.ServerKey, f.AdminCert, f.AdminKey, f.NodeClientCert, f.NodeClientKey, f.ServiceAccountKey}
}

// Ensure makes what is missing in dir and re-issues the certificates whose names changed or whose end is near. It reports an
// error, and changes nothing that exists, when a file is damaged or belongs to something else.
func Ensure(dir string, o Options) (*Files, error) {
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	now := o.now()
	f := files(dir)
	ca, err := ensureAuthority(f, now)
	if err != nil {
		return nil, err
	}
	if _, err := ensureKey(f.ServiceAccountKey); err != nil {
		return nil, err
	}
	if err := ca.ensureLeaf(f.ServerCert, f.ServerKey, serverTemplate(o), now); err != nil {
		return nil, err
	}
	if err := ca.ensureLeaf(f.AdminCert, f.AdminKey, adminTemplate(), now); err != nil {
		return nil, err
	}
	if err := ca.ensureLeaf(f.NodeClientCert, f.NodeClientKey, nodeClientTemplate(), now); err != nil {
		return nil, err
	}
	return f, tighten(f)
}

func (o Options) now() time.Time {
	if o.Now == nil {
		return time.Now()
	}
	return o.Now()
}

func serverTemplate(o Options) *x509.Certificate {
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "endpointd"},
		DNSNames:    slices.Compact(slices.Sorted(slices.Values(o.Hosts))),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	t.IPAddresses = certAddresses(o.IPs)
	return t
}

// certAddresses are the addresses as a certificate has them: each once, in order.
func certAddresses(addrs []netip.Addr) []net.IP {
	ips := make([]netip.Addr, len(addrs))
	for i, ip := range addrs {
		ips[i] = ip.Unmap().WithZone("")
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	var out []net.IP
	for _, ip := range slices.Compact(ips) {
		out = append(out, ip.AsSlice())
	}
	return out
}

// adminTemplate: the group is bound to cluster-admin by the API server itself (RBAC's privileged group).
func adminTemplate() *x509.Certificate {
	return &x509.Certificate{
		Subject:     pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// authority is the CA with its key.
type authority struct {
	file string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// ensureAuthority reads the CA or makes it. A key alone is a first start that was cut short, and is completed.
func ensureAuthority(f *Files, now time.Time) (*authority, error) {
	if !exists(f.CAKey) && exists(f.CACert) {
		return nil, fmt.Errorf("%s is missing beside %s: restore it, or move the folder %s away to have a new CA made", f.CAKey, f.CACert, filepath.Dir(f.CACert))
	}
	key, err := ensureKey(f.CAKey)
	if err != nil {
		return nil, err
	}
	if !exists(f.CACert) {
		der, err := newCA(key, now)
		if err != nil {
			return nil, err
		}
		if err := writeFile(f.CACert, encode(certBlock, der)); err != nil {
			return nil, err
		}
	}
	cert, err := readCert(f.CACert)
	if err != nil {
		return nil, err
	}
	return newAuthority(f.CACert, cert, key, now)
}

func newAuthority(file string, cert *x509.Certificate, key *ecdsa.PrivateKey, now time.Time) (*authority, error) {
	switch {
	case !cert.IsCA:
		return nil, fmt.Errorf("%s is not a CA certificate: restore the right one, or move the folder %s away", file, filepath.Dir(file))
	case !key.PublicKey.Equal(cert.PublicKey):
		return nil, fmt.Errorf("%s does not belong to its key: restore the pair, or move the folder %s away", file, filepath.Dir(file))
	case now.After(cert.NotAfter):
		return nil, fmt.Errorf("%s expired on %s: move the folder %s away to have a new CA made; all clients need the new one",
			file, cert.NotAfter.Format(time.DateOnly), filepath.Dir(file))
	}
	return &authority{file: file, cert: cert, key: key}, nil
}

func newCA(key *ecdsa.PrivateKey, now time.Time) ([]byte, error) {
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "endpointd-ca"},
		NotBefore: now.Add(-backdate), NotAfter: now.AddDate(caYears, 0, 0),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	return x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
}

// ensureLeaf makes the pair, or issues the certificate anew for the same key when it is no longer right.
func (ca *authority) ensureLeaf(certFile, keyFile string, want *x509.Certificate, now time.Time) error {
	if exists(certFile) {
		if !exists(keyFile) {
			return fmt.Errorf("%s is missing beside %s: restore it, or remove the certificate to have both made anew", keyFile, certFile)
		}
		have, err := readCert(certFile)
		if err != nil {
			return err
		}
		if err := have.CheckSignatureFrom(ca.cert); err != nil {
			return fmt.Errorf("%s was not issued by %s: remove %s and %s to have them made anew", certFile, ca.file, certFile, keyFile)
		}
		key, err := readKey(keyFile)
		if err != nil {
			return err
		}
		if !key.PublicKey.Equal(have.PublicKey) {
			return fmt.Errorf("%s does not belong to %s: remove both to have them made anew", keyFile, certFile)
		}
		if fresh(have, want, now) {
			return nil
		}
	}
	key, err := ensureKey(keyFile)
	if err != nil {
		return err
	}
	text, err := ca.issue(want, &key.PublicKey, now)
	if err != nil {
		return fmt.Errorf("issue %s: %w", certFile, err)
	}
	return writeFile(certFile, text)
}

// issue fills in what all certificates have in common: they live for a year, but no longer than the CA.
func (ca *authority) issue(want *x509.Certificate, key *ecdsa.PublicKey, now time.Time) ([]byte, error) {
	want.NotBefore, want.NotAfter = now.Add(-backdate), now.AddDate(1, 0, 0)
	if want.NotAfter.After(ca.cert.NotAfter) {
		want.NotAfter = ca.cert.NotAfter
	}
	want.KeyUsage, want.BasicConstraintsValid = x509.KeyUsageDigitalSignature, true
	der, err := x509.CreateCertificate(rand.Reader, want, ca.cert, key, ca.key)
	if err != nil {
		return nil, err
	}
	return encode(certBlock, der), nil
}

// fresh: still valid for long enough, or for as long as its CA lives, and for the wanted names.
func fresh(have, want *x509.Certificate, now time.Time) bool {
	return now.Add(renewBefore).Before(have.NotAfter) && !now.Before(have.NotBefore) &&
		slices.Equal(have.DNSNames, want.DNSNames) &&
		slices.EqualFunc(have.IPAddresses, want.IPAddresses, net.IP.Equal)
}

// lock makes dir and holds it against other callers; the kernel releases it with the process.
func lock(dir string) (func(), error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, hint(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, hint(err)
	}
	if err := d.Chmod(dirMode); err != nil {
		_ = d.Close()
		return nil, hint(err)
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { _ = d.Close() }, nil
}

// tighten takes modes back that somebody widened.
func tighten(f *Files) error {
	for _, path := range f.all() {
		if err := os.Chmod(path, fileMode); err != nil {
			return hint(err)
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// hint adds the next step to an error of the file system, which names the file itself.
func hint(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: free some space there, or choose another folder with --data-dir", err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: make it accessible for this user (uid %d), or choose another folder with --data-dir", err, os.Getuid())
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		return fmt.Errorf("%w: choose another folder with --data-dir", err)
	}
	return err
}

// damaged is the error for a file that should be PEM of the given kind.
func damaged(path, kind string, err error) error {
	text := fmt.Sprintf("%s is not %s", path, kind)
	if err != nil {
		text += " (" + strings.TrimPrefix(err.Error(), "x509: ") + ")"
	}
	return errors.New(text + ": restore it from a backup, or move the folder " + filepath.Dir(path) + " away to have everything made anew")
}
