package app

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/endpointd/endpointd/internal/node/podnet"
)

// objects reads what pods refer to. ConfigMaps and Secrets are asked for when needed and believed for a moment: many pods
// refer to the same ones, and a node may read only those of its own pods. Of Services it keeps what pods are told of them.
type objects struct {
	client kubernetes.Interface

	configMaps recent[*corev1.ConfigMap]
	secrets    recent[*corev1.Secret]

	mu       sync.RWMutex                // guards services
	services map[string]map[string]*told // namespace → name → what pods are told
}

// told is a Service as it is in the environment of pods.
type told struct {
	clusterIP string
	ports     []corev1.ServicePort
}

func newObjects(client kubernetes.Interface) *objects {
	return &objects{client: client, services: map[string]map[string]*told{}}
}

// serviceChanged is for traffic.Options.
func (o *objects) serviceChanged(name types.NamespacedName, now *corev1.Service) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now == nil || now.Spec.ClusterIP == "" || now.Spec.ClusterIP == corev1.ClusterIPNone {
		delete(o.services[name.Namespace], name.Name)
		if len(o.services[name.Namespace]) == 0 {
			delete(o.services, name.Namespace)
		}
		return
	}
	if o.services[name.Namespace] == nil {
		o.services[name.Namespace] = map[string]*told{}
	}
	t := &told{clusterIP: now.Spec.ClusterIP}
	for _, p := range now.Spec.Ports {
		t.ports = append(t.ports, corev1.ServicePort{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
	}
	o.services[name.Namespace][name.Name] = t
}

// ConfigMap implements podspec.Source.
func (o *objects) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	return o.configMaps.get(namespace+"/"+name, func() (*corev1.ConfigMap, error) {
		return o.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	})
}

// Secret implements podspec.Source.
func (o *objects) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	return o.secrets.get(namespace+"/"+name, func() (*corev1.Secret, error) {
		return o.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	})
}

// Token implements podspec.Source.
func (o *objects) Token(ctx context.Context, namespace, account string, tr *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	return o.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, tr, metav1.CreateOptions{})
}

// Services implements podspec.Source.
func (o *objects) Services(namespace string) ([]*corev1.Service, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	var services []*corev1.Service
	for _, name := range slices.Sorted(maps.Keys(o.services[namespace])) {
		t := o.services[namespace][name]
		services = append(services, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{ClusterIP: t.clusterIP, Ports: t.ports},
		})
	}
	return services, nil
}

// recentFor is how long an answer is believed.
const recentFor = 2 * time.Second

// recent keeps answers for a moment, and has those who ask for the same thing at once share one question.
type recent[T any] struct {
	mu    sync.Mutex            // guards known
	known map[string]*answer[T] // namespace/name → answer
}

type answer[T any] struct {
	done chan struct{} // closed when the fields below are set
	at   time.Time
	obj  T
	err  error
}

func (r *recent[T]) get(key string, ask func() (T, error)) (T, error) {
	r.mu.Lock()
	a := r.known[key]
	if a != nil && a.fresh() {
		r.mu.Unlock()
		<-a.done
		return a.obj, a.err
	}
	if r.known == nil {
		r.known = map[string]*answer[T]{}
	}
	for old, a := range r.known { // never more than was asked for lately
		if !a.fresh() {
			delete(r.known, old)
		}
	}
	a = &answer[T]{done: make(chan struct{})}
	r.known[key] = a
	r.mu.Unlock()

	a.obj, a.err = ask()
	r.mu.Lock()
	if a.at = time.Now(); a.err != nil && r.known[key] == a {
		delete(r.known, key) // errors are not believed
	}
	r.mu.Unlock()
	close(a.done)
	return a.obj, a.err
}

// fresh reports whether the answer is on its way or young. The lock of recent is held.
func (a *answer[T]) fresh() bool { return a.at.IsZero() || time.Since(a.at) < recentFor }

// peer is what the pod network needs of another node.
func peer(n *corev1.Node) podnet.Peer {
	p := podnet.Peer{Name: n.Name}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); a.Type == corev1.NodeInternalIP && err == nil {
			p.Addrs = append(p.Addrs, ip)
		}
	}
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	for _, text := range cidrs {
		if cidr, err := netip.ParsePrefix(text); err == nil {
			p.PodCIDRs = append(p.PodCIDRs, cidr)
		}
	}
	return p
}

func samePeer(a, b *corev1.Node) bool {
	p, q := peer(a), peer(b)
	return slices.Equal(p.Addrs, q.Addrs) && slices.Equal(p.PodCIDRs, q.PodCIDRs)
}
