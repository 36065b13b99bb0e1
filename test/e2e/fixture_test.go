package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/endpointd/endpointd/internal/testkit"
)

const (
	// patience is the longest wait for something that should be there within milliseconds; a busy machine is slow.
	patience = 20 * time.Second

	// deprecation is what every request for Endpoints is answered with (KEP-4974).
	deprecation = "Warning: v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"

	endpointsManager = "endpointslice-controller.k8s.io"
	mirrorManager    = "endpointslicemirroring-controller.k8s.io"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == helperArg {
		os.Exit(helper(os.Args[2:]))
	}
	// client-go reports every connection that breaks; here they are broken on purpose.
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	testkit.Main(m)
}

// cluster is a running server with ways to talk to it.
type cluster struct {
	server   *testkit.ServerProcess
	kubectls []testkit.Kubectl // the stock one, the built-in one
	config   *rest.Config      // as administrator
	client   *kubernetes.Clientset
}

func newCluster(t *testing.T, options testkit.ServerOptions) *cluster {
	t.Helper()
	return clusterOf(t, testkit.Server(t, options))
}

func clusterOf(t *testing.T, server *testkit.ServerProcess) *cluster {
	t.Helper()
	c := &cluster{server: server, kubectls: []testkit.Kubectl{server.Kubectl(), server.BuiltinKubectl()}}
	c.config = adminConfig(t, server.Kubeconfig)
	c.client = clientFor(t, c.config)
	return c
}

func adminConfig(t *testing.T, kubeconfig string) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	check(t, err)
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{}
	return config
}

func clientFor(t *testing.T, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	check(t, err)
	return client
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// space is one test's namespace on a cluster, with the kubectl that the test uses.
type space struct {
	*testing.T
	*cluster
	kubectl testkit.Kubectl
	name    string // of the namespace
}

// space makes a namespace named for the test.
func (c *cluster) space(t *testing.T, kubectl testkit.Kubectl) *space {
	t.Helper()
	name := strings.ToLower(strings.Map(func(r rune) rune {
		if r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}, t.Name()))
	name = strings.Trim(name[max(0, len(name)-50):], "-")
	_, err := c.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	check(t, err)
	return &space{T: t, cluster: c, kubectl: kubectl.In(t), name: name}
}

// run runs kubectl in the namespace and returns its standard output.
func (s *space) run(args ...string) string {
	s.Helper()
	return s.kubectl.Run(append([]string{"-n", s.name}, args...)...)
}

func (s *space) try(args ...string) (testkit.Output, error) {
	return s.kubectl.Try(append([]string{"-n", s.name}, args...)...)
}

// apply runs kubectl apply with the manifest and returns what it prints.
func (s *space) apply(manifest string) string {
	s.Helper()
	return s.kubectl.WithInput(yaml(manifest)).Run("-n", s.name, "apply", "-f", "-")
}

// yaml lets a manifest begin with a brace; kubectl would take it for JSON.
func yaml(manifest string) string { return "---\n" + manifest }

// refused runs a command that must fail, and returns what it said on standard error.
func (s *space) refused(args ...string) string {
	s.Helper()
	return s.refusedInput("", args...)
}

func (s *space) refusedInput(input string, args ...string) string {
	s.Helper()
	out, err := s.kubectl.WithInput(input).Try(append([]string{"-n", s.name}, args...)...)
	if err == nil {
		s.Fatalf("%s %s: it was not refused:\n%s", s.kubectl.Name, strings.Join(args, " "), out.Stdout)
	}
	return out.Stderr
}

// has fails the test unless every text is in what a command printed; runs of blanks count as one.
func (s *space) has(printed string, texts ...string) {
	s.Helper()
	squeezed := squeeze(printed)
	for _, text := range texts {
		if !strings.Contains(squeezed, squeeze(text)) {
			s.Errorf("%q is not in\n%s", text, printed)
		}
	}
}

func squeeze(text string) string { return strings.Join(strings.Fields(text), " ") }

// row returns the fields of the line that begins with name, in a table that kubectl printed.
func (s *space) row(table, name string) []string {
	s.Helper()
	for line := range strings.Lines(table) {
		if fields := strings.Fields(line); len(fields) > 0 && strings.HasPrefix(fields[0], name) {
			return fields
		}
	}
	s.Fatalf("no row %s in\n%s", name, table)
	return nil
}

// example is the path of a manifest for users.
func example(t *testing.T, name string) string {
	t.Helper()
	root, err := testkit.Root()
	check(t, err)
	return filepath.Join(root, "examples", name)
}

// played is the path of a manifest for tests in which no agent runs: nodes that are only records, and pods that the test plays.
func played(t *testing.T, name string) string {
	t.Helper()
	root, err := testkit.Root()
	check(t, err)
	return filepath.Join(root, "test", "e2e", "testdata", "played", name)
}

// pods makes pods with a label and a named port, on node-a.
func (s *space) pods(label string, port int, names ...string) {
	s.Helper()
	key, value, _ := strings.Cut(label, "=")
	var manifest strings.Builder
	for _, name := range names {
		fmt.Fprintf(&manifest, `---
{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {%s: %s}}, spec: {nodeName: node-a, containers: [{name: c, image: i, ports: [{name: http, containerPort: %d}]}]}}
`, name, key, value, port)
	}
	s.apply(manifest.String())
}

// status says of a pod what its node's agent would say: its addresses, and whether it is ready.
func (s *space) status(pod string, ready bool, ips ...string) {
	s.Helper()
	s.run("patch", "pod", pod, "--subresource=status", "-p", podStatus(ready, ips...))
}

func podStatus(ready bool, ips ...string) string {
	condition := "False"
	if ready {
		condition = "True"
	}
	list := []string{`{"$patch":"replace"}`} // the pod may have had others
	for _, ip := range ips {
		list = append(list, fmt.Sprintf(`{"ip":%q}`, ip))
	}
	return fmt.Sprintf(`{"status":{"phase":"Running","podIP":%q,"podIPs":[%s],"conditions":[{"type":"Ready","status":%q}]}}`,
		ips[0], strings.Join(list, ","), condition)
}

// slices returns the EndpointSlices of a Service by name.
func (s *space) slices(service string) []discovery.EndpointSlice {
	s.Helper()
	return slicesOf(s.T, s.client, s.name, service)
}

func slicesOf(t *testing.T, client kubernetes.Interface, namespace, service string) []discovery.EndpointSlice {
	t.Helper()
	list, err := client.DiscoveryV1().EndpointSlices(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: discovery.LabelServiceName + "=" + service})
	check(t, err)
	slices.SortFunc(list.Items, func(a, b discovery.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	return list.Items
}

// ready is what clients of a Service are led to: "10.1.0.11:8080 10.1.1.12:8080".
func ready(list ...discovery.EndpointSlice) string {
	var found []string
	for _, slice := range list {
		for _, ep := range slice.Endpoints {
			if ep.Conditions.Ready == nil || *ep.Conditions.Ready {
				for _, port := range slice.Ports {
					found = append(found, fmt.Sprintf("%s:%d", ep.Addresses[0], *port.Port))
				}
			}
		}
	}
	slices.Sort(found)
	return strings.Join(slices.Compact(found), " ")
}

func sortedWords(words []string) string {
	slices.Sort(words)
	return strings.Join(words, " ")
}

// managers says who manages the slices, each once.
func managers(list []discovery.EndpointSlice) string {
	var found []string
	for _, slice := range list {
		found = append(found, slice.Labels[discovery.LabelManagedBy])
	}
	slices.Sort(found)
	return strings.Join(slices.Compact(found), " ")
}

// awaitReady waits until the slices of a Service, all of one manager, lead to want.
func (s *space) awaitReady(service, manager, want string) {
	s.Helper()
	testkit.Await(s, patience, func() error {
		list := s.slices(service)
		if got, by := ready(list...), managers(list); got != want || by != manager {
			return fmt.Errorf("slices of %s lead to %q (by %s), want %q (by %s)", service, got, by, want, manager)
		}
		return nil
	})
}

// awaitGone waits until the Service has neither slices nor Endpoints.
func (s *space) awaitGone(service string) {
	s.Helper()
	testkit.Await(s, patience, func() error {
		if list := s.slices(service); len(list) > 0 {
			return fmt.Errorf("%d slices of %s are still there", len(list), service)
		}
		out, err := s.try("get", "endpoints", service)
		if err == nil || !strings.Contains(out.Stderr, "not found") {
			return fmt.Errorf("endpoints %s are still there: %s%s", service, out.Stdout, out.Stderr)
		}
		return nil
	})
}

// endpoints is the Endpoints object in the words of [ready], with those that are not ready in brackets.
func (s *space) endpoints(service string) string {
	s.Helper()
	ep, err := s.client.CoreV1().Endpoints(s.name).Get(s.Context(), service, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	return addresses(ep)
}

func addresses(ep *corev1.Endpoints) string {
	var found []string
	for _, subset := range ep.Subsets {
		for _, port := range subset.Ports {
			for _, a := range subset.Addresses {
				found = append(found, fmt.Sprintf("%s:%d", a.IP, port.Port))
			}
			for _, a := range subset.NotReadyAddresses {
				found = append(found, fmt.Sprintf("(%s:%d)", a.IP, port.Port))
			}
		}
	}
	slices.Sort(found)
	return strings.Join(found, " ")
}

func (s *space) awaitEndpoints(service, want string) {
	s.Helper()
	testkit.Await(s, patience, func() error {
		if got := s.endpoints(service); got != want {
			return fmt.Errorf("endpoints %s: %q, want %q", service, got, want)
		}
		return nil
	})
}

// await waits until cond returns nil.
func (s *space) await(cond func(ctx context.Context) error) {
	s.Helper()
	testkit.Await(s, patience, func() error { return cond(s.Context()) })
}
