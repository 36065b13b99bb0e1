package apiserver

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	api "k8s.io/kubernetes/pkg/apis/core"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
	configmapstore "k8s.io/kubernetes/pkg/registry/core/configmap/storage"
	endpointsstore "k8s.io/kubernetes/pkg/registry/core/endpoint/storage"
	eventstore "k8s.io/kubernetes/pkg/registry/core/event/storage"
	namespacestore "k8s.io/kubernetes/pkg/registry/core/namespace/storage"
	nodestore "k8s.io/kubernetes/pkg/registry/core/node/storage"
	podstore "k8s.io/kubernetes/pkg/registry/core/pod/storage"
	secretstore "k8s.io/kubernetes/pkg/registry/core/secret/storage"
	servicestore "k8s.io/kubernetes/pkg/registry/core/service/storage"
	serviceaccountstore "k8s.io/kubernetes/pkg/registry/core/serviceaccount/storage"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

const (
	// eventTTL is how long Events are kept, as upstream's --event-ttl.
	eventTTL = time.Hour
	// tokenLifetime is the longest ServiceAccount token that is issued. Upstream leaves it to the operator; a year
	// is what upstream gives to projected tokens with extended expiration.
	tokenLifetime = 365 * 24 * time.Hour
)

// core serves the chosen part of core/v1: the group that upstream composes in one piece together with
// PersistentVolumes, ReplicationControllers, quotas and limits, which would each cost a watch cache here.
type core struct {
	storageFactory serverstorage.StorageFactory
	client         kubernetes.Interface
	informers      informers.SharedInformerFactory
	authorizer     authorizer.Authorizer
	audiences      authenticator.Audiences
	tokens         serviceaccount.TokenGenerator
	certs          Certs
	allocators     *allocators
	bound          *boundPods // gets the stores of Pods and Nodes

	connections nodeConnections // set with the stores
}

func (c *core) GroupName() string { return api.GroupName }

// NewRESTStorage implements provider.
func (c *core) NewRESTStorage(_ serverstorage.APIResourceConfigSource, g generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error) {
	info := genericapiserver.NewDefaultAPIGroupInfo(api.GroupName, legacyscheme.Scheme, legacyscheme.ParameterCodec, legacyscheme.Codecs)
	storage := map[string]rest.Storage{}
	if err := c.plainStorage(g, storage); err != nil {
		return info, err
	}
	if err := c.workloadStorage(g, storage); err != nil {
		return info, err
	}
	info.VersionedResourcesStorageMap["v1"] = storage
	return info, nil
}

// plainStorage adds the resources that depend on no other.
func (c *core) plainStorage(g generic.RESTOptionsGetter, s map[string]rest.Storage) error {
	namespaces, namespaceStatus, namespaceFinalize, err1 := namespacestore.NewREST(g)
	endpoints, err2 := endpointsstore.NewREST(g)
	events, err3 := eventstore.NewREST(g, uint64(eventTTL.Seconds()))
	configMaps, err4 := configmapstore.NewREST(g)
	secrets, err5 := secretstore.NewREST(g)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return err
	}
	s["namespaces"], s["namespaces/status"], s["namespaces/finalize"] = namespaces, namespaceStatus, namespaceFinalize
	s["endpoints"], s["events"], s["configmaps"], s["secrets"] = endpoints, events, configMaps, secrets
	return nil
}

// workloadStorage adds Node, Pod, Service and ServiceAccount, which look each other up. It reads s["secrets"].
func (c *core) workloadStorage(g generic.RESTOptionsGetter, s map[string]rest.Storage) error {
	transport := proxyTransport()
	nodes, err := nodestore.NewStorage(g, nodeClient(c.certs), transport)
	if err != nil {
		return err
	}
	c.connections = nodeConnections{nodes.KubeletConnectionInfo}
	pods, err := podstore.NewStorage(g, c.connections, transport, noDisruptionBudgets{}, c.authorizer)
	if err != nil {
		return err
	}
	slices, err := proxy.NewEndpointSliceIndexerGetter(c.informers.Discovery().V1().EndpointSlices())
	if err != nil {
		return err
	}
	c.bound.pods, c.bound.nodes = pods.Pod.Store, nodes.Node.Store
	a := c.allocators
	services, serviceStatus, serviceProxy, err := servicestore.NewREST(g, a.primary, a.ips, a.ports, slices, pods.Pod, transport)
	if err != nil {
		return err
	}
	accounts, err := serviceaccountstore.NewREST(g, c.tokens, c.audiences, c.authorizer, tokenLifetime,
		pods.Pod.Store, s["secrets"].(rest.Getter), nodes.Node.Store, noWebhooks[*validatingWebhook]{}, noWebhooks[*mutatingWebhook]{}, false, 0)
	if err != nil {
		return err
	}

	s["nodes"], s["nodes/status"], s["nodes/proxy"] = nodes.Node, nodes.Status, nodes.Proxy
	s["pods"], s["pods/status"], s["pods/binding"], s["pods/eviction"] = pods.Pod, pods.Status, pods.Binding, pods.Eviction
	s["pods/log"], s["pods/exec"], s["pods/attach"] = pods.Log, pods.Exec, pods.Attach
	s["pods/portforward"], s["pods/proxy"] = pods.PortForward, pods.Proxy
	s["pods/ephemeralcontainers"], s["pods/resize"] = pods.EphemeralContainers, pods.Resize
	s["services"], s["services/status"], s["services/proxy"] = services, serviceStatus, serviceProxy
	s["serviceaccounts"], s["serviceaccounts/token"] = accounts, accounts.Token
	return nil
}

// nodeClient is how the server reaches node agents for logs, exec and port-forward: verified against our own CA.
func nodeClient(c Certs) kubeletclient.KubeletClientConfig {
	return kubeletclient.KubeletClientConfig{
		Port:                  10250,
		PreferredAddressTypes: []string{string(api.NodeInternalIP), string(api.NodeExternalIP), string(api.NodeHostName)},
		HTTPTimeout:           5 * time.Second,
		TLSClientConfig:       kubeletclient.KubeletTLSConfig{CAFile: c.CAFile, CertFile: c.NodeClientCertFile, KeyFile: c.NodeClientKeyFile},
	}
}

// proxyTransport is for the proxy subresources of pods, services and nodes. Certificates are not verified, as
// upstream: a pod has no name that anybody could have certified, and who may use the proxy may reach the pod anyway.
func proxyTransport() *http.Transport {
	return utilnet.SetTransportDefaults(&http.Transport{
		DialContext:     (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
	})
}
