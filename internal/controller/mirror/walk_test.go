package mirror

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"
)

// walker does random things to one Service and checks after each of them what
// the slices should be, by what is in the API and nothing else.
type walker struct {
	*world
	r      *rand.Rand
	broken atomic.Bool // writes of the controller fail now and then
}

// service and endpoints give what is in the API, or nil.
func (k *walker) service() *corev1.Service {
	svc, err := k.user.CoreV1().Services("default").Get(k.t.Context(), "web", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return svc
}

func (k *walker) endpoints() *corev1.Endpoints {
	ep, err := k.user.CoreV1().Endpoints("default").Get(k.t.Context(), "web", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return ep
}

func (k *walker) takenOver() bool {
	return slices.ContainsFunc(k.all(), func(s discovery.EndpointSlice) bool { return managedBy(&s) == endpointsManager })
}

// course is the rule, written down once more.
func (k *walker) course() course {
	svc, ep := k.service(), k.endpoints()
	if svc == nil || ep == nil || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return remove
	}
	_, lock := ep.Annotations["control-plane.alpha.kubernetes.io/leader"]
	if lock || ep.Labels["endpointslice.kubernetes.io/skip-mirror"] == "true" || ep.DeletionTimestamp != nil {
		return remove
	}
	if svc.Spec.Selector == nil {
		return follow
	}
	if k.takenOver() {
		return remove
	}
	return leave
}

func (k *walker) fresh() *corev1.Endpoints {
	ep := endpoints()
	ep.UID = types.UID(fmt.Sprintf("ep-%d", k.r.Uint32()))
	ep.Subsets = randomSubsets(k.r)
	return ep
}

func (k *walker) onService(edit func(*corev1.Service)) {
	if svc := k.service(); svc != nil {
		edit(svc)
		k.put(svc)
		return
	}
	svc := service()
	svc.UID = types.UID(fmt.Sprintf("svc-%d", k.r.Uint32()))
	edit(svc)
	k.put(svc)
}

func (k *walker) onEndpoints(edit func(*corev1.Endpoints)) {
	if ep := k.endpoints(); ep != nil {
		edit(ep)
		k.put(ep)
		return
	}
	k.put(k.fresh())
}

func (k *walker) onSlice(edit func(*discovery.EndpointSlice)) {
	// By hand only where the rule says what comes of it.
	if k.course() == leave {
		return
	}
	if list := k.mirrored(); len(list) > 0 {
		s := list[k.r.IntN(len(list))]
		edit(&s)
		k.put(&s)
	}
}

// step does one thing.
func (k *walker) step() string {
	steps := []struct {
		name string
		do   func()
	}{
		{"Endpoints", func() { k.onEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = randomSubsets(k.r) }) }},
		{"Endpoints again", func() { k.onEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = randomSubsets(k.r) }) }},
		{"label of Endpoints", func() {
			k.onEndpoints(func(ep *corev1.Endpoints) { ep.Labels = map[string]string{"n": fmt.Sprint(k.r.IntN(3))} })
		}},
		{"annotation of Endpoints", func() {
			k.onEndpoints(func(ep *corev1.Endpoints) { ep.Annotations = map[string]string{"n": fmt.Sprint(k.r.IntN(3))} })
		}},
		{"skip", func() {
			k.onEndpoints(func(ep *corev1.Endpoints) { ep.Labels = map[string]string{discovery.LabelSkipMirror: "true"} })
		}},
		{"leader", func() {
			k.onEndpoints(func(ep *corev1.Endpoints) {
				ep.Annotations = map[string]string{"control-plane.alpha.kubernetes.io/leader": "x"}
			})
		}},
		{"delete Endpoints", func() {
			if k.endpoints() != nil {
				k.deleteEndpoints()
			}
		}},
		{"Endpoints made anew", func() {
			if k.course() == leave {
				return // whether the slices stay depends on whether their absence is noticed
			}
			if k.endpoints() != nil {
				k.deleteEndpoints()
			}
			k.put(k.fresh())
		}},
		{"selector", func() { k.onService(selector) }},
		{"no selector", func() { k.onService(func(s *corev1.Service) { s.Spec.Selector = nil }) }},
		{"ExternalName", func() { k.onService(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }) }},
		{"ClusterIP", func() {
			k.onService(func(s *corev1.Service) { s.Spec.Type, s.Spec.ClusterIP = corev1.ServiceTypeClusterIP, "10.96.0.1" })
		}},
		{"headless", func() { k.onService(func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }) }},
		{"delete Service", func() {
			if k.service() != nil {
				k.deleteService()
			}
		}},
		{"slice of the endpoints controller", func() { k.put(foreign("theirs", endpointsManager)) }},
		{"no slice of the endpoints controller", func() {
			if k.takenOver() {
				k.deleteSlice("theirs")
			}
		}},
		{"slice edited", func() {
			k.onSlice(func(s *discovery.EndpointSlice) {
				s.Endpoints, s.Ports = slices.Concat(s.Endpoints, s.Endpoints, foreign("", "").Endpoints), foreign("", "").Ports
			})
		}},
		{"slice emptied", func() { k.onSlice(func(s *discovery.EndpointSlice) { s.Endpoints, s.Labels["x"] = nil, "y" }) }},
		{"slice given away", func() { k.onSlice(func(s *discovery.EndpointSlice) { s.Labels[discovery.LabelManagedBy] = "me" }) }},
		{"slice deleted", func() {
			if list := k.mirrored(); k.course() != leave && len(list) > 0 {
				k.deleteSlice(list[k.r.IntN(len(list))].Name)
			}
		}},
		{"slice got", func() {
			if k.course() != leave {
				s := foreign(fmt.Sprintf("got-%d", k.r.IntN(3)), manager)
				if !slices.ContainsFunc(k.all(), func(o discovery.EndpointSlice) bool { return o.Name == s.Name }) {
					k.put(s)
				}
			}
		}},
		{"trouble", func() { k.broken.Store(true) }},
		{"no trouble", func() { k.broken.Store(false) }},
		{"restart", func() { k.halt(); k.begin() }},
	}
	s := steps[k.r.IntN(len(steps))]
	s.do()
	return s.name
}

func (k *walker) begin() {
	k.start(Options{Workers: 3})
	r := rand.New(rand.NewPCG(k.r.Uint64(), 2))
	k.fail("*", func(clienttesting.Action) error {
		if k.broken.Load() && r.IntN(3) == 0 {
			return errors.New("trouble")
		}
		return nil
	})
}

// check compares the slices with the oracle. before is what they were.
func (k *walker) check(before []discovery.EndpointSlice) error {
	got := k.mirrored()
	switch k.course() {
	case remove:
		if len(got) > 0 {
			return fmt.Errorf("%d slices are left", len(got))
		}
		return nil
	case leave:
		if texts(got) != texts(before) {
			return fmt.Errorf("slices %s became %s", texts(before), texts(got))
		}
		return nil
	}
	ep, svc := k.endpoints(), k.service()
	routes, count := map[route]bool{}, 0
	for i := range got {
		s := &got[i]
		routesIn(s.AddressType, s.Ports, s.Endpoints, routes)
		count += len(s.Endpoints)
		labels := maps.Clone(ep.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels[discovery.LabelServiceName], labels[discovery.LabelManagedBy] = "web", manager
		if svc.Spec.ClusterIP == corev1.ClusterIPNone {
			labels[corev1.IsHeadlessService] = ""
		}
		if !maps.Equal(s.Labels, labels) || !maps.Equal(s.Annotations, ep.Annotations) || !metav1.IsControlledBy(s, ep) {
			return fmt.Errorf("slice %s: labels %v, annotations %v, owners %v", s.Name, s.Labels, s.Annotations, s.OwnerReferences)
		}
		if len(s.Endpoints) == 0 {
			return fmt.Errorf("slice %s is empty", s.Name)
		}
	}
	if want := routesOf(ep.Subsets); !sameRoutes(routes, want) {
		return fmt.Errorf("routes %v, want %v", routes, want)
	}
	if want := len(planFor(svc, ep, 1000).want); count != want {
		return fmt.Errorf("%d endpoints, want %d: some are there twice", count, want)
	}
	return nil
}

func texts(list []discovery.EndpointSlice) string {
	var out []string
	for i := range list {
		out = append(out, list[i].Name+" "+sliceText(&list[i]))
	}
	return fmt.Sprintf("%q", out)
}

func TestRandomWalk(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				k := &walker{world: w, r: rand.New(rand.NewPCG(seed, 0))}
				k.halt()
				k.begin()
				k.settle()
				var done []string
				for range 100 {
					before := k.mirrored()
					done = append(done, k.step())
					k.settle()
					if k.broken.Load() {
						k.pass(time.Hour) // enough for many tries
					}
					if err := k.check(before); err != nil {
						t.Fatalf("after %q: %v", done[max(0, len(done)-8):], err)
					}
					if k.r.IntN(4) == 0 && !k.broken.Load() {
						revision := k.api.Revision()
						k.pass(time.Hour)
						if now := k.api.Revision(); now != revision {
							t.Fatalf("after %q: something was written later", done[max(0, len(done)-8):])
						}
					}
				}
			}, service(), endpoints("a:80 | 10.0.0.1"))
		})
	}
}

// Several Services at once, many workers, and no waiting in between: what is
// there in the end is right, whatever came before.
func TestManyServicesAtOnce(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.halt()
		w.start(Options{Workers: 8})
		r := rand.New(rand.NewPCG(7, 7))
		const services = 30
		ctx := context.WithoutCancel(t.Context())
		last := map[string]*corev1.Endpoints{}
		for i := range 2000 {
			name := fmt.Sprintf("web-%d", r.IntN(services))
			ep := endpoints()
			ep.Name, ep.UID, ep.Subsets = name, "", randomSubsets(r)
			if last[name] == nil {
				svc := service()
				svc.Name, svc.UID = name, ""
				w.put(svc)
			}
			w.put(ep)
			last[name] = ep
			if list := w.all(); i%10 == 0 && len(list) > 0 {
				s := list[r.IntN(len(list))]
				err := w.user.DiscoveryV1().EndpointSlices("default").Delete(ctx, s.Name, metav1.DeleteOptions{})
				if err != nil && !apierrors.IsNotFound(err) {
					t.Fatal(err)
				}
			}
		}
		w.pass(time.Hour)
		got := map[string]map[route]bool{}
		for _, s := range w.all() {
			name := s.Labels[discovery.LabelServiceName]
			if got[name] == nil {
				got[name] = map[route]bool{}
			}
			routesIn(s.AddressType, s.Ports, s.Endpoints, got[name])
		}
		for name, ep := range last {
			if want := routesOf(ep.Subsets); !sameRoutes(got[name], want) {
				t.Errorf("%s: routes %v, want %v", name, got[name], want)
			}
		}
	})
}
