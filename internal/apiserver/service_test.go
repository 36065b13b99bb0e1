package apiserver

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func address(text string) netip.Addr { return netip.MustParseAddr(text) }

// TestServiceAddresses: cluster IPs of both families, node ports, and their IPAddress objects; released on deletion.
func TestServiceAddresses(t *testing.T) {
	t.Parallel()
	ctx, admin := t.Context(), shared.client(t)
	namespace(t, "addresses")
	dual := corev1.IPFamilyPolicyRequireDualStack
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, IPFamilyPolicy: &dual, Selector: map[string]string{"run": "some-run"},
		Ports: []corev1.ServicePort{{Name: "tcp", Port: 53, NodePort: 30053, Protocol: "TCP"}, {Name: "udp", Port: 53, NodePort: 30053, Protocol: "UDP"}},
	}}
	got, err := admin.CoreV1().Services("addresses").Create(ctx, svc, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Spec.ClusterIPs) != 2 || got.Spec.ClusterIP != got.Spec.ClusterIPs[0] {
		t.Fatalf("cluster IPs %v", got.Spec.ClusterIPs)
	}
	for i, cidr := range prefixes("10.96.0.0/16", "fd00:96::/112") {
		ip := address(got.Spec.ClusterIPs[i])
		if !cidr.Contains(ip) {
			t.Errorf("cluster IP %s not of %s", ip, cidr)
		}
		object, err := admin.NetworkingV1().IPAddresses().Get(ctx, ip.String(), metav1.GetOptions{})
		if err != nil || object.Spec.ParentRef.Name != "web" {
			t.Errorf("IPAddress %s: %v, %v", ip, object, err)
		}
	}
	if got.Spec.SessionAffinity != corev1.ServiceAffinityNone || *got.Spec.InternalTrafficPolicy != corev1.ServiceInternalTrafficPolicyCluster {
		t.Errorf("defaults missing in %+v", got.Spec)
	}
	if err := admin.CoreV1().Services("addresses").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	svc.Spec.ClusterIPs, svc.Spec.ClusterIP = got.Spec.ClusterIPs, got.Spec.ClusterIP
	if _, err := admin.CoreV1().Services("addresses").Create(ctx, svc, metav1.CreateOptions{}); err != nil {
		t.Errorf("the same addresses and ports after deletion: %v", err)
	}
}

// TestEndpointsWarning: every request for v1 Endpoints tells that they are deprecated.
func TestEndpointsWarning(t *testing.T) {
	t.Parallel()
	client, err := rest.HTTPClientFor(shared.admin())
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Get("https://" + shared.addr + "/api/v1/endpoints")
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if got, want := response.Header.Get("Warning"), `299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"`; response.StatusCode != http.StatusOK || got != want {
		t.Errorf("%d, warning %s, want %s", response.StatusCode, got, want)
	}
}

// TestEviction: what kubectl drain does to a pod, with no budgets in the way.
func TestEviction(t *testing.T) {
	t.Parallel()
	ctx, admin := t.Context(), shared.client(t)
	namespace(t, "eviction")
	if _, err := admin.CoreV1().ServiceAccounts("eviction").Create(ctx, account("default"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"a": "b"}}, Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	got, err := admin.CoreV1().Pods("eviction").Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Spec.ServiceAccountName != "default" || !slices.ContainsFunc(got.Spec.Volumes, func(v corev1.Volume) bool { return v.Projected != nil }) {
		t.Errorf("admission set account %q, volumes %v; want default and a token", got.Spec.ServiceAccountName, got.Spec.Volumes)
	}
	if err := admin.PolicyV1().Evictions("eviction").Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "eviction"}}); err != nil {
		t.Fatal(err)
	}
	got, err = admin.CoreV1().Pods("eviction").Get(ctx, "p", metav1.GetOptions{})
	if err != nil || got.DeletionTimestamp == nil {
		t.Errorf("evicted pod %v, %v; want one that terminates", got, err)
	}
	resources, err := admin.Discovery().ServerResourcesForGroupVersion("v1")
	if err != nil || !slices.ContainsFunc(resources.APIResources, func(r metav1.APIResource) bool {
		return r.Name == "pods/eviction" && r.Group == "policy" && r.Version == "v1"
	}) {
		t.Errorf("pods/eviction not found the way kubectl drain looks for it (%v)", err)
	}
}

func TestDefaultIngressClass(t *testing.T) {
	t.Parallel()
	ctx, admin := t.Context(), shared.client(t)
	namespace(t, "ingress")
	class := &networkingv1.IngressClass{
		ObjectMeta: metav1.ObjectMeta{Name: "the-default", Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}},
		Spec:       networkingv1.IngressClassSpec{Controller: "t.example/c"},
	}
	if _, err := admin.NetworkingV1().IngressClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	backend := &networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "s", Port: networkingv1.ServiceBackendPort{Number: 80}}}
	eventually(t, "an Ingress without class gets the default one", func(ctx context.Context) (bool, error) {
		ingress := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{GenerateName: "i-"}, Spec: networkingv1.IngressSpec{DefaultBackend: backend}}
		got, err := admin.NetworkingV1().Ingresses("ingress").Create(ctx, ingress, metav1.CreateOptions{})
		return err == nil && got.Spec.IngressClassName != nil && *got.Spec.IngressClassName == class.Name, err
	})
}

func TestSystemNamespaces(t *testing.T) {
	t.Parallel()
	admin := shared.client(t)
	eventually(t, "system namespaces", func(ctx context.Context) (bool, error) {
		for _, name := range systemNamespaces() {
			if _, err := admin.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
				return false, nil
			} else if err != nil {
				return false, err
			}
		}
		return true, nil
	})
}

// kubernetesEndpoints waits until the endpoints of default/kubernetes, in both APIs, are want.
func kubernetesEndpoints(t *testing.T, client *kubernetes.Clientset, want ...string) {
	t.Helper()
	var seen [2][]string
	err := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), leaseTTL+2*endpointInterval)
		defer cancel()
		for {
			seen = [2][]string{}
			ep, err1 := client.CoreV1().Endpoints(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
			slice, err2 := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
			if err1 == nil && err2 == nil {
				for _, subset := range ep.Subsets {
					for _, a := range subset.Addresses {
						seen[0] = append(seen[0], a.IP)
					}
				}
				for _, e := range slice.Endpoints {
					seen[1] = append(seen[1], e.Addresses...)
				}
				slices.Sort(seen[0])
				slices.Sort(seen[1])
				if slices.Equal(seen[0], want) && slices.Equal(seen[1], want) {
					return nil
				}
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	if err != nil {
		t.Errorf("endpoints of kubernetes %v, slice %v, want %v", seen[0], seen[1], want)
	}
}

// TestKubernetesService: no endpoint for a server on loopback, and one line that says so; with several servers on one
// etcd each one's address, and of one that ended no more.
func TestKubernetesService(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	alone, err := start(t.TempDir(), "127.0.0.1:0", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := alone.stop(); err != nil {
			t.Error(err)
		}
	}()
	kubernetesEndpoints(t, alone.client(t))
	svc, err := alone.client(t).CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil || svc.Spec.ClusterIP != "10.96.0.1" || svc.Spec.Ports[0].Port != 443 {
		t.Errorf("service kubernetes %v, %v", svc, err)
	}
	var own []string // not what klog says, which other servers of this process share
	for line := range strings.Lines(alone.log.String()) {
		if !strings.Contains(line, "component=kubernetes") {
			own = append(own, line)
		}
	}
	if len(own) != 1 || !strings.Contains(own[0], "--listen") {
		t.Errorf("log is not the one line that tells about --listen:\n%s", own)
	}

	var wg sync.WaitGroup
	others := make([]*fixture, 2)
	for i, addr := range []string{"192.0.2.10", "192.0.2.11"} {
		wg.Go(func() {
			var err error
			if others[i], err = start(t.TempDir(), "127.0.0.1:0", alone, func(o *Options) { o.Advertise = address(addr) }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	kubernetesEndpoints(t, others[0].client(t), "192.0.2.10", "192.0.2.11")
	if err := others[1].stop(); err != nil {
		t.Error(err)
	}
	kubernetesEndpoints(t, others[0].client(t), "192.0.2.10")
	if err := others[0].stop(); err != nil {
		t.Error(err)
	}
	kubernetesEndpoints(t, alone.client(t))
}

func TestAdvertised(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, advertise, cidr, want, reason string
	}{
		{name: "given", advertise: "192.0.2.1", cidr: "10.96.0.0/16", want: "192.0.2.1"},
		{name: "given, IPv6", advertise: "2001:db8::1", cidr: "fd00:96::/112", want: "2001:db8::1"},
		{name: "loopback listener", cidr: "10.96.0.0/16", reason: "--listen"},
		{name: "other family", advertise: "2001:db8::1", cidr: "10.96.0.0/16", reason: "family"},
	} {
		o := Options{Listener: shared.server.generic.SecureServingInfo.Listener, ServiceCIDRs: prefixes(c.cidr)}
		if c.advertise != "" {
			o.Advertise = address(c.advertise)
		}
		got, err := advertised(o)
		if c.want != "" && (err != nil || got != address(c.want)) {
			t.Errorf("%s: %s, %v; want %s", c.name, got, err, c.want)
		}
		if c.reason != "" && (err == nil || !strings.Contains(err.Error(), c.reason)) {
			t.Errorf("%s: %v, want a reason with %s", c.name, err, c.reason)
		}
	}
}

// TestStopAtOnce: a server that is stopped while it starts ends as one that is stopped later, and its address is free.
func TestStopAtOnce(t *testing.T) {
	t.Parallel()
	for range 3 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		o := shared.options(listener)
		s, err := New(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began := time.Now()
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > startGrace {
			t.Errorf("took %s", took)
		}
		again, err := net.Listen("tcp", listener.Addr().String())
		if err != nil {
			t.Fatalf("the address is still taken: %v", err)
		}
		_ = again.Close()
	}
}
