package apiserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/filters"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/kubeapiserver"
)

// newConfig starts from upstream's defaults (request bodies up to 3 MiB, 400 reading and 200 writing requests in
// flight) and switches off profiling.
func (b *builder) newConfig() error {
	version, err := effectiveVersion()
	if err != nil {
		return err
	}
	c := genericapiserver.NewConfig(legacyscheme.Codecs)
	c.EffectiveVersion = version
	c.MergedResourceConfig = served()
	c.EnableProfiling = false
	c.LongRunningFunc = filters.BasicLongRunningRequestCheck(sets.NewString("watch", "proxy"), sets.NewString("attach", "exec", "proxy", "log", "portforward"))
	c.ShutdownWatchTerminationGracePeriod = shutdownGrace
	c.ExternalAddress = b.options.ExternalHost
	if c.ExternalAddress == "" {
		c.ExternalAddress = externalHost(b.options)
	}
	b.config = c
	return nil
}

// externalHost is the address told to clients when Options names none.
func externalHost(o Options) string {
	if o.Advertise.IsValid() {
		return o.Advertise.String()
	}
	if addr := listenAddr(o); addr.IsValid() && !addr.IsUnspecified() {
		return addr.String()
	}
	return "localhost"
}

// listenAddr is the listener's address, zero when it is not a TCP one.
func listenAddr(o Options) netip.Addr {
	ap, err := netip.ParseAddrPort(o.Listener.Addr().String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

func (b *builder) secureServing() error {
	certs := b.options.Certs
	serving, err := dynamiccertificates.NewDynamicServingContentFromFiles("serving-cert", certs.ServerCertFile, certs.ServerKeyFile)
	if err != nil {
		return fmt.Errorf("server certificate: %w", err)
	}
	ca, err := dynamiccertificates.NewDynamicCAContentFromFile("client-ca", certs.CAFile)
	if err != nil {
		return fmt.Errorf("client CA: %w", err)
	}
	loopbackCert, loopbackKey, err := loopbackCertificate(time.Now())
	if err != nil {
		return fmt.Errorf("loopback certificate: %w", err)
	}
	loopback, err := dynamiccertificates.NewStaticSNICertKeyContent("loopback", loopbackCert, loopbackKey, genericapiserver.LoopbackClientServerNameOverride)
	if err != nil {
		return fmt.Errorf("loopback certificate: %w", err)
	}
	b.config.SecureServing = &genericapiserver.SecureServingInfo{
		Listener: b.options.Listener, Cert: serving, ClientCA: ca, MinTLSVersion: tls.VersionTLS12,
		SNICerts: []dynamiccertificates.SNICertKeyContentProvider{loopback},
	}
	client, err := b.config.SecureServing.NewLoopbackClientConfig(rand.Text(), loopbackCert)
	if err != nil {
		return fmt.Errorf("loopback client: %w", err)
	}
	client.ContentType = runtime.ContentTypeProtobuf
	client.DisableCompression = true
	b.config.LoopbackClientConfig = client
	return nil
}

// loopbackCertificate makes the key pair that only clients of this process see, chosen by a server name that does
// not exist in DNS. It is made anew at each start, as upstream, but on a curve: upstream's two RSA keys are a tenth
// of the start. Ten years: a process does not live that long.
func loopbackCertificate(now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: genericapiserver.LoopbackClientServerNameOverride},
		DNSNames: []string{genericapiserver.LoopbackClientServerNameOverride}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func (b *builder) storage() error {
	e := b.options.Etcd
	b.etcd = genericoptions.NewEtcdOptions(storagebackend.NewDefaultConfig(e.Prefix, nil))
	t := &b.etcd.StorageConfig.Transport
	t.ServerList, t.TrustedCAFile, t.CertFile, t.KeyFile = e.Servers, e.CAFile, e.CertFile, e.KeyFile
	b.etcd.DefaultStorageMediaType = runtime.ContentTypeProtobuf

	factory := kubeapiserver.NewStorageFactoryConfigEffectiveVersion(b.config.EffectiveVersion)
	factory.APIResourceConfig = b.config.MergedResourceConfig
	var err error
	if b.storageFactory, err = factory.Complete(b.etcd).New(); err != nil {
		return err
	}
	b.storageFactory.StorageConfig.StorageObjectCountTracker = b.config.StorageObjectCountTracker
	return b.etcd.ApplyWithStorageFactoryTo(b.storageFactory, b.config)
}
