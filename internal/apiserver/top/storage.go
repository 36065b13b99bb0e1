package top

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/metrics/pkg/apis/metrics"
	"k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// Object is what is to be known of a Node or a Pod.
type Object struct {
	Namespace, Name, UID string
	Labels               map[string]string // not modified
	Created              metav1.Time
	Node                 string // a pod's; "" = it has none, or has ended
}

// Source finds objects. It is called concurrently. Lists have the options' selectors applied, those of pods also the context's
// namespace; errors are the API's.
type Source interface {
	Nodes(ctx context.Context, o *metainternalversion.ListOptions) ([]Object, error)
	Node(ctx context.Context, name string) (Object, error)
	Pods(ctx context.Context, o *metainternalversion.ListOptions) ([]Object, error)
	Pod(ctx context.Context, name string) (Object, error)
}

// Options are all required.
type Options struct {
	Source Source
	Ask    Ask
	Logger *slog.Logger
}

// GroupVersion is what is served.
func GroupVersion() schema.GroupVersion { return v1beta1.SchemeGroupVersion }

// Scheme is one for this group alone.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{metrics.AddToScheme, v1beta1.AddToScheme, metainternalversion.AddToScheme} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"}) // options, Status and Table
	return s, s.SetVersionPriority(v1beta1.SchemeGroupVersion)
}

// Storage gives the resources: name → storage. Destroy of any forgets everything.
func Storage(o Options) map[string]rest.Storage {
	m := &meter{ask: o.Ask, log: o.Logger}
	return map[string]rest.Storage{"nodes": &nodes{m, o.Source}, "pods": &pods{m, o.Source}}
}

type nodes struct {
	meter  *meter
	source Source
}

var _ interface {
	rest.Storage
	rest.Lister
	rest.Getter
	rest.Scoper
	rest.KindProvider
	rest.SingularNameProvider
} = (*nodes)(nil)

func (n *nodes) New() runtime.Object     { return &metrics.NodeMetrics{} }
func (n *nodes) NewList() runtime.Object { return &metrics.NodeMetricsList{} }
func (n *nodes) Destroy()                { n.meter.close() }
func (n *nodes) NamespaceScoped() bool   { return false }
func (n *nodes) Kind() string            { return "NodeMetrics" }

// GetSingularName is empty, as metrics-server's: "node" is the core API's.
func (n *nodes) GetSingularName() string { return "" }

// List implements rest.Lister.
func (n *nodes) List(ctx context.Context, o *metainternalversion.ListOptions) (runtime.Object, error) {
	objects, err := n.source.Nodes(ctx, o)
	if err != nil {
		return nil, err
	}
	return &metrics.NodeMetricsList{Items: n.measure(ctx, objects)}, nil
}

// Get implements rest.Getter. Of a node that does not answer it says that there are no metrics, which is a 404, too.
func (n *nodes) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	object, err := n.source.Node(ctx, name)
	if err != nil {
		return nil, notFound("nodes", name, err)
	}
	found := n.measure(ctx, []Object{object})
	if len(found) == 0 {
		return nil, apierrors.NewNotFound(v1beta1.Resource("nodes"), name)
	}
	return &found[0], nil
}

func (n *nodes) measure(ctx context.Context, objects []Object) []metrics.NodeMetrics {
	names := make([]string, len(objects))
	for i := range objects {
		names[i] = objects[i].Name
	}
	usages := n.meter.usages(ctx, names)
	list := make([]metrics.NodeMetrics, 0, len(usages))
	for i := range objects {
		if u := usages[objects[i].Name]; u != nil {
			list = append(list, metrics.NodeMetrics{
				ObjectMeta: objectMeta(&objects[i]), Timestamp: metav1.NewTime(u.last.at), Window: window(u), Usage: u.node().resources(),
			})
		}
	}
	slices.SortFunc(list, func(a, b metrics.NodeMetrics) int { return strings.Compare(a.Name, b.Name) })
	return list
}

type pods struct {
	meter  *meter
	source Source
}

var _ interface {
	rest.Storage
	rest.Lister
	rest.Getter
	rest.Scoper
	rest.KindProvider
	rest.SingularNameProvider
} = (*pods)(nil)

func (p *pods) New() runtime.Object     { return &metrics.PodMetrics{} }
func (p *pods) NewList() runtime.Object { return &metrics.PodMetricsList{} }
func (p *pods) Destroy()                { p.meter.close() }
func (p *pods) NamespaceScoped() bool   { return true }
func (p *pods) Kind() string            { return "PodMetrics" }

// GetSingularName is empty, as metrics-server's: "pod" is the core API's.
func (p *pods) GetSingularName() string { return "" }

// List implements rest.Lister.
func (p *pods) List(ctx context.Context, o *metainternalversion.ListOptions) (runtime.Object, error) {
	objects, err := p.source.Pods(ctx, o)
	if err != nil {
		return nil, err
	}
	return &metrics.PodMetricsList{Items: p.measure(ctx, objects)}, nil
}

// Get implements rest.Getter, as that of nodes.
func (p *pods) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	object, err := p.source.Pod(ctx, name)
	if err != nil {
		return nil, notFound("pods", name, err)
	}
	found := p.measure(ctx, []Object{object})
	if len(found) == 0 {
		return nil, apierrors.NewNotFound(v1beta1.Resource("pods"), name)
	}
	return &found[0], nil
}

func (p *pods) measure(ctx context.Context, objects []Object) []metrics.PodMetrics {
	on := map[string]bool{}
	for i := range objects {
		if node := objects[i].Node; node != "" {
			on[node] = true
		}
	}
	usages := p.meter.usages(ctx, slices.Collect(maps.Keys(on)))
	list := make([]metrics.PodMetrics, 0, len(objects))
	for i := range objects {
		o := &objects[i]
		u := usages[o.Node]
		if u == nil {
			continue
		}
		used := u.pod(podName{o.Namespace, o.Name}, o.UID)
		if len(used) == 0 {
			continue
		}
		m := metrics.PodMetrics{ObjectMeta: objectMeta(o), Timestamp: metav1.NewTime(u.last.at), Window: window(u)}
		for _, name := range slices.Sorted(maps.Keys(used)) {
			m.Containers = append(m.Containers, metrics.ContainerMetrics{Name: name, Usage: used[name].resources()})
		}
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b metrics.PodMetrics) int {
		return strings.Compare(a.Namespace+"\x00"+a.Name, b.Namespace+"\x00"+b.Name)
	})
	return list
}

// notFound speaks of this group's resource instead of the core API's.
func notFound(resource, name string, err error) error {
	if apierrors.IsNotFound(err) {
		return apierrors.NewNotFound(v1beta1.Resource(resource), name)
	}
	return err
}

func objectMeta(o *Object) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name, Labels: o.Labels, CreationTimestamp: o.Created}
}

func window(u *usage) metav1.Duration {
	return metav1.Duration{Duration: u.window().Round(time.Millisecond)}
}

func (u use) resources() corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewScaledQuantity(int64(u.nanoCores), resource.Nano),
		corev1.ResourceMemory: *resource.NewQuantity(int64(u.memory), resource.BinarySI),
	}
}
