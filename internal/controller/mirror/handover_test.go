package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
	controller "github.com/endpointd/endpointd/internal/controller/endpoints"
)

// This controller and the endpoints controller together, while a selector
// comes and goes: there is an endpoint at every moment, and in the end only the
// slices of one of them are left (kubernetes #105987, #118376, #125354, #127370).
func TestSelectorComesAndGoesBesideTheEndpointsController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := service()
		svc.Spec.Ports = []corev1.ServicePort{{Name: "a", Port: 80, TargetPort: intstr.FromInt32(80), Protocol: corev1.ProtocolTCP}}
		svc.Spec.ClusterIPs, svc.Spec.IPFamilies = []string{svc.Spec.ClusterIP}, []corev1.IPFamily{corev1.IPv4Protocol}
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", Labels: map[string]string{"app": "web"}},
			Spec:       corev1.PodSpec{NodeName: "n"},
			Status: corev1.PodStatus{
				Phase: corev1.PodRunning, PodIP: "10.244.0.1", PodIPs: []corev1.PodIP{{IP: "10.244.0.1"}},
				Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			},
		}
		w := &world{t: t, api: controllertest.NewAPI(svc, endpoints("a:80 | 10.0.0.1"), pod,
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})}
		w.user = w.api.Client()
		factory := informers.NewSharedInformerFactory(w.api.Client(), 0)
		quiet := slog.New(slog.DiscardHandler)
		ctx, cancel := context.WithCancel(t.Context())
		finished := make(chan error, 2)
		for _, run := range []func(context.Context) error{
			New(Options{Client: w.api.Client(), Informers: factory, Logger: quiet}).Run,
			controller.New(controller.Options{Client: w.api.Client(), Informers: factory, Logger: quiet}).Run,
		} {
			go func() { finished <- run(ctx) }()
		}
		factory.Start(ctx.Done())
		mirrored := "IPv4 a:80 | 10.0.0.1"
		made := "endpointslice-controller.k8s.io IPv4 a:80 | 10.244.0.1=p"
		w.want(mirrored)

		moments := watchMoments(t, w)
		for i := range 20 {
			w.editService(selector)
			w.want(made)
			w.editService(func(s *corev1.Service) { s.Spec.Selector = nil })
			// The Endpoints are now the user's, with the addresses they had.
			w.want("IPv4 a:80 | 10.244.0.1=p")
			w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = subsets("a:80 | 10.0.0.1") })
			w.want(mirrored)
			if i%5 == 0 {
				w.pass(time.Hour)
				w.want(mirrored)
			}
		}
		if n, err := moments(); err != nil || n < 80 {
			t.Errorf("%d changes were seen: %v", n, err)
		}
		cancel()
		for range 2 {
			if err := <-finished; !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
		}
		factory.Shutdown()
	})
}

// watchMoments looks at all slices after every single change. The function it
// returns ends that and says how many changes there were, and whether there was
// no endpoint after one of them.
func watchMoments(t *testing.T, w *world) func() (int, error) {
	slices := w.user.DiscoveryV1().EndpointSlices("default")
	changes := must(slices.Watch(t.Context(), metav1.ListOptions{}))
	type result struct {
		n   int
		err error
	}
	out := make(chan result, 1)
	go func() {
		var r result
		has := map[string]int{} // slice → endpoints
		for e := range changes.ResultChan() {
			r.n++
			s := e.Object.(*discovery.EndpointSlice)
			has[s.Name] = len(s.Endpoints)
			if e.Type == watch.Deleted {
				delete(has, s.Name)
			}
			total := 0
			for _, n := range has {
				total += n
			}
			if total == 0 && r.err == nil {
				r.err = fmt.Errorf("no endpoint after change %d: %s of %s", r.n, e.Type, s.Name)
			}
		}
		out <- r
	}()
	w.settle()
	return func() (int, error) {
		changes.Stop()
		r := <-out
		return r.n, r.err
	}
}
