package apiserver

import (
	"context"
	"log/slog"
	"maps"
	"slices"

	apiextensionshelpers "k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	apiextensionsoptions "k8s.io/apiextensions-apiserver/pkg/cmd/server/options"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/tools/cache"
)

// newCRDServer makes the server that the main server delegates to for CustomResourceDefinitions and what they define.
func (b *builder) newCRDServer() (*apiextensions.CustomResourceDefinitions, error) {
	config, etcd := *b.config, *b.etcd
	config.PostStartHooks = map[string]genericapiserver.PostStartHookConfigEntry{}
	config.RESTOptionsGetter = nil
	config.MergedResourceConfig = apiextensions.DefaultAPIResourceConfigSource()

	etcd.StorageConfig.Codec = apiextensions.Codecs.LegacyCodec(apiextensionsv1beta1.SchemeGroupVersion, apiextensionsv1.SchemeGroupVersion)
	etcd.StorageConfig.EncodeVersioner = runtime.NewMultiGroupVersioner(apiextensionsv1beta1.SchemeGroupVersion, schema.GroupKind{Group: apiextensionsv1beta1.GroupName})
	etcd.DefaultStorageMediaType = runtime.ContentTypeJSON // as upstream, so that an etcd of a kube-apiserver is readable
	etcd.SkipHealthEndpoints = true                        // the main server has them
	if err := etcd.ApplyTo(&config); err != nil {
		return nil, err
	}

	c := &apiextensions.Config{
		GenericConfig: &genericapiserver.RecommendedConfig{Config: config, SharedInformerFactory: b.informers},
		ExtraConfig: apiextensions.ExtraConfig{
			CRDRESTOptionsGetter: apiextensionsoptions.NewCRDRESTOptionsGetter(etcd, config.ResourceTransformers, config.StorageObjectCountTracker),
			// More than one would hold back each new definition for 5 s, for servers that have not seen it yet.
			MasterCount:         1,
			ServiceResolver:     webhook.NewDefaultServiceResolver(),
			AuthResolverWrapper: webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, config.LoopbackClientConfig, config.TracerProvider),
		},
	}
	return c.Complete().New(genericapiserver.NewEmptyDelegate())
}

// crdGroup is the discovery of the CRD API itself.
func crdGroup() metav1.APIGroup {
	gv := apiextensionsv1.SchemeGroupVersion
	v := metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version}
	return metav1.APIGroup{Name: gv.Group, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v}
}

// crdGroups keeps the unaggregated discovery document, GET /apis, in step with the CustomResourceDefinitions. The
// aggregated one, which kubectl uses, upstream keeps itself.
type crdGroups struct {
	informer cache.SharedIndexInformer
	groups   discovery.GroupManager
	reserved sets.Set[string] // groups of the main server, not to be touched
	changed  chan struct{}    // capacity 1: there is something to look at
	shown    map[string]metav1.APIGroup
}

// run blocks until ctx ends.
func (g *crdGroups) run(ctx context.Context, log *slog.Logger) {
	notify := func() {
		select {
		case g.changed <- struct{}{}:
		default:
		}
	}
	registration, err := g.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { notify() }, UpdateFunc: func(any, any) { notify() }, DeleteFunc: func(any) { notify() },
	})
	if err != nil { // the informer has been stopped: the server is on its way down
		log.Warn("discovery of custom resources not kept", "component", "apiserver", "err", err)
		return
	}
	defer func() { _ = g.informer.RemoveEventHandler(registration) }()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.changed:
			g.show(groupsOf(g.informer.GetStore().List()))
		}
	}
}

// show makes discovery list exactly want besides the reserved groups.
func (g *crdGroups) show(want map[string]metav1.APIGroup) {
	for name := range g.shown {
		if _, ok := want[name]; !ok {
			g.groups.RemoveGroup(name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !g.reserved.Has(name) {
			g.groups.AddGroup(want[name])
		}
	}
	g.shown = want
}

// groupsOf is the discovery of established definitions, versions in Kubernetes order (v2, v1, v1beta1).
func groupsOf(definitions []any) map[string]metav1.APIGroup {
	versions := map[string]sets.Set[string]{}
	for _, obj := range definitions {
		crd, ok := obj.(*apiextensionsv1.CustomResourceDefinition)
		if !ok || !apiextensionshelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
			continue
		}
		for _, v := range crd.Spec.Versions {
			if v.Served {
				if versions[crd.Spec.Group] == nil {
					versions[crd.Spec.Group] = sets.New[string]()
				}
				versions[crd.Spec.Group].Insert(v.Name)
			}
		}
	}
	groups := make(map[string]metav1.APIGroup, len(versions))
	for name, vs := range versions {
		group := metav1.APIGroup{Name: name}
		for _, v := range slices.SortedFunc(maps.Keys(vs), func(a, b string) int { return version.CompareKubeAwareVersionStrings(b, a) }) {
			group.Versions = append(group.Versions, metav1.GroupVersionForDiscovery{GroupVersion: name + "/" + v, Version: v})
		}
		group.PreferredVersion = group.Versions[0]
		groups[name] = group
	}
	return groups
}
