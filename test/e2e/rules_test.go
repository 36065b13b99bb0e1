package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ruleScenarios are the rules in the package comment of internal/controller/endpoints, each through kubectl.
func ruleScenarios() []scenario {
	return []scenario{
		{"selector-removed", ruleSelectorRemoved},
		{"selector-removed-not-mirrored", ruleSelectorRemovedNotMirrored},
		{"selector-added", ruleSelectorAdded},
		{"selector-changed", ruleSelectorChanged},
		{"repaired", ruleRepaired},
		{"external-name", ruleExternalName},
		{"headless", ruleHeadless},
		{"family", ruleFamily},
		{"ports", rulePorts},
		{"made-anew", ruleMadeAnew},
		{"deleted", ruleDeleted},
		{"by-hand", ruleHandWritten},
	}
}

// web applies the Service web with the ready pods a (app=web, 10.2.0.1) and b (app=web, 10.2.0.2), port 8080 called http.
const (
	webService = `{apiVersion: v1, kind: Service, metadata: {name: web, labels: {team: blue}}, spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}}`
	webReady   = "10.2.0.1:8080 10.2.0.2:8080"
)

func web(s *space) {
	s.Helper()
	s.apply(webService)
	s.pods("app=web", 8080, "a", "b")
	s.status("a", true, "10.2.0.1", "fd00:2::1")
	s.status("b", true, "10.2.0.2", "fd00:2::2")
	s.awaitReady("web", endpointsManager, webReady)
	s.awaitEndpoints("web", webReady)
}

const managedBy = "endpoints.kubernetes.io/managed-by"

// endpointsLabel is what the Endpoints object says about who manages it.
func (s *space) endpointsLabel(name string) string {
	s.Helper()
	ep, err := s.client.CoreV1().Endpoints(s.name).Get(s.Context(), name, metav1.GetOptions{})
	check(s.T, err)
	return ep.Labels[managedBy]
}

func (s *space) awaitLabel(name, want string) {
	s.Helper()
	s.await(func(context.Context) error {
		if got := s.endpointsLabel(name); got != want {
			return fmt.Errorf("label of endpoints %s: %q, want %q", name, got, want)
		}
		return nil
	})
}

// The Endpoints stay as they are and are the user's now; the slices are mirrored ones, with no moment without any.
func ruleSelectorRemoved(s *space) {
	web(s)
	s.awaitLabel("web", "endpoint-controller")
	r := s.record("web")
	s.run("patch", "service", "web", "--type=json", "-p", `[{"op":"remove","path":"/spec/selector"}]`)
	r.neverEmpty(mirrorManager, webReady)
	s.awaitLabel("web", "")
	s.awaitEndpoints("web", webReady)

	// The pods do not matter any more; what the user writes does.
	s.run("delete", "pod", "b", "--force", "--grace-period=0")
	s.run("patch", "endpoints", "web", "--type=json", "-p", `[{"op":"replace","path":"/subsets/0/addresses","value":[{"ip":"192.0.2.7"}]}]`)
	r.neverEmpty(mirrorManager, "192.0.2.7:8080")
}

// Endpoints that are not to be mirrored leave no slices.
func ruleSelectorRemovedNotMirrored(s *space) {
	web(s)
	const skip = "endpointslice.kubernetes.io/skip-mirror"
	s.run("label", "service", "web", skip+"=true") // the Endpoints take over its labels
	s.run("wait", "endpoints/web", "--for=jsonpath={.metadata.labels."+strings.ReplaceAll(skip, ".", `\.`)+"}=true", "--timeout=20s")
	s.run("patch", "service", "web", "--type=json", "-p", `[{"op":"remove","path":"/spec/selector"}]`)
	s.awaitReady("web", "", "")
	s.awaitEndpoints("web", webReady)
}

// Hand-written Endpoints are taken over, with no moment without endpoints.
func ruleSelectorAdded(s *space) {
	s.apply(`
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{name: http, port: 80, targetPort: http}]}}
---
{apiVersion: v1, kind: Endpoints, metadata: {name: web, labels: {mine: "yes"}}, subsets: [{addresses: [{ip: 192.0.2.7}], ports: [{name: http, port: 80}]}]}
`)
	s.pods("app=web", 8080, "a")
	s.status("a", true, "10.2.0.1")
	s.awaitReady("web", mirrorManager, "192.0.2.7:80")
	r := s.record("web")
	s.run("patch", "service", "web", "-p", `{"spec":{"selector":{"app":"web"}}}`)
	r.neverEmpty(endpointsManager, "10.2.0.1:8080")
	s.awaitEndpoints("web", "10.2.0.1:8080")
	s.awaitLabel("web", "endpoint-controller")

	// And back, and forth, as fast as kubectl can: the end is right, whatever was under way.
	for range 3 {
		s.run("patch", "service", "web", "--type=json", "-p", `[{"op":"remove","path":"/spec/selector"}]`)
		s.run("patch", "service", "web", "-p", `{"spec":{"selector":{"app":"web"}}}`)
	}
	r.neverEmpty(endpointsManager, "10.2.0.1:8080")
	s.run("patch", "service", "web", "--type=json", "-p", `[{"op":"remove","path":"/spec/selector"}]`)
	r.neverEmpty(mirrorManager, "10.2.0.1:8080")
	s.awaitLabel("web", "")
}

// The new pods replace the old ones in the same slice, in one write.
func ruleSelectorChanged(s *space) {
	web(s)
	s.pods("app=new", 8081, "c")
	s.status("c", true, "10.2.0.3")
	s.pods("app=newer", 8081, "d")
	s.status("d", true, "10.2.0.4")
	r := s.record("web")
	s.run("set", "selector", "service", "web", "app=new")
	r.neverEmpty(endpointsManager, "10.2.0.3:8081")
	s.awaitEndpoints("web", "10.2.0.3:8081")
	name := s.slices("web")[0].Name
	s.run("set", "selector", "service", "web", "app=newer")
	r.neverEmpty(endpointsManager, "10.2.0.4:8081")
	if list := s.slices("web"); len(list) != 1 || list[0].Name != name {
		s.Errorf("slices %d, first %s; want %s alone", len(list), list[0].Name, name)
	}
	// A pod's label is the other side of it.
	s.run("label", "pod", "c", "app=newer", "--overwrite")
	r.neverEmpty(endpointsManager, "10.2.0.3:8081 10.2.0.4:8081")
	s.run("label", "pod", "d", "app-")
	r.neverEmpty(endpointsManager, "10.2.0.3:8081")
	s.awaitEndpoints("web", "10.2.0.3:8081")
}

// Whatever somebody edits, deletes or adds under our label is put right.
func ruleRepaired(s *space) {
	web(s)
	slice := func() string { return s.slices("web")[0].Name }
	repaired := func(what string, args ...string) {
		s.Helper()
		s.run(args...)
		s.await(func(context.Context) error {
			list := s.slices("web")
			if got := ready(list...); got != webReady || len(list) != 1 || len(list[0].Endpoints) != 2 || len(list[0].Ports) != 1 {
				return fmt.Errorf("%s: %d slices lead to %q, want one with %q", what, len(list), got, webReady)
			}
			if list[0].Labels["team"] != "blue" || list[0].Labels[discovery.LabelManagedBy] != endpointsManager {
				return fmt.Errorf("%s: labels %v", what, list[0].Labels)
			}
			if len(list[0].OwnerReferences) != 1 {
				return fmt.Errorf("%s: owners %v", what, list[0].OwnerReferences)
			}
			if got := s.endpoints("web"); got != webReady {
				return fmt.Errorf("%s: endpoints %q", what, got)
			}
			if got := s.endpointsLabel("web"); got != "endpoint-controller" {
				return fmt.Errorf("%s: endpoints have the label %q", what, got)
			}
			return nil
		})
	}
	repaired("slice edited", "patch", "endpointslice", slice(), "--type=json", "-p", `[{"op":"replace","path":"/endpoints","value":[{"addresses":["192.0.2.9"]}]}]`)
	repaired("slice's ports edited", "patch", "endpointslice", slice(), "--type=json", "-p", `[{"op":"replace","path":"/ports","value":[]}]`)
	repaired("slice's label edited", "label", "endpointslice", slice(), "team=red", "--overwrite")
	repaired("slice's owner removed", "patch", "endpointslice", slice(), "--type=json", "-p", `[{"op":"remove","path":"/metadata/ownerReferences"}]`)
	repaired("slice deleted", "delete", "endpointslice", slice())
	repaired("Endpoints edited", "patch", "endpoints", "web", "--type=json", "-p", `[{"op":"replace","path":"/subsets/0/addresses","value":[{"ip":"192.0.2.9"}]}]`)
	repaired("Endpoints' label removed", "label", "endpoints", "web", managedBy+"-")
	repaired("Endpoints deleted", "delete", "endpoints", "web")
	s.apply(`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-foreign, labels: {kubernetes.io/service-name: web, endpointslice.kubernetes.io/managed-by: ` +
		endpointsManager + `}}, addressType: IPv4, endpoints: [{addresses: [192.0.2.9]}], ports: [{name: http, port: 8080}]}`)
	repaired("slice added under our label", "get", "endpointslices")
}

func ruleExternalName(s *space) {
	web(s)
	r := s.record("web")
	s.run("patch", "service", "web", "-p", `{"spec":{"type":"ExternalName","externalName":"db.example.test"}}`)
	s.awaitGone("web")
	s.has(s.run("get", "service", "web"), "web ExternalName <none> db.example.test")
	s.run("patch", "service", "web", "-p", `{"spec":{"type":"ClusterIP","externalName":null}}`)
	s.awaitReady("web", endpointsManager, webReady)
	s.awaitEndpoints("web", webReady)
	if seen := r.until(endpointsManager, webReady); !slices.Contains(seen, "") {
		s.Errorf("the recorder saw no moment without endpoints, so it cannot fail: %q", seen)
	}

	// An ExternalName keeps Endpoints that the user wrote.
	s.apply(`
{apiVersion: v1, kind: Service, metadata: {name: out}, spec: {ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Endpoints, metadata: {name: out}, subsets: [{addresses: [{ip: 192.0.2.7}], ports: [{port: 80}]}]}
`)
	s.awaitReady("out", mirrorManager, "192.0.2.7:80")
	s.run("patch", "service", "out", "-p", `{"spec":{"type":"ExternalName","externalName":"db.example.test"}}`)
	s.run("annotate", "endpoints", "out", "touched=yes")
	if got := s.endpoints("out"); got != "192.0.2.7:80" {
		s.Errorf("endpoints of a Service with an ExternalName: %q, want the user's", got)
	}
}

// A cluster IP can go and come only by way of ExternalName; the label follows.
func ruleHeadless(s *space) {
	web(s)
	headless := func(want bool) {
		s.Helper()
		s.awaitReady("web", endpointsManager, webReady)
		s.await(func(ctx context.Context) error {
			ep, err := s.client.CoreV1().Endpoints(s.name).Get(ctx, "web", metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, labels := range []map[string]string{s.slices("web")[0].Labels, ep.Labels} {
				if _, got := labels[corev1.IsHeadlessService]; got != want {
					return fmt.Errorf("headless label %t, want %t: %v", got, want, labels)
				}
			}
			return nil
		})
	}
	headless(false)
	external := func() {
		s.run("patch", "service", "web", "-p", `{"spec":{"type":"ExternalName","externalName":"db.example.test","clusterIP":null,"clusterIPs":null}}`)
	}
	external()
	s.run("patch", "service", "web", "-p", `{"spec":{"type":"ClusterIP","externalName":null,"clusterIP":"None"}}`)
	headless(true)
	external()
	s.run("patch", "service", "web", "-p", `{"spec":{"type":"ClusterIP","externalName":null,"clusterIP":null}}`)
	headless(false)
}

// A family that comes or goes does not touch the slices of the other one.
func ruleFamily(s *space) {
	web(s)
	of := func(family discovery.AddressType) (slice *discovery.EndpointSlice) {
		for _, found := range s.slices("web") {
			if found.AddressType == family {
				slice = &found
			}
		}
		return slice
	}
	before := of(discovery.AddressTypeIPv4).ResourceVersion
	s.run("patch", "service", "web", "-p", `{"spec":{"ipFamilyPolicy":"RequireDualStack"}}`)
	s.awaitReady("web", endpointsManager, webReady+" fd00:2::1:8080 fd00:2::2:8080")
	s.has(s.run("get", "endpointslices"), "IPv4 8080 10.2.0.", "IPv6 8080 fd00:2::")
	s.has(s.run("describe", "service", "web"), "IP Family Policy: RequireDualStack", "IP Families: IPv4,IPv6", "fd00:96::")
	s.awaitEndpoints("web", webReady) // Endpoints are of the first family alone
	s.run("patch", "service", "web", "-p", `{"spec":{"ipFamilyPolicy":"SingleStack"}}`)
	s.awaitReady("web", endpointsManager, webReady)
	if of(discovery.AddressTypeIPv6) != nil {
		s.Error("the slice of the family that went is still there")
	}
	if after := of(discovery.AddressTypeIPv4).ResourceVersion; after != before {
		s.Errorf("the IPv4 slice was written: resource version %s, was %s", after, before)
	}
}

// A named port that differs from pod to pod makes a slice for each number; a port added or removed changes all.
func rulePorts(s *space) {
	web(s)
	s.pods("app=web", 9090, "c")
	s.status("c", true, "10.2.0.3")
	s.awaitReady("web", endpointsManager, webReady+" 10.2.0.3:9090")
	s.awaitEndpoints("web", webReady+" 10.2.0.3:9090")
	if n := len(s.slices("web")); n != 2 {
		s.Errorf("%d slices for two sets of ports", n)
	}
	s.run("delete", "pod", "c", "--force", "--grace-period=0")
	s.awaitReady("web", endpointsManager, webReady)
	r := s.record("web")
	s.run("patch", "service", "web", "-p", `{"spec":{"ports":[{"name":"metrics","port":9100,"targetPort":9100}]}}`)
	r.neverEmpty(endpointsManager, "10.2.0.1:8080 10.2.0.1:9100 10.2.0.2:8080 10.2.0.2:9100")
	s.run("patch", "service", "web", "--type=json", "-p", `[{"op":"test","path":"/spec/ports/0/name","value":"metrics"},{"op":"remove","path":"/spec/ports/0"}]`)
	r.neverEmpty(endpointsManager, webReady)
	s.awaitEndpoints("web", webReady)
}

// A Service of the same name is another Service: its slices are its own.
func ruleMadeAnew(s *space) {
	web(s)
	for range 3 {
		s.kubectl.WithInput(yaml(webService)).Run("-n", s.name, "replace", "--force", "-f", "-")
		service, err := s.client.CoreV1().Services(s.name).Get(s.Context(), "web", metav1.GetOptions{})
		check(s.T, err)
		s.await(func(context.Context) error {
			list := s.slices("web")
			for _, slice := range list {
				if len(slice.OwnerReferences) != 1 || slice.OwnerReferences[0].UID != service.UID {
					return fmt.Errorf("slice %s belongs to %v, want %s", slice.Name, slice.OwnerReferences, service.UID)
				}
			}
			if got := ready(list...); got != webReady {
				return fmt.Errorf("slices lead to %q", got)
			}
			return nil
		})
		s.awaitEndpoints("web", webReady)
	}
}

func ruleDeleted(s *space) {
	web(s)
	s.run("delete", "service", "web")
	s.awaitGone("web")
	if got := strings.TrimSpace(s.run("get", "endpointslices,services")); got != "" {
		s.Errorf("left:\n%s", got)
	}
}

// Slices that somebody wrote by hand for the same Service are never touched, whatever happens to it.
func ruleHandWritten(s *space) {
	s.apply(`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: mine, labels: {kubernetes.io/service-name: web, endpointslice.kubernetes.io/managed-by: me}},
  addressType: IPv4, endpoints: [{addresses: [192.0.2.9]}], ports: [{name: http, port: 8080}]}`)
	version := func() string {
		return s.run("get", "endpointslice", "mine", "-o", "jsonpath={.metadata.resourceVersion}")
	}
	before := version()
	both := webReady + " 192.0.2.9:8080"
	s.apply(webService)
	s.pods("app=web", 8080, "a", "b")
	s.status("a", true, "10.2.0.1")
	s.status("b", true, "10.2.0.2")
	s.awaitReady("web", endpointsManager+" me", both)
	s.run("patch", "service", "web", "--type=json", "-p", `[{"op":"remove","path":"/spec/selector"}]`)
	s.awaitReady("web", mirrorManager+" me", both)
	s.run("patch", "service", "web", "-p", `{"spec":{"selector":{"app":"web"}}}`)
	s.awaitReady("web", endpointsManager+" me", both)
	s.run("patch", "service", "web", "-p", `{"spec":{"type":"ExternalName","externalName":"db.example.test"}}`)
	s.awaitReady("web", "me", "192.0.2.9:8080")
	s.run("patch", "service", "web", "-p", `{"spec":{"type":"ClusterIP","externalName":null}}`)
	s.awaitReady("web", endpointsManager+" me", both)
	s.run("delete", "service", "web")
	s.awaitReady("web", "me", "192.0.2.9:8080")
	if after := version(); after != before {
		s.Errorf("the hand-written slice was written: resource version %s, was %s", after, before)
	}
}
