package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// How nodes and servers know each other. The first two are those of a kubelet (Kubernetes: "Using Node
// Authorization").
const (
	NodeUserPrefix = "system:node:"
	NodesGroup     = "system:nodes"

	// NodeClientName and NodeClientGroup are the API server's when it asks a node for logs, exec or port-forward.
	NodeClientName  = "endpointd-apiserver"
	NodeClientGroup = "endpointd:apiservers"
)

// Node is for whom a certificate is issued.
type Node struct {
	Name string
	// Addrs are where the API server reaches the node's port 10250: the addresses of the Node object.
	Addrs []netip.Addr
}

func nodeClientTemplate() *x509.Certificate {
	return &x509.Certificate{
		Subject:     pkix.Name{CommonName: NodeClientName, Organization: []string{NodeClientGroup}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// nodeTemplate is one certificate for both directions: the agent is a client of the API and serves its own port.
func nodeTemplate(n Node) *x509.Certificate {
	return &x509.Certificate{
		Subject:     pkix.Name{CommonName: NodeUserPrefix + n.Name, Organization: []string{NodesGroup}},
		DNSNames:    []string{n.Name},
		IPAddresses: certAddresses(n.Addrs),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
}

// NodeKubeconfig issues a new key and certificate for the node from the CA in dir, which Ensure made, and returns a
// kubeconfig that holds both. The certificate lives for a year; nothing of it is kept here.
func NodeKubeconfig(dir, url string, n Node) ([]byte, error) {
	return nodeKubeconfig(dir, url, n, time.Now())
}

func nodeKubeconfig(dir, url string, n Node, now time.Time) ([]byte, error) {
	if problems := validation.IsDNS1123Subdomain(n.Name); len(problems) > 0 {
		return nil, fmt.Errorf("node name %q: %s", n.Name, strings.Join(problems, "; "))
	}
	for _, addr := range n.Addrs {
		if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() {
			return nil, fmt.Errorf("node %s: %s is not an address of one machine", n.Name, addr)
		}
	}
	f := files(dir)
	ca, err := readAuthority(f, now)
	if err != nil {
		return nil, err
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	keyText, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	cert, err := ca.issue(nodeTemplate(n), &key.PublicKey, now)
	if err != nil {
		return nil, fmt.Errorf("issue the certificate of node %s: %w", n.Name, err)
	}
	return kubeconfig(url, NodeUserPrefix+n.Name, encode(certBlock, ca.cert.Raw), cert, keyText), nil
}

// WriteNodeKubeconfig writes what NodeKubeconfig made; mode 0600.
func WriteNodeKubeconfig(path string, text []byte) error { return writeFile(path, text) }

// readAuthority reads the CA and makes none. The key is written first, so where the certificate is, both are.
func readAuthority(f *Files, now time.Time) (*authority, error) {
	cert, err := readCert(f.CACert)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no CA in %s: start `endpointd server` with this --data-dir first", filepath.Dir(f.CACert))
	}
	if err != nil {
		return nil, err
	}
	key, err := readKey(f.CAKey)
	if err != nil {
		return nil, err
	}
	return newAuthority(f.CACert, cert, key, now)
}
