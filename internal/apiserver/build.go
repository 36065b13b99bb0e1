package apiserver

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"
	"k8s.io/kubernetes/pkg/capabilities"
	"k8s.io/kubernetes/pkg/routes"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"github.com/endpointd/endpointd/internal/apiserver/inprocess"
)

// builder holds what the steps of New hand to each other, in the order they fill it.
type builder struct {
	options Options

	config         *genericapiserver.Config
	loopback       *inprocess.Transport
	client         kubernetes.Interface
	informers      informers.SharedInformerFactory
	etcd           *genericoptions.EtcdOptions
	storageFactory *serverstorage.DefaultStorageFactory
	tokens         serviceaccount.TokenGenerator
	keys           serviceaccount.PublicKeysGetter
	bound          *boundPods
	core           *core
	groups         []*genericapiserver.APIGroupInfo
	server         *Server
}

func (b *builder) build() (*Server, error) {
	for _, step := range []func() error{
		b.newConfig, b.secureServing, b.clients, b.storage, b.security, b.registries, b.openAPI, b.servers, b.install, b.hooks,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return b.server, nil
}

// destroy ends what a failed build started.
func (b *builder) destroy() {
	for _, group := range b.groups {
		for _, resources := range group.VersionedResourcesStorageMap {
			for _, storage := range resources {
				storage.Destroy()
			}
		}
	}
}

// clients makes the loopback client and the informers of the server itself. Field managers are dropped from the
// informers' objects: they are a third of a typical object and nobody here reads them.
func (b *builder) clients() error {
	config := rest.CopyConfig(b.config.LoopbackClientConfig)
	config.WarningHandler = rest.NoWarnings{}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	b.client = client
	b.informers = informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(func(obj any) (any, error) {
		if m, err := meta.Accessor(obj); err == nil {
			m.SetManagedFields(nil)
		}
		return obj, nil
	}))
	return nil
}

// security sets who is let in, what they may do, and admission.
func (b *builder) security() error {
	var err error
	if b.tokens, b.keys, err = signingKey(b.options.Certs.ServiceAccountKeyFile); err != nil {
		return err
	}
	c := b.config
	c.Authentication.APIAudiences = []string{Issuer}
	if c.Authentication.Authenticator, err = newAuthenticator(c.SecureServing.ClientCA, b.keys, b.client); err != nil {
		return err
	}
	b.bound = &boundPods{}
	identify := nodeidentifier.NewDefaultNodeIdentifier()
	if c.Authorization.Authorizer, c.RuleResolver, err = newAuthorizer(nodeRights{identify, b.bound}, b.informers); err != nil {
		return err
	}
	if c.AdmissionControl, err = newAdmission(nodeAdmission{identify, b.bound}, b.client, b.informers, c.Authorization.Authorizer, c.EffectiveVersion, c.DrainedNotify()); err != nil {
		return err
	}
	// Process-wide upstream: whether a pod may ask for privileged is for whoever may create pods, as with kubeadm.
	capabilities.Setup(true, 0)
	return nil
}

// registries makes the storage of every resource, before the server: the OpenAPI document depends on it.
func (b *builder) registries() error {
	allocators, err := newAllocators(b.storageFactory, b.client, b.informers, b.options.ServiceCIDRs, b.options.NodePorts)
	if err != nil {
		return err
	}
	b.core = &core{
		storageFactory: b.storageFactory, client: b.client, informers: b.informers, authorizer: b.config.Authorization.Authorizer,
		audiences: b.config.Authentication.APIAudiences, tokens: b.tokens, certs: b.options.Certs, allocators: allocators, bound: b.bound,
	}
	for _, p := range b.providers() {
		group, err := p.NewRESTStorage(b.config.MergedResourceConfig, b.config.RESTOptionsGetter)
		if err != nil {
			return fmt.Errorf("registries of API group %q: %w", p.GroupName(), err)
		}
		b.groups = append(b.groups, &group)
	}
	return nil
}

// servers makes the server of CustomResourceDefinitions and the main server in front of it.
func (b *builder) servers() error {
	b.config.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis") // one for both
	crds, err := b.newCRDServer()
	if err != nil {
		return fmt.Errorf("custom resource definitions: %w", err)
	}
	generic, err := b.config.Complete(b.informers).New("kube-apiserver", crds.GenericAPIServer)
	if err != nil {
		return err
	}
	generic.ShutdownTimeout = shutdownGrace
	b.loopback.Serve(generic.Handler.FullHandlerChain)
	b.server = &Server{generic: generic, loopback: b.loopback, crds: crds, informers: b.informers, log: b.options.Logger, ready: make(chan struct{})}
	return nil
}

func (b *builder) install() error {
	generic := b.server.generic
	// The first group is core/v1, under /api; the rest is under /apis.
	if err := generic.InstallLegacyAPIGroup(genericapiserver.DefaultLegacyAPIPrefix, b.groups[0]); err != nil {
		return err
	}
	if err := generic.InstallAPIGroups(b.groups[1:]...); err != nil {
		return err
	}
	oidc, err := serviceaccount.NewOpenIDMetadataProvider(Issuer, "", b.config.ExternalAddress, b.keys)
	if err != nil {
		return fmt.Errorf("openid metadata: %w", err)
	}
	routes.NewOpenIDMetadataServer(oidc).Install(generic.Handler.GoRestfulContainer)
	return b.server.installDocuments(b.config.OpenAPIConfig, b.config.OpenAPIV3Config)
}
