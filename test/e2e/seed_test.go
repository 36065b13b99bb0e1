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

// seedScenarios are the questions that the project began with, on the manifests that users get.
func seedScenarios() []scenario {
	return []scenario{
		{"selector", seedSelector},
		{"replacement", seedReplacement},
		{"by-hand", seedByHand},
		{"headless", seedHeadless},
		{"deployment", seedDeployment},
	}
}

const seedReady = "10.1.0.11:8080 10.1.1.12:8080 10.1.1.13:8080"

// somePods applies the Service some-service with its three pods, and makes them ready.
func somePods(s *space) {
	s.Helper()
	s.has(s.run("apply", "-f", example(s.T, "some-run.yaml"), "-f", played(s.T, "some-run-pods.yaml")),
		"service/some-service created", "pod/some-run-1 created", "pod/some-run-2 created", "pod/some-run-3 created")
	s.status("some-run-1", true, "10.1.0.11")
	s.status("some-run-2", true, "10.1.1.12")
	s.status("some-run-3", true, "10.1.1.13")
	s.awaitReady("some-service", endpointsManager, seedReady)
	s.awaitEndpoints("some-service", seedReady)
}

func seedSelector(s *space) {
	s.has(s.run("apply", "-f", example(s.T, "some-run.yaml")), "service/some-service created")
	s.awaitEndpoints("some-service", "")
	s.awaitReady("some-service", endpointsManager, "") // an empty slice, so that one can see that somebody looked
	if got := s.row(s.run("get", "ep"), "some-service"); got[1] != "<none>" {
		s.Errorf("without pods: %q", got)
	}
	s.run("delete", "service", "some-service")
	s.awaitGone("some-service")

	somePods(s)
	out, err := s.try("get", "ep")
	if err != nil {
		s.Fatal(err)
	}
	if got, want := s.row(out.Stdout, "some-service"), strings.ReplaceAll(seedReady, " ", ","); got[1] != want {
		s.Errorf("kubectl get ep: %q, want %s", got, want)
	}
	if strings.TrimSpace(out.Stderr) != deprecation {
		s.Errorf("warning %q, want %q", out.Stderr, deprecation)
	}
	got := s.row(s.run("get", "endpointslices", "-o", "wide"), "some-service-")
	if want := []string{"IPv4", "8080", "10.1.0.11,10.1.1.12,10.1.1.13"}; len(got) != 5 || !sameMembers(got[1:4], want) {
		s.Errorf("kubectl get endpointslices: %q, want %q", got, want)
	}
	described := s.run("describe", "service", "some-service")
	s.has(described, "Selector: run=some-run", "Type: ClusterIP", "IP Family Policy: SingleStack", "Port: http 80/TCP", "TargetPort: 8080/TCP")
	if got := field(described, "Endpoints:"); !sameMembers([]string{got}, []string{strings.ReplaceAll(seedReady, " ", ",")}) {
		s.Errorf("kubectl describe service: endpoints %s, want %s", got, seedReady)
	}
	if got := field(described, "IP:"); !strings.HasPrefix(got, "10.96.") {
		s.Errorf("kubectl describe service: IP %q, want one of the range", got)
	}
	pods := s.run("describe", "pods", "-l", "run=some-run")
	s.has(pods, "Name: some-run-1", "Name: some-run-2", "Name: some-run-3", "IP: 10.1.0.11", "IP: 10.1.1.12", "IP: 10.1.1.13",
		"Node: node-a/", "Status: Running", "Labels: run=some-run", "Conditions: Type Status Ready True")

	// What proxies use beside the addresses.
	slice := s.slices("some-service")[0]
	for _, ep := range slice.Endpoints {
		zone := map[string]string{"node-a": "zone-1", "node-b": "zone-2"}[*ep.NodeName]
		if ep.Zone == nil || *ep.Zone != zone || ep.TargetRef == nil || ep.TargetRef.Kind != "Pod" || !strings.HasPrefix(ep.TargetRef.Name, "some-run-") {
			s.Errorf("endpoint %s on %s: zone %v, target %v", ep.Addresses[0], *ep.NodeName, ep.Zone, ep.TargetRef)
		}
	}
	if len(slice.OwnerReferences) != 1 || slice.OwnerReferences[0].Kind != "Service" || slice.OwnerReferences[0].Name != "some-service" {
		s.Errorf("owners of the slice: %v", slice.OwnerReferences)
	}
}

// sameMembers compares lists whose members are comma-separated in any order.
func sameMembers(got, want []string) bool {
	order := func(list []string) []string {
		out := make([]string, len(list))
		for i, text := range list {
			parts := strings.Split(text, ",")
			slices.Sort(parts)
			out[i] = strings.Join(parts, ",")
		}
		return out
	}
	return slices.Equal(order(got), order(want))
}

// field is what stands behind a key in what kubectl describe prints.
func field(described, key string) string {
	for line := range strings.Lines(described) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), key); ok {
			return strings.TrimSpace(rest)
		}
	}
	return "(no " + key + ")"
}

// One pod dies, and the one that takes its place has another address.
func seedReplacement(s *space) {
	somePods(s)
	r := s.record("some-service")

	// It is told to end: no new connections, while it still serves those it has.
	s.run("delete", "pod", "some-run-2", "--wait=false")
	r.until(endpointsManager, "10.1.0.11:8080 10.1.1.13:8080")
	ep := endpointOf(s.slices("some-service"), "10.1.1.12")
	if ep == nil || *ep.Conditions.Ready || !*ep.Conditions.Serving || !*ep.Conditions.Terminating {
		s.Errorf("endpoint of the pod that ends: %+v, want not ready, serving, terminating", ep)
	}
	s.awaitEndpoints("some-service", "10.1.0.11:8080 10.1.1.13:8080")

	// It is gone.
	s.run("delete", "pod", "some-run-2", "--force", "--grace-period=0")
	s.await(func(context.Context) error {
		if ep := endpointOf(s.slices("some-service"), "10.1.1.12"); ep != nil {
			return fmt.Errorf("the dead pod is still an endpoint: %+v", ep)
		}
		return nil
	})
	s.run("apply", "-f", played(s.T, "some-run-replacement.yaml"))
	s.status("some-run-4", true, "10.1.0.14")
	const after = "10.1.0.11:8080 10.1.0.14:8080 10.1.1.13:8080"
	for _, state := range r.until(endpointsManager, after) {
		if len(strings.Fields(state)) < 2 {
			s.Errorf("led to %q for a moment", state)
		}
	}
	s.awaitEndpoints("some-service", after)
	if got, want := s.row(s.run("get", "endpoints", "some-service"), "some-service")[1], strings.ReplaceAll(after, " ", ","); got != want {
		s.Errorf("kubectl get endpoints: %s, want %s", got, want)
	}
	s.has(s.run("get", "pods", "-o", "wide"), "some-run-4 0/1 Running 0")

	// A probe fails, and succeeds again.
	s.status("some-run-4", false, "10.1.0.14")
	r.until(endpointsManager, "10.1.0.11:8080 10.1.1.13:8080")
	s.awaitEndpoints("some-service", "(10.1.0.14:8080) 10.1.0.11:8080 10.1.1.13:8080")
	s.status("some-run-4", true, "10.1.0.14")
	r.until(endpointsManager, after)
	s.awaitEndpoints("some-service", after)
}

func endpointOf(list []discovery.EndpointSlice, address string) *discovery.Endpoint {
	for _, slice := range list {
		for i := range slice.Endpoints {
			if slice.Endpoints[i].Addresses[0] == address {
				return &slice.Endpoints[i]
			}
		}
	}
	return nil
}

// A Service without selector, port 80 → 9376, and Endpoints of the same name.
func seedByHand(s *space) {
	s.has(s.run("apply", "-f", example(s.T, "my-service.yaml")), "service/my-service created", "endpoints/my-service created")
	s.awaitReady("my-service", mirrorManager, "192.0.2.45:9376")
	if got := s.row(s.run("get", "ep", "my-service"), "my-service")[1]; got != "192.0.2.45:9376" {
		s.Errorf("kubectl get ep: %s", got)
	}
	got := s.row(s.run("get", "endpointslices", "-o", "wide", "-l", "kubernetes.io/service-name=my-service"), "my-service-")
	if want := []string{"IPv4", "9376", "192.0.2.45"}; !slices.Equal(got[1:4], want) {
		s.Errorf("kubectl get endpointslices: %q, want %q", got, want)
	}
	s.has(s.run("describe", "service", "my-service"), "Selector: <none>", "Port: <unset> 80/TCP", "TargetPort: 9376/TCP", "Endpoints: 192.0.2.45:9376")

	// The slice follows the Endpoints, and goes with them.
	s.run("patch", "endpoints", "my-service", "--type=json", "-p", `[{"op":"add","path":"/subsets/0/addresses/-","value":{"ip":"192.0.2.46"}}]`)
	s.awaitReady("my-service", mirrorManager, "192.0.2.45:9376 192.0.2.46:9376")
	s.run("delete", "endpoints", "my-service")
	s.awaitReady("my-service", "", "")
	s.run("apply", "-f", example(s.T, "my-service.yaml"))
	s.awaitReady("my-service", mirrorManager, "192.0.2.45:9376")
	// The Endpoints go with the Service; who deletes both may find them gone.
	s.run("delete", "-f", example(s.T, "my-service.yaml"), "--ignore-not-found")
	s.awaitGone("my-service")
}

func seedHeadless(s *space) {
	somePods(s)
	s.status("some-run-3", false, "10.1.1.13")
	s.run("apply", "-f", example(s.T, "headless.yaml"))
	s.awaitReady("some-service", endpointsManager, "10.1.0.11:8080 10.1.1.12:8080")
	s.awaitReady("some-run-members", endpointsManager, seedReady) // publishNotReadyAddresses
	s.awaitEndpoints("some-run-members", seedReady)
	if _, ok := s.slices("some-run-members")[0].Labels[corev1.IsHeadlessService]; !ok {
		s.Error("the slice of a headless Service lacks its label")
	}
	s.has(s.run("get", "service", "some-run-members"), "some-run-members ClusterIP None <none> 8080/TCP")
}

// The ReplicaSet makes the pods and replaces them; the Service knows the port by its name.
func seedDeployment(s *space) {
	s.agent("10.1.0.")
	s.run("apply", "-f", played(s.T, "deployment.yaml"))
	s.has(s.run("rollout", "status", "deployment/web", "--timeout=20s"), "successfully rolled out")
	count := func(context.Context) error {
		if got := s.endpoints("web"); len(strings.Fields(got)) != 2 || strings.Contains(got, "(") {
			return fmt.Errorf("endpoints of web: %q, want two ready ones", got)
		}
		return nil
	}
	s.await(count)
	first := strings.Fields(s.run("get", "pods", "-l", "app=web", "-o", "name"))[0]
	s.run("delete", first, "--force", "--grace-period=0")
	s.run("wait", "deployment/web", "--for=condition=Available", "--timeout=20s")
	s.await(count)
	pods, err := s.client.CoreV1().Pods(s.name).List(s.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	check(s.T, err)
	var want []string
	for _, pod := range pods.Items {
		want = append(want, pod.Status.PodIP+":8080")
	}
	slices.Sort(want)
	s.awaitReady("web", endpointsManager, strings.Join(want, " "))
	s.run("scale", "deployment/web", "--replicas=0")
	s.awaitReady("web", endpointsManager, "")
}
