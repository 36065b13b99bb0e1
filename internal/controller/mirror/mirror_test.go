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

const oneSlice = "IPv4 a:80 | 10.0.0.1"

func selector(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "web"} }

// TestTransitions is the table of the package comment, row by row.
func TestTransitions(t *testing.T) {
	label := func(key, value string) func(*corev1.Endpoints) {
		return func(ep *corev1.Endpoints) { ep.Labels = map[string]string{key: value} }
	}
	for name, do := range map[string]func(w *world){
		"Service created last": func(w *world) {
			w.deleteService()
			w.want()
			w.put(service())
			w.want(oneSlice)
		},
		"Endpoints created last": func(w *world) {
			w.deleteEndpoints()
			w.want()
			w.writes(1, 0, 1)
			w.put(endpoints("a:80 | 10.0.0.7"))
			w.want("IPv4 a:80 | 10.0.0.7")
			w.writes(1, 0, 0)
		},
		"Endpoints changed": func(w *world) {
			w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = subsets("a:80 | 10.0.0.2", "b:81 | 2001:db8::1") })
			w.want("IPv4 a:80 | 10.0.0.2", "IPv6 b:81 | 2001:db8::1")
			w.writes(2, 1, 0)
		},
		"all subsets removed": func(w *world) {
			w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = nil })
			w.want()
		},
		"all addresses removed": func(w *world) {
			w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = subsets("a:80") })
			w.want()
		},
		"Endpoints' deletion begins": func(w *world) {
			w.editEndpoints(func(ep *corev1.Endpoints) { ep.Finalizers = []string{"foregroundDeletion"} })
			w.deleteEndpoints()
			w.want()
			w.editEndpoints(func(ep *corev1.Endpoints) { ep.Finalizers = nil })
			w.want()
		},
		"Endpoints made anew": func(w *world) {
			// So fast that the controller sees only that it is another object.
			old := w.mirrored()[0].Name
			w.deleteEndpoints()
			ep := endpoints("a:80 | 10.0.0.1")
			ep.UID = "another"
			w.put(ep)
			w.want(oneSlice)
			if s := w.mirrored()[0]; s.Name == old || s.OwnerReferences[0].UID != "another" {
				w.t.Errorf("slice %s is owned by %v", s.Name, s.OwnerReferences)
			}
			w.writes(2, 0, 1)
		},
		"label skip-mirror": func(w *world) {
			w.editEndpoints(label(discovery.LabelSkipMirror, "true"))
			w.want()
			w.editEndpoints(label(discovery.LabelSkipMirror, "false"))
			w.want(oneSlice)
		},
		"leader annotation": func(w *world) {
			w.editEndpoints(func(ep *corev1.Endpoints) {
				ep.Annotations = map[string]string{"control-plane.alpha.kubernetes.io/leader": "{}"}
			})
			w.want()
			w.editEndpoints(func(ep *corev1.Endpoints) { ep.Annotations = nil })
			w.want(oneSlice)
		},
		"Service deleted": func(w *world) {
			w.deleteService()
			w.want()
			w.writes(1, 0, 1)
		},
		"Service deleted, with a finalizer": func(w *world) {
			w.editService(func(s *corev1.Service) { s.Finalizers = []string{"service.kubernetes.io/load-balancer-cleanup"} })
			w.deleteService()
			w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = subsets("a:80 | 10.0.0.2") })
			w.want("IPv4 a:80 | 10.0.0.2")
			w.editService(func(s *corev1.Service) { s.Finalizers = nil })
			w.want()
		},
		"to ExternalName and back": func(w *world) {
			w.editService(func(s *corev1.Service) {
				s.Spec.Type, s.Spec.ExternalName, s.Spec.ClusterIP = corev1.ServiceTypeExternalName, "example.com", ""
			})
			w.want()
			w.editService(func(s *corev1.Service) {
				s.Spec.Type, s.Spec.ExternalName, s.Spec.ClusterIP = corev1.ServiceTypeClusterIP, "", "10.96.0.2"
			})
			w.want(oneSlice)
		},
		"to headless and back": func(w *world) {
			headless := func() bool { _, ok := w.mirrored()[0].Labels[corev1.IsHeadlessService]; return ok }
			w.editService(func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone })
			w.want(oneSlice)
			if !headless() {
				w.t.Error("the slice is not labeled headless")
			}
			w.editService(func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.0.1" })
			w.want(oneSlice)
			if headless() {
				w.t.Error("the slice is labeled headless")
			}
			w.writes(1, 2, 0)
		},
		"selector added": func(w *world) {
			w.editService(selector)
			w.want(oneSlice)
			// The endpoints controller takes the Endpoints over before its slices are there.
			w.editEndpoints(func(ep *corev1.Endpoints) {
				ep.Subsets = nil
				ep.Labels = map[string]string{endpointsManagedBy: "endpoint-controller"}
			})
			w.want(oneSlice)
			w.put(foreign("other", "somebody-else"))
			w.want(oneSlice, "somebody-else IPv4 a:80 | 10.9.9.9")
			w.writes(1, 0, 0)
			w.put(foreign("theirs", endpointsManager))
			w.want("endpointslice-controller.k8s.io IPv4 a:80 | 10.9.9.9", "somebody-else IPv4 a:80 | 10.9.9.9")
			w.writes(0, 0, 1)
		},
		"selector added, then a slice gets the label of the endpoints controller": func(w *world) {
			w.put(foreign("theirs", "somebody-else"))
			w.editService(selector)
			w.want(oneSlice, "somebody-else IPv4 a:80 | 10.9.9.9")
			w.put(foreign("theirs", endpointsManager))
			w.want("endpointslice-controller.k8s.io IPv4 a:80 | 10.9.9.9")
		},
		"selector added and taken away again": func(w *world) {
			w.editService(selector)
			w.deleteSlice(w.mirrored()[0].Name)
			w.want()
			w.editService(func(s *corev1.Service) { s.Spec.Selector = nil })
			w.want(oneSlice)
		},
		"selector added, then Service deleted": func(w *world) {
			w.editService(selector)
			w.want(oneSlice)
			w.deleteService()
			w.want()
		},
		"selector removed": func(w *world) {
			w.put(foreign("theirs", endpointsManager))
			w.editService(selector)
			w.want("endpointslice-controller.k8s.io IPv4 a:80 | 10.9.9.9")
			w.editEndpoints(func(ep *corev1.Endpoints) {
				ep.Labels = map[string]string{endpointsManagedBy: "endpoint-controller"}
				ep.Subsets = subsets("a:80 | 10.9.9.9")
			})
			w.editService(func(s *corev1.Service) { s.Spec.Selector = nil })
			w.want("IPv4 a:80 | 10.9.9.9", "endpointslice-controller.k8s.io IPv4 a:80 | 10.9.9.9")
			if by, ok := w.mirrored()[0].Labels[endpointsManagedBy]; ok {
				w.t.Errorf("the slice says that its Endpoints are managed by %s", by)
			}
		},
		"a slice is edited": func(w *world) {
			s := w.mirrored()[0]
			s.Endpoints[0].Conditions.Ready = new(false)
			s.Endpoints = append(s.Endpoints, discovery.Endpoint{Addresses: []string{"10.6.6.6"}})
			s.Ports[0].Port = new(int32(6666))
			s.Labels["x"], s.Annotations = "y", map[string]string{"x": "y"}
			w.put(&s)
			w.want(oneSlice)
			if s := w.mirrored()[0]; len(s.Labels) != 2 || len(s.Annotations) != 0 {
				w.t.Errorf("labels %v, annotations %v", s.Labels, s.Annotations)
			}
			w.writes(1, 1, 0)
		},
		"a slice loses its owner": func(w *world) {
			s := w.mirrored()[0]
			s.OwnerReferences = nil
			w.put(&s)
			w.want(oneSlice)
			if s := w.mirrored()[0]; len(s.OwnerReferences) != 1 {
				w.t.Errorf("owners %v", s.OwnerReferences)
			}
		},
		"a slice is deleted": func(w *world) {
			w.deleteSlice(w.mirrored()[0].Name)
			w.want(oneSlice)
			w.writes(2, 0, 0)
		},
		"a slice waits for a finalizer": func(w *world) {
			s := w.mirrored()[0]
			s.Finalizers = []string{"example.com/x"}
			w.put(&s)
			w.deleteSlice(s.Name)
			w.want(oneSlice, oneSlice)
			w.writes(2, 0, 0)
			w.editEndpoints(func(ep *corev1.Endpoints) { ep.Subsets = subsets("a:80 | 10.0.0.2") })
			w.want(oneSlice, "IPv4 a:80 | 10.0.0.2")
			w.deleteEndpoints()
			w.want(oneSlice)
			w.writes(0, 1, 1)
		},
		"selector added, the endpoints controller's slice waits for a finalizer": func(w *world) {
			s := foreign("theirs", endpointsManager)
			s.Finalizers = []string{"example.com/x"}
			w.put(s)
			w.deleteSlice(s.Name)
			w.editService(selector)
			w.want(oneSlice, "endpointslice-controller.k8s.io IPv4 a:80 | 10.9.9.9")
		},
		"a slice loses our label": func(w *world) {
			s := w.mirrored()[0]
			s.Labels[discovery.LabelManagedBy] = "me"
			w.put(&s)
			w.want(oneSlice, "me IPv4 a:80 | 10.0.0.1")
			w.writes(2, 0, 0)
		},
		"a slice goes to another Service": func(w *world) {
			s := w.mirrored()[0]
			s.Labels[discovery.LabelServiceName] = "nobody"
			w.put(&s)
			w.want(oneSlice) // that of web; the other has no Service and goes
			if s := w.mirrored(); len(s) != 1 {
				w.t.Errorf("slices %v", s)
			}
			w.writes(2, 0, 1)
		},
		"a slice gets our label": func(w *world) {
			s := foreign("theirs", "somebody-else")
			w.put(s)
			w.want(oneSlice, "somebody-else IPv4 a:80 | 10.9.9.9")
			w.writes(1, 0, 0)
			s.Labels[discovery.LabelManagedBy] = manager
			w.put(s)
			w.want(oneSlice)
			w.writes(0, 0, 1)
		},
		"slices of other managers": func(w *world) {
			w.put(foreign("theirs", "somebody-else"))
			none := foreign("by-hand", "")
			delete(none.Labels, discovery.LabelManagedBy)
			w.put(none)
			w.deleteService()
			w.want(" IPv4 a:80 | 10.9.9.9", "somebody-else IPv4 a:80 | 10.9.9.9")
			w.writes(1, 0, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.want(oneSlice)
				do(w)
				// What is settled stays so, for a controller that knows nothing too.
				before := w.api.Revision()
				w.halt()
				w.start(Options{})
				w.pass(time.Hour)
				if after := w.api.Revision(); after != before {
					t.Errorf("the next controller wrote: revision %s became %s", before, after)
				}
				w.writes(0, 0, 0)
			}, service(), endpoints("a:80 | 10.0.0.1"))
		})
	}
}

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
	run(t, func(t *testing.T, w *world) {
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
	run(t, func(t *testing.T, w *world) {
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
	run(t, func(t *testing.T, w *world) {
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
	run(t, func(t *testing.T, w *world) {
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
		if w.ctl.queue.Len() != 0 || len(w.ctl.inbox) != 0 {
			t.Errorf("it still listens: %d Services queued, %d in the inbox", w.ctl.queue.Len(), len(w.ctl.inbox))
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
		if in := w.ctl.inbox[key]; len(in) != 1 || w.ctl.queue.Len() != 1 {
			t.Errorf("%d slices in the inbox, %d Services queued", len(in), w.ctl.queue.Len())
		}
		w.writes(0, 0, 0)
		finished := make(chan error, 1)
		go func() { finished <- w.ctl.Run(ctx) }()
		w.want(oneSlice)
		cancel()
		<-finished
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
	run(t, func(t *testing.T, w *world) {
		w.halt()
		w.editService(selector)
		w.put(foreign("theirs", endpointsManager))
		w.start(Options{})
		w.want("endpointslice-controller.k8s.io IPv4 a:80 | 10.9.9.9")
	}, service(), endpoints("a:80 | 10.0.0.1"))
}
