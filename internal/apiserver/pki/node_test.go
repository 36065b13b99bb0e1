package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

func node(name string, addrs ...string) Node {
	n := Node{Name: name}
	for _, addr := range addrs {
		n.Addrs = append(n.Addrs, netip.MustParseAddr(addr))
	}
	return n
}

// The one certificate is the node's as a client of the server, and as a server for the server.
func TestNodeKubeconfig(t *testing.T) {
	dir := t.TempDir()
	f := ensure(t, dir, options())
	text, err := NodeKubeconfig(dir, "https://10.200.0.1:6443", node("node-1", "10.200.0.11", "fd00:200::b", "10.200.0.11"))
	check(t, err)
	path := filepath.Join(dir, "node-1.kubeconfig")
	check(t, WriteNodeKubeconfig(path, text))
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info.Mode(), err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	check(t, err)
	if config.Host != "https://10.200.0.1:6443" {
		t.Errorf("host %s", config.Host)
	}
	client, err := rest.TLSConfigFor(config)
	check(t, err)
	own, err := tls.X509KeyPair(config.CertData, config.KeyData)
	check(t, err)
	server, err := tls.LoadX509KeyPair(f.ServerCert, f.ServerKey)
	check(t, err)
	admin, err := tls.LoadX509KeyPair(f.NodeClientCert, f.NodeClientKey)
	check(t, err)

	client.ServerName = "127.0.0.1"
	peer := handshake(t, &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: client.RootCAs, ClientAuth: tls.RequireAndVerifyClientCert}, client)
	if peer.Subject.CommonName != "system:node:node-1" || !slices.Equal(peer.Subject.Organization, []string{"system:nodes"}) {
		t.Errorf("the server sees %v", peer.Subject)
	}
	if year := time.Until(peer.NotAfter).Hours() / 24; year < 364 || year > 367 {
		t.Errorf("lives %.0f days, want a year", year)
	}
	for _, name := range []string{"node-1", "10.200.0.11", "fd00:200::b"} {
		peer := handshake(t, &tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: client.RootCAs, ClientAuth: tls.RequireAndVerifyClientCert},
			&tls.Config{Certificates: []tls.Certificate{admin}, RootCAs: client.RootCAs, ServerName: name})
		if peer.Subject.CommonName != NodeClientName || !slices.Equal(peer.Subject.Organization, []string{NodeClientGroup}) {
			t.Errorf("%s: the node sees %v", name, peer.Subject)
		}
	}
	if err := own.Leaf.VerifyHostname("10.200.0.12"); err == nil {
		t.Error("valid for another node's address")
	}
	if usage := own.Leaf.ExtKeyUsage; !slices.Equal(usage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}) {
		t.Errorf("usage %v", usage)
	}
	if len(own.Leaf.IPAddresses) != 2 {
		t.Errorf("addresses %v", own.Leaf.IPAddresses)
	}

	again, err := NodeKubeconfig(dir, "https://10.200.0.1:6443", node("node-1"))
	check(t, err)
	if string(again) == string(text) {
		t.Error("the second one has the same key")
	}
}

func TestNodeKubeconfigErrors(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir, options())
	for _, test := range []struct {
		name, dir string
		node      Node
		now       time.Time
		want      string
	}{
		{"no CA", t.TempDir(), node("n"), time.Now(), "start `endpointd server`"},
		{"no name", dir, node(""), time.Now(), "node name \"\""},
		{"a name that injects", dir, node("n\n- name: admin"), time.Now(), "node name"},
		{"upper case", dir, node("Node-1"), time.Now(), "lower case"},
		{"unspecified address", dir, node("n", "0.0.0.0"), time.Now(), "0.0.0.0 is not an address of one machine"},
		{"expired CA", dir, node("n"), time.Now().AddDate(11, 0, 0), "ca.crt expired on"},
	} {
		if _, err := nodeKubeconfig(test.dir, "https://127.0.0.1:6443", test.node, test.now); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q in it", test.name, err, test.want)
		}
	}
	check(t, os.Remove(filepath.Join(dir, "ca.key")))
	if _, err := NodeKubeconfig(dir, "https://127.0.0.1:6443", node("n")); err == nil || !strings.Contains(err.Error(), "ca.key") {
		t.Errorf("without the CA key: %v", err)
	}
	if left := snapshot(t, dir); left[filepath.Join(dir, "ca.key")] != "" {
		t.Error("a new CA key was made")
	}
}
