package apiserver

import (
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net/netip"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/filters"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/kubeapiserver"

	"github.com/endpointd/endpointd/internal/apiserver/inprocess"
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
	b.config.SecureServing = &genericapiserver.SecureServingInfo{
		Listener: b.options.Listener, Cert: serving, ClientCA: ca, MinTLSVersion: tls.VersionTLS12,
	}
	b.loopback = inprocess.New()
	b.config.LoopbackClientConfig = &rest.Config{
		Host: "https://in-process", Transport: b.loopback, BearerToken: rand.Text(), QPS: -1, // no rate limit
		ContentConfig: rest.ContentConfig{ContentType: runtime.ContentTypeProtobuf, AcceptContentTypes: runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON}, DisableCompression: true,
	}
	return nil
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
