package mirror

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
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
			w.want(oneSlice) // the two watches are independent: it must have heard of the selector first
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
			w.want(oneSlice, "endpointslice-controller.k8s.io IPv4 a:80 | 10.9.9.9") // it must have heard of the deletion first
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
