package app

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/endpointd/endpointd/internal/node/podnet"
	"github.com/endpointd/endpointd/internal/node/watch"
)

// objects reads what pods refer to. ConfigMaps and Secrets are asked for when needed and believed for a moment: many pods
// refer to the same ones, and a node may read only those of its own pods.
type objects struct {
	client   kubernetes.Interface
	services *watch.Store[*corev1.Service]

	configMaps recent[*corev1.ConfigMap]
	secrets    recent[*corev1.Secret]
}

func newObjects(client kubernetes.Interface, log *slog.Logger) *objects {
	return &objects{client: client, services: watch.New(watch.Options[*corev1.Service]{
		Name: "services", Source: watch.From(client.CoreV1().Services("")), Logger: log,
	})}
}

func (o *objects) run(ctx context.Context) error { return o.services.Run(ctx) }

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
	return slices.DeleteFunc(o.services.List(), func(s *corev1.Service) bool { return s.Namespace != namespace }), nil
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
