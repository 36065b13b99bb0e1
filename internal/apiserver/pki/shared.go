package pki

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"path/filepath"
)

// SharedKey is where servers on one external etcd keep what they share.
const SharedKey = "/endpointd/pki/shared"

// Store is what Join needs of etcd. CreateOnce writes value unless the key exists and returns what is stored then; it
// must be atomic among all servers.
type Store interface {
	CreateOnce(ctx context.Context, key string, value []byte) ([]byte, error)
}

// shared is what must be the same on every server: clients trust one CA, and each server accepts the tokens that
// another one signed. A nil field is missing.
type shared struct {
	caCert            *x509.Certificate
	caKey             *ecdsa.PrivateKey
	serviceAccountKey *ecdsa.PrivateKey
}

// Join makes dir hold the CA and the ServiceAccount key of the store's cluster. The first server offers its own, or new
// ones; all others take them. Call it before Ensure. It may be repeated, also after it was cut short.
//
// A folder with another CA or key is refused and stays as it is, because its clients trust that CA.
func Join(ctx context.Context, dir string, store Store, o Options) error {
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	f := files(dir)
	local, err := readShared(f)
	if err != nil {
		return err
	}
	offer, err := local.complete(o)
	if err != nil {
		return err
	}
	value, err := offer.encode()
	if err != nil {
		return err
	}
	stored, err := store.CreateOnce(ctx, SharedKey, value)
	if err != nil {
		return fmt.Errorf("share the CA with the other servers: %w", err)
	}
	theirs, err := decodeShared(stored)
	if err != nil {
		return err
	}
	return local.adopt(f, theirs)
}

func readShared(f *Files) (shared, error) {
	var s shared
	var err error
	if exists(f.CACert) {
		if s.caCert, err = readCert(f.CACert); err != nil {
			return s, err
		}
	}
	if exists(f.CAKey) {
		if s.caKey, err = readKey(f.CAKey); err != nil {
			return s, err
		}
	}
	if exists(f.ServiceAccountKey) {
		s.serviceAccountKey, err = readKey(f.ServiceAccountKey)
	}
	return s, err
}

// complete makes what is missing, in memory.
func (s shared) complete(o Options) (shared, error) {
	var err error
	if s.caKey == nil {
		if s.caKey, err = newKey(); err != nil {
			return s, err
		}
		s.caCert = nil // without its key it signs nothing; adopt compares the file with the cluster's
	}
	if s.caCert == nil {
		der, err := newCA(s.caKey, o.now())
		if err != nil {
			return s, err
		}
		if s.caCert, err = x509.ParseCertificate(der); err != nil {
			return s, err
		}
	}
	if s.serviceAccountKey == nil {
		s.serviceAccountKey, err = newKey()
	}
	return s, err
}

// adopt writes those of their parts that the folder lacks; the others must be theirs already.
func (s shared) adopt(f *Files, theirs shared) error {
	foreign := func(path, what string) error {
		return fmt.Errorf("%s is not %s of this etcd cluster: move the folder %s away to take the cluster's, or correct --etcd-servers",
			path, what, filepath.Dir(path))
	}
	switch {
	case s.caCert != nil && !bytes.Equal(s.caCert.Raw, theirs.caCert.Raw):
		return foreign(f.CACert, "the CA")
	case s.caKey != nil && !s.caKey.Equal(theirs.caKey):
		return foreign(f.CAKey, "the CA key")
	case s.serviceAccountKey != nil && !s.serviceAccountKey.Equal(theirs.serviceAccountKey):
		return foreign(f.ServiceAccountKey, "the ServiceAccount key")
	}
	if s.caKey == nil {
		if err := writeKey(f.CAKey, theirs.caKey); err != nil {
			return err
		}
	}
	if s.caCert == nil {
		if err := writeFile(f.CACert, encode(certBlock, theirs.caCert.Raw)); err != nil {
			return err
		}
	}
	if s.serviceAccountKey == nil {
		return writeKey(f.ServiceAccountKey, theirs.serviceAccountKey)
	}
	return nil
}

// encode is the CA's certificate, its key and the ServiceAccount key as PEM blocks in this order.
func (s shared) encode() ([]byte, error) {
	out := encode(certBlock, s.caCert.Raw)
	for _, key := range []*ecdsa.PrivateKey{s.caKey, s.serviceAccountKey} {
		text, err := encodeKey(key)
		if err != nil {
			return nil, err
		}
		out = append(out, text...)
	}
	return out, nil
}

func decodeShared(text []byte) (shared, error) {
	var s shared
	damaged := func() (shared, error) {
		return shared{}, fmt.Errorf("etcd key %s holds no CA and ServiceAccount key: restore it from a backup of etcd, or delete it to have new ones made", SharedKey)
	}
	var blocks []*pem.Block
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		blocks = append(blocks, block)
	}
	if len(blocks) != 3 {
		return damaged()
	}
	var errs [3]error
	s.caCert, errs[0] = x509.ParseCertificate(blocks[0].Bytes)
	s.caKey, errs[1] = x509.ParseECPrivateKey(blocks[1].Bytes)
	s.serviceAccountKey, errs[2] = x509.ParseECPrivateKey(blocks[2].Bytes)
	if errs != [3]error{} || !s.caCert.IsCA || !s.caKey.PublicKey.Equal(s.caCert.PublicKey) {
		return damaged()
	}
	return s, nil
}
