package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
)

const (
	certBlock = "CERTIFICATE"
	keyBlock  = "EC PRIVATE KEY" // SEC 1, which client-go and openssl read
)

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return encode(keyBlock, der), nil
}

// ensureKey reads the key or makes it.
func ensureKey(path string) (*ecdsa.PrivateKey, error) {
	if exists(path) {
		return readKey(path)
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	return key, writeKey(path, key)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	text, err := encodeKey(key)
	if err != nil {
		return err
	}
	return writeFile(path, text)
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, hint(err)
	}
	return parseKey(path, text)
}

func parseKey(path string, text []byte) (*ecdsa.PrivateKey, error) {
	const kind = "an ECDSA P-256 private key in PEM"
	block, _ := pem.Decode(text)
	if block == nil || block.Type != keyBlock {
		return nil, damaged(path, kind, nil)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil || key.Curve != elliptic.P256() {
		return nil, damaged(path, kind, err)
	}
	return key, nil
}

func readCert(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, hint(err)
	}
	return parseCert(path, text)
}

func parseCert(path string, text []byte) (*x509.Certificate, error) {
	const kind = "a certificate in PEM"
	block, _ := pem.Decode(text)
	if block == nil || block.Type != certBlock {
		return nil, damaged(path, kind, nil)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, damaged(path, kind, err)
	}
	return cert, nil
}

// writeFile replaces path atomically and durably: after a crash it holds the old content or the new.
func writeFile(path string, text []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-") // with mode 0600
	if err != nil {
		return hint(err)
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return hint(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return hint(err)
	}
	defer d.Close() //nolint:errcheck // read only
	return d.Sync()
}
