package workload

import (
	"context"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	rbaclisters "k8s.io/client-go/listers/rbac/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
)

// term is one run of all controllers: the shared informers, in wrappers that remember the handlers so that end can
// take them back. Upstream's controllers leave theirs behind, because there a process runs them once.
type term struct {
	namespaces      typed[corelisters.NamespaceLister]
	serviceAccounts typed[corelisters.ServiceAccountLister]
	pods            typed[corelisters.PodLister]
	nodes           typed[corelisters.NodeLister]
	replicaSets     typed[appslisters.ReplicaSetLister]
	deployments     typed[appslisters.DeploymentLister]
	daemonSets      typed[appslisters.DaemonSetLister]
	statefulSets    typed[appslisters.StatefulSetLister]
	revisions       typed[appslisters.ControllerRevisionLister]
	clusterRoles    typed[rbaclisters.ClusterRoleLister]
	rootCAs         typed[corelisters.ConfigMapLister]
	tokens          typed[corelisters.SecretLister]

	claims    typed[corelisters.PersistentVolumeClaimLister] // always empty
	factories []informers.SharedInformerFactory              // of rootCAs and tokens, for this term only
	metadata  metadata.Interface
	shared    map[schema.GroupVersionResource]cache.SharedIndexInformer

	built, ended chan struct{} // closed when all controllers are built; when the term is over

	mu       sync.Mutex // guards handlers
	handlers []func()   // each removes one handler
}

func (c *Controllers) newTerm() *term {
	core, apps, discovery := c.informers.Core().V1(), c.informers.Apps().V1(), c.informers.Discovery().V1()
	t := &term{metadata: c.metadata, shared: map[schema.GroupVersionResource]cache.SharedIndexInformer{},
		built: make(chan struct{}), ended: make(chan struct{})}
	t.namespaces = share(t, corev1.SchemeGroupVersion.WithResource("namespaces"), core.Namespaces())
	t.serviceAccounts = share(t, corev1.SchemeGroupVersion.WithResource("serviceaccounts"), core.ServiceAccounts())
	t.pods = share(t, corev1.SchemeGroupVersion.WithResource("pods"), core.Pods())
	t.nodes = share(t, corev1.SchemeGroupVersion.WithResource("nodes"), core.Nodes())
	t.replicaSets = share(t, appsv1.SchemeGroupVersion.WithResource("replicasets"), apps.ReplicaSets())
	t.deployments = share(t, appsv1.SchemeGroupVersion.WithResource("deployments"), apps.Deployments())
	t.daemonSets = share(t, appsv1.SchemeGroupVersion.WithResource("daemonsets"), apps.DaemonSets())
	t.statefulSets = share(t, appsv1.SchemeGroupVersion.WithResource("statefulsets"), apps.StatefulSets())
	t.revisions = share(t, appsv1.SchemeGroupVersion.WithResource("controllerrevisions"), apps.ControllerRevisions())
	t.clusterRoles = share(t, rbacv1.SchemeGroupVersion.WithResource("clusterroles"), c.informers.Rbac().V1().ClusterRoles())
	// The endpoints controllers hold these anyway; the garbage collector may as well look there.
	share(t, corev1.SchemeGroupVersion.WithResource("services"), core.Services())
	share(t, discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), discovery.EndpointSlices())

	rootCAs := selected(c.client, fields.OneTermEqualSelector(metav1.ObjectNameField, rootcacertpublisher.RootCACertConfigMapName))
	tokens := selected(c.client, fields.OneTermEqualSelector("type", string(corev1.SecretTypeServiceAccountToken)))
	t.factories = []informers.SharedInformerFactory{rootCAs, tokens}
	t.rootCAs = wrap(t, rootCAs.Core().V1().ConfigMaps())
	t.tokens = wrap(t, tokens.Core().V1().Secrets())
	t.claims = emptyClaims()
	return t
}

// start starts the informers that are not shared with other packages.
func (t *term) start(ctx context.Context) {
	for _, f := range t.factories {
		f.Start(ctx.Done())
	}
}

// end takes the handlers back and waits for the informers of this term; their context has ended.
func (t *term) end() {
	close(t.ended)
	t.mu.Lock()
	handlers := t.handlers
	t.handlers = nil
	t.mu.Unlock()
	for _, remove := range handlers {
		remove()
	}
	for _, f := range t.factories {
		f.Shutdown()
	}
}

// typed is an informer with its lister: what the XInformer interfaces of client-go ask for.
type typed[L any] struct {
	informer cache.SharedIndexInformer
	lister   L
}

func (i typed[L]) Informer() cache.SharedIndexInformer { return i.informer }
func (i typed[L]) Lister() L                           { return i.lister }

type source[L any] interface {
	Informer() cache.SharedIndexInformer
	Lister() L
}

func wrap[L any](t *term, s source[L]) typed[L] {
	return typed[L]{remembering{s.Informer(), t}, s.Lister()}
}

// share also lets the garbage collector use the informer.
func share[L any](t *term, gvr schema.GroupVersionResource, s source[L]) typed[L] {
	w := wrap(t, s)
	t.shared[gvr] = w.informer
	return w
}

// remembering is a shared informer whose handlers end with the term.
type remembering struct {
	cache.SharedIndexInformer
	term *term
}

func (r remembering) keep(reg cache.ResourceEventHandlerRegistration, err error) (cache.ResourceEventHandlerRegistration, error) {
	if err == nil {
		r.term.mu.Lock()
		r.term.handlers = append(r.term.handlers, func() { _ = r.RemoveEventHandler(reg) })
		r.term.mu.Unlock()
	}
	return reg, err
}

// gated holds events back until all controllers are built. Upstream's constructors register a handler before they have set
// what it reads; that is right only where informers are started after all constructors, and ours are running.
type gated struct {
	cache.ResourceEventHandler
	term *term
}

func (g gated) open() bool {
	select {
	case <-g.term.built:
		return true
	case <-g.term.ended:
		return false
	}
}

func (g gated) OnAdd(obj any, initial bool) {
	if g.open() {
		g.ResourceEventHandler.OnAdd(obj, initial)
	}
}

func (g gated) OnUpdate(old, now any) {
	if g.open() {
		g.ResourceEventHandler.OnUpdate(old, now)
	}
}

func (g gated) OnDelete(obj any) {
	if g.open() {
		g.ResourceEventHandler.OnDelete(obj)
	}
}

func (r remembering) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return r.keep(r.SharedIndexInformer.AddEventHandler(gated{h, r.term}))
}

func (r remembering) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler, d time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return r.keep(r.SharedIndexInformer.AddEventHandlerWithResyncPeriod(gated{h, r.term}, d))
}

func (r remembering) AddEventHandlerWithOptions(h cache.ResourceEventHandler, o cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	return r.keep(r.SharedIndexInformer.AddEventHandlerWithOptions(gated{h, r.term}, o))
}

// AddIndexers skips those that an earlier term added; the functions are the same.
func (r remembering) AddIndexers(want cache.Indexers) error {
	have, missing := r.GetIndexer().GetIndexers(), cache.Indexers{}
	for name, f := range want {
		if _, ok := have[name]; !ok {
			missing[name] = f
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return r.SharedIndexInformer.AddIndexers(missing)
}

// ForResource gives the garbage collector its informers (informerfactory.InformerFactory): the shared one where there is
// one, else one of metadata only. Upstream keeps whole objects of all built-in kinds.
func (t *term) ForResource(gvr schema.GroupVersionResource) (informers.GenericInformer, error) {
	if shared, ok := t.shared[gvr]; ok {
		return generic{shared, gvr}, nil
	}
	i := metadatainformer.NewFilteredMetadataInformer(t.metadata, gvr, metav1.NamespaceAll, 0, cache.Indexers{}, nil).Informer()
	if err := i.SetTransform(StripManagedFields); err != nil {
		return nil, err
	}
	return generic{selfRun{i}, gvr}, nil
}

// Start does nothing: the shared informers are running, and the others are run by the collector (selfRun).
func (t *term) Start(<-chan struct{}) {}

// selfRun is an informer that is its own controller. The collector runs the controller of each kind and stops it when
// the kind disappears; with upstream's factory that stops nothing, and the informer of a deleted CRD complains for ever.
type selfRun struct{ cache.SharedIndexInformer }

func (s selfRun) GetController() cache.Controller { return s.SharedIndexInformer }

type generic struct {
	informer cache.SharedIndexInformer
	gvr      schema.GroupVersionResource
}

func (g generic) Informer() cache.SharedIndexInformer { return g.informer }

func (g generic) Lister() cache.GenericLister {
	return cache.NewGenericLister(g.informer.GetIndexer(), g.gvr.GroupResource())
}

// noClaims stands in for PersistentVolumeClaims, which the API does not serve. It never runs: the StatefulSet controller
// only waits for it and asks it for claims.
type noClaims struct{ cache.SharedIndexInformer }

func (noClaims) HasSynced() bool { return true }

func emptyClaims() typed[corelisters.PersistentVolumeClaimLister] {
	i := cache.NewSharedIndexInformer(&cache.ListWatch{}, &corev1.PersistentVolumeClaim{}, 0,
		cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	return typed[corelisters.PersistentVolumeClaimLister]{noClaims{i}, corelisters.NewPersistentVolumeClaimLister(i.GetIndexer())}
}

// selected makes informers that keep only matching objects in memory: of ConfigMaps and Secrets, whole Helm
// releases among them, the controllers here need next to nothing.
func selected(client kubernetes.Interface, s fields.Selector) informers.SharedInformerFactory {
	return informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = s.String() }),
		informers.WithTransform(StripManagedFields))
}
