package mirror

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
)

func TestSlicesAreOwnedAndNamedLikeUpstream(t *testing.T) {
	ep := endpoints("a:80 | 10.0.0.1")
	ep.Annotations = map[string]string{"note": "x", corev1.EndpointsLastChangeTriggerTime: "2026-01-01T00:00:00Z"}
	run(t, func(t *testing.T, w *world) {
		s := w.mirrored()[0]
		if !strings.HasPrefix(s.Name, "web-") || !metav1.IsControlledBy(&s, ep) {
			t.Errorf("slice %s, owners %v", s.Name, s.OwnerReferences)
		}
		if want := map[string]string{"note": "x"}; !maps.Equal(s.Annotations, want) {
			t.Errorf("annotations %v, want %v", s.Annotations, want)
		}
	}, service(), ep)
}

func TestNumberOfWrites(t *testing.T) {
	many := manyAddresses(1000)
	run(t, func(t *testing.T, w *world) {
		w.writes(1, 0, 0)
		edit := func(what string, create, update, del int, edit func(*corev1.Endpoints)) {
			t.Helper()
			t.Log(what)
			w.editEndpoints(edit)
			w.writes(create, update, del)
		}
		edit("one is not ready", 0, 1, 0, func(ep *corev1.Endpoints) {
			ep.Subsets[0].NotReadyAddresses = ep.Subsets[0].Addresses[500:501:501]
			ep.Subsets[0].Addresses = slices.Concat(ep.Subsets[0].Addresses[:500], ep.Subsets[0].Addresses[501:])
		})
		edit("another order", 0, 0, 0, func(ep *corev1.Endpoints) { slices.Reverse(ep.Subsets[0].Addresses) })
		edit("the same in two subsets", 0, 0, 0, func(ep *corev1.Endpoints) {
			first, second := *ep.Subsets[0].DeepCopy(), *ep.Subsets[0].DeepCopy()
			first.NotReadyAddresses, first.Addresses = nil, first.Addresses[:300]
			second.Addresses = second.Addresses[300:]
			ep.Subsets = []corev1.EndpointSubset{first, second}
		})
		edit("another port", 0, 1, 0, func(ep *corev1.Endpoints) {
			for i := range ep.Subsets {
				ep.Subsets[i].Ports[0].Port = 81
			}
		})
		edit("one is gone", 0, 1, 0, func(ep *corev1.Endpoints) { ep.Subsets[0].Addresses = ep.Subsets[0].Addresses[1:] })
		edit("a target's version", 0, 1, 0, func(ep *corev1.Endpoints) {
			ep.Subsets[0].Addresses[0].TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: "p", ResourceVersion: "1"}
		})
		edit("a target's later version", 0, 0, 0, func(ep *corev1.Endpoints) { ep.Subsets[0].Addresses[0].TargetRef.ResourceVersion = "2" })
		edit("a label", 0, 1, 0, func(ep *corev1.Endpoints) { ep.Labels = map[string]string{"x": "y"} })
		edit("an annotation", 0, 1, 0, func(ep *corev1.Endpoints) { ep.Annotations = map[string]string{"x": "y"} })
		edit("a trigger time", 0, 0, 0, func(ep *corev1.Endpoints) {
			ep.Annotations[corev1.EndpointsLastChangeTriggerTime] = "2026-01-01T00:00:00Z"
		})
		edit("the second family", 1, 0, 0, func(ep *corev1.Endpoints) {
			ep.Subsets[0].Addresses = append(ep.Subsets[0].Addresses, corev1.EndpointAddress{IP: "2001:db8::1"})
		})
		w.editService(func(s *corev1.Service) { s.Labels = map[string]string{"a": "b"} })
		w.writes(0, 0, 0)
		edit("nothing left", 0, 0, 2, func(ep *corev1.Endpoints) { ep.Subsets = nil })
	}, service(), endpoints("a:80 | "+many))
}

func TestWarnings(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.halt()
		w.start(Options{MaxEndpointsPerSubset: 2})
		expect := func(want ...string) {
			t.Helper()
			got := w.told()
			if !slices.EqualFunc(got, want, strings.HasPrefix) {
				t.Errorf("events %q, want %q", got, want)
			}
		}
		const tooMany = "Warning TooManyAddressesToMirror A max of 2 addresses can be mirrored to EndpointSlices per Endpoints subset. "
		expect("Warning InvalidIPAddress Skipped 1 invalid IP addresses", tooMany+"1 addresses were skipped")
		w.want("IPv4 a:80 | 10.0.0.1 10.0.0.2")
		w.editEndpoints(func(ep *corev1.Endpoints) { ep.Labels = map[string]string{"x": "y"} })
		expect() // once is enough
		w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = subsets("a:80 | 10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 bad") })
		expect(tooMany + "2 addresses were skipped")
		w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = subsets("a:80 | 10.0.0.1") })
		expect()
		w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = subsets("a:80 | 10.0.0.1 bad") })
		expect("Warning InvalidIPAddress Skipped 1 invalid IP addresses")
	}, service(), endpoints("a:80 | 10.0.0.1 10.0.0.2 10.0.0.3 bad"))
}

func TestMoreThanASliceHoldsAreSpread(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.halt()
		w.start(Options{MaxEndpointsPerSubset: 1500})
		w.settle()
		n := 0
		for _, s := range w.mirrored() {
			if len(s.Endpoints) > 1000 {
				t.Errorf("the API refuses a slice of %d", len(s.Endpoints))
			}
			n += len(s.Endpoints)
		}
		if n != 1200 || len(w.mirrored()) != 2 {
			t.Errorf("%d endpoints in %d slices", n, len(w.mirrored()))
		}
	}, service(), endpoints("a:80 | "+manyAddresses(1200)))
}

func TestFailedWritesAreTriedAgainLaterEachTime(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		var at []time.Duration
		begin := time.Now()
		var broken atomic.Bool
		broken.Store(true)
		w.fail("create", func(clienttesting.Action) error {
			at = append(at, time.Since(begin))
			if broken.Load() {
				return errors.New("out of order")
			}
			return nil
		})
		w.put(endpoints("a:80 | 10.0.0.1"))
		w.pass(400 * time.Second)
		broken.Store(false)
		w.pass(100 * time.Second)
		var seconds []int
		for _, d := range at {
			seconds = append(seconds, int(d/time.Second))
		}
		// 1 s, 2 s, 4 s … 64 s, then 100 s each time.
		if want := []int{0, 1, 3, 7, 15, 31, 63, 127, 227, 327, 427}; !slices.Equal(seconds, want) {
			t.Errorf("tried after %v s, want %v", seconds, want)
		}
		w.want(oneSlice)
		w.writer.ClearActions()
		// It went well, so the next failure begins with 1 s again.
		broken.Store(true)
		at = nil
		w.deleteSlice(w.mirrored()[0].Name)
		w.pass(2 * time.Second)
		if len(at) != 2 {
			t.Errorf("tried %d times, want 2", len(at))
		}
	}, service())
}

func TestConflictIsPutRight(t *testing.T) {
	run(t, func(_ *testing.T, w *world) {
		first := true
		w.fail("update", func(clienttesting.Action) error {
			if !first {
				return nil
			}
			first = false
			// Somebody writes in between.
			s := w.mirrored()[0]
			s.Endpoints = nil
			w.put(&s)
			return apierrors.NewConflict(schema.GroupResource{Resource: "endpointslices"}, s.Name, errors.New("modified"))
		})
		w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = subsets("a:80 | 10.0.0.2") })
		w.want("IPv4 a:80 | 10.0.0.2") // at once: the watch shows what was written
		w.writes(1, 2, 0)
	}, service(), endpoints("a:80 | 10.0.0.1"))
}

func TestSliceDeletedDuringAWriteIsMadeAnew(t *testing.T) {
	run(t, func(_ *testing.T, w *world) {
		w.fail("update", func(clienttesting.Action) error {
			w.deleteSlice(w.mirrored()[0].Name)
			return nil // and the API answers that there is none
		})
		w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = subsets("a:80 | 10.0.0.2") })
		w.want("IPv4 a:80 | 10.0.0.2")
		w.writes(2, 1, 0)
	}, service(), endpoints("a:80 | 10.0.0.1"))
}

// An admission webhook may store something else than was sent.
func TestRewrittenSliceIsPutRight(t *testing.T) {
	run(t, func(_ *testing.T, w *world) {
		first := true
		w.fail("create", func(a clienttesting.Action) error {
			s := a.(clienttesting.CreateAction).GetObject().(*discovery.EndpointSlice)
			if first {
				s.Endpoints = append(s.Endpoints, discovery.Endpoint{Addresses: []string{"10.9.9.9", "10.9.9.8"}})
			}
			first = false
			return nil
		})
		w.put(endpoints("a:80 | 10.0.0.1 10.0.0.2"))
		w.want("IPv4 a:80 | 10.0.0.1 10.0.0.2")
		w.writes(1, 1, 0)
		w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = subsets("a:80 | 10.0.0.2 | 10.0.0.1") })
		w.want("IPv4 a:80 | 10.0.0.1! 10.0.0.2")
	}, service())
}

func TestGarbageCollectorIsFaster(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.fail("delete", func(clienttesting.Action) error {
			w.deleteSlice(w.mirrored()[0].Name)
			return nil
		})
		w.deleteEndpoints()
		w.pass(time.Hour)
		w.want()
		if n := w.warnings.Load(); n != 0 {
			t.Errorf("%d lines were logged about what is no trouble", n)
		}
		w.writes(1, 0, 1)
		if n := len(w.ctl.states); n != 0 {
			t.Errorf("%d states are left", n)
		}
	}, service(), endpoints("a:80 | 10.0.0.1"))
}

func TestTerminatingNamespaceIsLeftInPeace(t *testing.T) {
	ns := &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: "default"},
		Spec:       corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{"kubernetes"}},
	}
	run(t, func(t *testing.T, w *world) {
		if err := w.user.CoreV1().Namespaces().Delete(t.Context(), "default", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.deleteSlice(w.mirrored()[0].Name)
		w.pass(time.Hour)
		w.writes(2, 0, 0) // the second is refused, there is no third
	}, ns, service(), endpoints("a:80 | 10.0.0.1"))
}

func TestChangesDuringAWriteGoIntoTheNextTogether(t *testing.T) {
	run(t, func(_ *testing.T, w *world) {
		release := make(chan struct{})
		w.fail("create", func(clienttesting.Action) error { <-release; return nil })
		w.put(endpoints("a:80 | 10.0.0.1"))
		w.settle()
		for i := range 50 {
			w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = subsets(fmt.Sprintf("a:80 | 10.0.1.%d", i)) })
		}
		w.settle()
		close(release)
		w.want("IPv4 a:80 | 10.0.1.49")
		w.writes(1, 1, 0)
	}, service())
}

func TestMissedEvents(t *testing.T) {
	named := func(name string) (*corev1.Service, *corev1.Endpoints) {
		svc, ep := service(), endpoints("a:80 | 10.0.0.1")
		svc.Name, ep.Name, svc.UID, ep.UID = name, name, "", ""
		return svc, ep
	}
	var objs []runtime.Object
	for _, name := range []string{"no-service", "no-endpoints", "no-slice", "endpoints-later"} {
		svc, ep := named(name)
		objs = append(objs, svc)
		if name != "endpoints-later" {
			objs = append(objs, ep)
		}
	}
	run(t, func(t *testing.T, w *world) {
		w.want(oneSlice, oneSlice, oneSlice)
		// All of this happens while the informers' connections are broken.
		ctx := t.Context()
		errs := []error{
			w.user.CoreV1().Services("default").Delete(ctx, "no-service", metav1.DeleteOptions{}),
			w.user.CoreV1().Endpoints("default").Delete(ctx, "no-endpoints", metav1.DeleteOptions{}),
			w.user.DiscoveryV1().EndpointSlices("default").DeleteCollection(ctx, metav1.DeleteOptions{},
				metav1.ListOptions{LabelSelector: discovery.LabelServiceName + "=no-slice"}),
		}
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		_, ep := named("endpoints-later")
		w.put(ep)
		w.api.Compact()
		w.pass(10 * time.Minute)
		w.want(oneSlice, oneSlice)
		of := map[string]bool{}
		for _, s := range w.all() {
			of[s.Labels[discovery.LabelServiceName]] = true
		}
		if !of["no-slice"] || !of["endpoints-later"] {
			t.Errorf("slices of %v", of)
		}
	}, objs...)
}

func TestRunEndsCleanly(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.halt()
		w.build(Options{})
		ctx, cancel := context.WithCancel(t.Context())
		factory, stopFactory := context.WithCancel(t.Context())
		w.factory.Start(factory.Done())
		finished := make(chan error, 1)
		go func() { finished <- w.ctl.Run(ctx) }()
		w.settle()
		cancel()
		if err := <-finished; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		// The informers go on without it.
		w.writer.ClearActions()
		w.deleteSlice(w.mirrored()[0].Name)
		w.want()
		w.writes(0, 0, 0)
		if w.ctl.loop.Len() != 0 || len(w.ctl.inbox) != 0 {
			t.Errorf("it still listens: %d Services queued, %d in the inbox", w.ctl.loop.Len(), len(w.ctl.inbox))
		}
		stopFactory()
		w.factory.Shutdown()
		w.build(Options{})
		if err := w.ctl.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run with an ended context: %v", err)
		}
	}, service(), endpoints("a:80 | 10.0.0.1"))
}

// A controller that waits to become the leader must not collect what it will
// never need.
func TestNothingGrowsBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, api: controllertest.NewAPI(service(), endpoints("a:80 | 10.0.0.1")), seen: map[runtime.Object]runtime.Object{}}
		w.user = w.api.Client()
		w.build(Options{})
		ctx, cancel := context.WithCancel(t.Context())
		w.factory.Start(ctx.Done())
		for i := range 100 {
			name := fmt.Sprintf("web-%d", i)
			w.put(foreign(name, manager))
			w.deleteSlice(name)
		}
		w.put(foreign("web-last", manager))
		w.settle()
		key := types.NamespacedName{Namespace: "default", Name: "web"}
		if in := w.ctl.inbox[key]; len(in) != 1 || w.ctl.loop.Len() != 1 {
			t.Errorf("%d slices in the inbox, %d Services queued", len(in), w.ctl.loop.Len())
		}
		w.writes(0, 0, 0)
		finished := make(chan error, 1)
		go func() { finished <- w.ctl.Run(ctx) }()
		w.want(oneSlice)
		cancel()
		if err := <-finished; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		w.factory.Shutdown()
	})
}

func TestStatesAreForgotten(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		if n := len(w.ctl.states); n != 1 {
			t.Errorf("%d states for one Service", n)
		}
		w.deleteService()
		w.settle()
		if n := len(w.ctl.states); n != 0 {
			t.Errorf("%d states are left", n)
		}
		// Services with a selector never get one.
		s := service()
		selector(s)
		w.put(s)
		w.settle()
		if n := len(w.ctl.states); n != 0 {
			t.Errorf("%d states for a Service with a selector", n)
		}
		// One that has nothing to mirror when it gets a selector loses it.
		w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = nil })
		w.editService(func(s *corev1.Service) { s.Spec.Selector = nil })
		w.settle()
		w.editService(selector)
		w.settle()
		if n := len(w.ctl.states); n != 0 {
			t.Errorf("%d states for a Service with nothing to mirror", n)
		}
	}, service(), endpoints("a:80 | 10.0.0.1"))
}

// Kubernetes #118376 and #127370: what was written while nobody ran is seen.
func TestSelectorAddedWhileNobodyRan(t *testing.T) {
	run(t, func(_ *testing.T, w *world) {
		w.halt()
		w.editService(selector)
		w.put(foreign("theirs", endpointsManager))
		w.start(Options{})
		w.want("endpointslice-controller.k8s.io IPv4 a:80 | 10.9.9.9")
	}, service(), endpoints("a:80 | 10.0.0.1"))
}
