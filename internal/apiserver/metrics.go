package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"

	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/registry/generic"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	api "k8s.io/kubernetes/pkg/apis/core"

	"github.com/endpointd/endpointd/internal/apiserver/top"
)

// maxSummary bounds what a node's agent may answer; 1,000 pods are about 1 MiB.
const maxSummary = 32 << 20

// metricsProvider serves metrics.k8s.io, for kubectl top. It comes after core, of which it needs the stores.
type metricsProvider struct {
	core *core
	log  *slog.Logger
}

func (*metricsProvider) GroupName() string { return top.GroupVersion().Group }

// NewRESTStorage implements provider. The group has a scheme of its own: legacyscheme.Scheme belongs to the process, and
// upstream does not have this group in it.
func (p *metricsProvider) NewRESTStorage(serverstorage.APIResourceConfigSource, generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error) {
	scheme, err := top.Scheme()
	if err != nil {
		return genericapiserver.APIGroupInfo{}, err
	}
	gv := top.GroupVersion()
	info := genericapiserver.NewDefaultAPIGroupInfo(gv.Group, scheme, runtime.NewParameterCodec(scheme), serializer.NewCodecFactory(scheme))
	info.VersionedResourcesStorageMap[gv.Version] = top.Storage(top.Options{Source: cached{p.core.bound}, Ask: p.ask, Logger: p.log})
	return info, nil
}

// ask gets a node's summary from its agent, over the connection that logs take.
func (p *metricsProvider) ask(ctx context.Context, node string) (*statsapi.Summary, error) {
	info, err := p.core.connections.GetConnectionInfo(ctx, types.NodeName(node))
	if err != nil {
		return nil, err
	}
	where := url.URL{Scheme: info.Scheme, Host: net.JoinHostPort(info.Hostname, info.Port), Path: "/stats/summary"}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, where.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := info.Transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close() //nolint:errcheck // read to its end, or given up
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", where.Path, response.Status)
	}
	var summary statsapi.Summary
	if err := json.NewDecoder(io.LimitReader(response.Body, maxSummary)).Decode(&summary); err != nil {
		return nil, fmt.Errorf("%s: %w", where.Path, err)
	}
	return &summary, nil
}

// cached is the API's pods and nodes as top.Source. Lists are from the watch cache: what a moment ago was not there has used nothing yet.
type cached struct{ *boundPods }

// Nodes implements top.Source.
func (c cached) Nodes(ctx context.Context, o *metainternalversion.ListOptions) ([]top.Object, error) {
	list, err := c.nodes.List(ctx, fromCache(o))
	if err != nil {
		return nil, err
	}
	items := list.(*api.NodeList).Items
	found := make([]top.Object, len(items))
	for i := range items {
		found[i] = identity(&items[i].ObjectMeta)
	}
	return found, nil
}

// Node implements top.Source.
func (c cached) Node(ctx context.Context, name string) (top.Object, error) {
	node, err := c.nodes.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return top.Object{}, err
	}
	return identity(&node.(*api.Node).ObjectMeta), nil
}

// Pods implements top.Source.
func (c cached) Pods(ctx context.Context, o *metainternalversion.ListOptions) ([]top.Object, error) {
	list, err := c.pods.List(ctx, fromCache(o))
	if err != nil {
		return nil, err
	}
	items := list.(*api.PodList).Items
	found := make([]top.Object, len(items))
	for i := range items {
		found[i] = podObject(&items[i])
	}
	return found, nil
}

// Pod implements top.Source.
func (c cached) Pod(ctx context.Context, name string) (top.Object, error) {
	pod, err := c.pods.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return top.Object{}, err
	}
	return podObject(pod.(*api.Pod)), nil
}

// fromCache are the selectors of a request, without its wishes about versions and pages: an answer has all there is now.
func fromCache(o *metainternalversion.ListOptions) *metainternalversion.ListOptions {
	options := &metainternalversion.ListOptions{ResourceVersion: "0"}
	if o != nil {
		options.LabelSelector, options.FieldSelector = o.LabelSelector, o.FieldSelector
	}
	return options
}

func podObject(pod *api.Pod) top.Object {
	o := identity(&pod.ObjectMeta)
	if pod.Status.Phase != api.PodSucceeded && pod.Status.Phase != api.PodFailed {
		o.Node = pod.Spec.NodeName
	}
	return o
}

func identity(m *metav1.ObjectMeta) top.Object {
	return top.Object{Namespace: m.Namespace, Name: m.Name, UID: string(m.UID), Labels: m.Labels, Created: m.CreationTimestamp}
}
