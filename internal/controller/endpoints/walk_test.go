package endpoints

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	upstream "k8s.io/endpointslice"
	upstreamutil "k8s.io/endpointslice/util"
	"k8s.io/utils/ptr"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
)

// Random changes, with edits by others and failing requests in between, end in
// the same endpoints that the reconciler of Kubernetes makes from scratch.
func TestRandomWalk(t *testing.T) {
	for i := range 12 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			t.Logf("seed %d", seed)
			walk(t, seed)
		})
	}
}

func FuzzWalk(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { walk(t, seed) })
}

func walk(t *testing.T, seed uint64) {
	var failing atomic.Bool
	dice := rand.New(rand.NewPCG(seed, 1))
	var mu sync.Mutex // guards dice
	fail := func(clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		return failing.Load() && dice.IntN(5) == 0, nil, apierrors.NewInternalError(errors.New("the test lets this one fail"))
	}
	w := newWorld(t, fail)
	s := &stroll{world: w, Rand: rand.New(rand.NewPCG(seed, 0))}
	for range 15 {
		failing.Store(true)
		for range 1 + s.IntN(8) {
			s.step()
		}
		failing.Store(false)
		w.settle()
		s.compare()
		s.unmodified()
		if t.Failed() {
			return
		}
	}
}

// stroll makes random changes. Its names overlap, so that most steps change
// something that exists.
type stroll struct {
	*world
	*rand.Rand
}

func (s *stroll) step() {
	ctx := context.Background()
	now := metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}
	pod, svc, node := fmt.Sprintf("p%d", s.IntN(12)), fmt.Sprintf("s%d", s.IntN(3)), fmt.Sprintf("n%d", s.IntN(3))
	var err error
	switch k := s.IntN(20); {
	case k < 10:
		s.put(s.pod(pod))
	case k < 12:
		err = s.user.CoreV1().Pods("default").Delete(ctx, pod, now)
	case k < 15:
		s.put(s.service(svc))
	case k < 16:
		err = s.user.CoreV1().Services("default").Delete(ctx, svc, now)
	case k < 17:
		s.put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node, Labels: map[string]string{corev1.LabelTopologyZone: fmt.Sprint("z", s.IntN(2))}}})
	case k < 18:
		err = s.user.CoreV1().Nodes().Delete(ctx, node, now)
	case k < 19:
		s.vandalise(ctx)
	default:
		err = s.user.CoreV1().Endpoints("default").Delete(ctx, svc, now)
	}
	if err != nil && !apierrors.IsNotFound(err) {
		s.t.Fatal(err)
	}
}

func (s *stroll) pod(name string) *corev1.Pod {
	f := []string{name, fmt.Sprintf("10.0.0.%d,fd00::%d", 1+s.IntN(30), 1+s.IntN(30)), []string{"ready", "ready", "unready", "failed"}[s.IntN(4)], fmt.Sprintf("node=n%d", s.IntN(3)),
		fmt.Sprintf("app=a%d", s.IntN(2)), fmt.Sprintf("tier=t%d", s.IntN(2)), fmt.Sprintf("port=http:%d", 80+s.IntN(2))}
	if s.IntN(3) == 0 {
		f = append(f, "hostname=h"+name, fmt.Sprintf("subdomain=s%d", s.IntN(3)))
	}
	if s.IntN(8) == 0 {
		f[1] = "-"
	}
	return parsePod(s.t, f)
}

func (s *stroll) service(name string) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	svc.Spec.Selector = []map[string]string{{"app": "a0"}, {"app": "a1"}, {"tier": "t0"}, {"app": "a0", "tier": "t1"}, nil}[s.IntN(5)]
	svc.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}}
	if s.IntN(2) == 0 {
		svc.Spec.Ports[0].TargetPort = intstr.FromString("http")
	}
	if s.IntN(3) == 0 {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "m", Port: 9090})
	}
	svc.Spec.PublishNotReadyAddresses = s.IntN(4) == 0
	svc.Spec.IPFamilies = [][]corev1.IPFamily{{corev1.IPv4Protocol}, {corev1.IPv6Protocol}, {corev1.IPv4Protocol, corev1.IPv6Protocol}}[s.IntN(3)]
	switch s.IntN(6) {
	case 0:
		svc.Spec.ClusterIP = corev1.ClusterIPNone
	case 1:
		svc.Spec.Type, svc.Spec.ExternalName, svc.Spec.IPFamilies = corev1.ServiceTypeExternalName, "example.com", nil
	case 2:
		svc.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferSameNode)
	case 3:
		svc.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferClose)
	}
	if s.IntN(2) == 0 {
		svc.Labels = map[string]string{"team": fmt.Sprint(s.IntN(2))}
	}
	return svc
}

// vandalise edits or deletes one of the controller's slices.
func (s *stroll) vandalise(ctx context.Context) {
	list, err := s.user.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{})
	s.must(err)
	if len(list.Items) == 0 {
		return
	}
	slice := &list.Items[s.IntN(len(list.Items))]
	client := s.user.DiscoveryV1().EndpointSlices("default")
	switch s.IntN(4) {
	case 0:
		err = client.Delete(ctx, slice.Name, metav1.DeleteOptions{})
	case 1:
		slice.Endpoints = append(slice.Endpoints, discovery.Endpoint{Addresses: []string{"192.0.2.1"}})
		_, err = client.Update(ctx, slice, metav1.UpdateOptions{})
	case 2:
		slice.Endpoints = slice.Endpoints[:s.IntN(len(slice.Endpoints)+1)]
		_, err = client.Update(ctx, slice, metav1.UpdateOptions{})
	case 3:
		slice.Ports, slice.Labels["x"] = nil, "y"
		_, err = client.Update(ctx, slice, metav1.UpdateOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		s.t.Fatal(err)
	}
}

// compare holds what is there against what upstream makes from scratch.
func (s *stroll) compare() {
	s.t.Helper()
	ctx := context.Background()
	svcs, _ := s.user.CoreV1().Services("default").List(ctx, metav1.ListOptions{})
	for i := range svcs.Items {
		svc := &svcs.Items[i]
		selector := labels.Set{discovery.LabelServiceName: svc.Name, discovery.LabelManagedBy: sliceManager}.String()
		got, err := s.user.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{LabelSelector: selector})
		s.must(err)
		ep, err := s.user.CoreV1().Endpoints("default").Get(ctx, svc.Name, metav1.GetOptions{})
		if err != nil {
			ep = nil
		}
		if ruleOf(svc) != serve {
			if len(got.Items) > 0 && (ruleOf(svc) == withdraw || ep == nil || len(ep.Subsets) == 0) {
				s.t.Errorf("%s, which is to have none, has slices: %s", svc.Name, flat(got.Items))
			}
			if ep != nil && ep.Labels[managedByLabel] == managedByValue {
				s.t.Errorf("Endpoints of %s still have our label", svc.Name)
			}
			continue
		}
		pods, _ := s.user.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: labels.Set(svc.Spec.Selector).String()})
		if got, want := flat(got.Items), flat(s.upstreamSlices(svc, pods.Items)); got != want {
			s.t.Errorf("slices of %s:\n%s\nupstream makes:\n%s", svc.Name, got, want)
		}
		if ep == nil {
			s.t.Errorf("%s has no Endpoints", svc.Name)
		} else if got, want := flatEndpoints(ep), naiveEndpoints(svc, pods.Items); got != want {
			s.t.Errorf("Endpoints of %s:\n%s\nwant:\n%s", svc.Name, got, want)
		}
	}
	all, _ := s.user.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{LabelSelector: discovery.LabelManagedBy + "=" + sliceManager})
	for _, slice := range all.Items {
		if !slices.ContainsFunc(svcs.Items, func(svc corev1.Service) bool { return svc.Name == slice.Labels[discovery.LabelServiceName] }) {
			s.t.Errorf("slice %s of a Service that does not exist", slice.Name)
		}
	}
}

// unmodified holds every object in the informers' stores against the API: they
// are the same unless the controller has changed one.
func (s *stroll) unmodified() {
	s.t.Helper()
	stored := map[types.UID]any{}
	for _, o := range s.objects() {
		stored[o.GetUID()] = o
	}
	core := s.inf.Core().V1()
	for _, inf := range []cache.SharedIndexInformer{core.Services().Informer(), core.Pods().Informer(), core.Nodes().Informer(),
		core.Endpoints().Informer(), s.inf.Discovery().V1().EndpointSlices().Informer()} {
		for _, o := range inf.GetStore().List() {
			if want := stored[o.(metav1.Object).GetUID()]; want != nil && !reflect.DeepEqual(o, want) {
				s.t.Errorf("an informer's object was modified:\n%v\nin the API:\n%v", o, want)
			}
		}
	}
}

// What happens while the watches are broken is made up for when the informers
// have listed again.
func TestBrokenWatches(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newWorld(t)
	s := &stroll{world: w, Rand: rand.New(rand.NewPCG(seed, 0))}
	for range 50 {
		s.step()
	}
	s.settle()
	s.api.Compact()
	for range 50 {
		s.step()
	}
	s.settle()
	s.compare()
}

// A controller that starts where another one left writes nothing.
func TestTakeOverWritesNothing(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newWorld(t)
	s := &stroll{world: w, Rand: rand.New(rand.NewPCG(seed, 0))}
	for range 100 {
		s.step()
	}
	s.settle()
	before := controllertest.Writes(w.ours)
	w.restart()
	s.settle()
	if after := controllertest.Writes(w.ours); !maps.Equal(before, after) {
		t.Errorf("writes before %v, after %v", before, after)
	}
	s.compare()
}

// A new leader's controller joins informers that have been running: its handlers
// are called while New is not done yet.
func TestNewOnRunningInformers(t *testing.T) {
	t.Parallel()
	client := controllertest.NewAPI(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"a": "b"}}},
		parsePod(t, []string{"p1", "10.0.0.1", "ready", "a=b"}),
	).Client()
	factory := informers.NewSharedInformerFactory(client, 0)
	core := factory.Core().V1()
	for _, informer := range []cache.SharedIndexInformer{core.Nodes().Informer(), core.Pods().Informer(), core.Services().Informer()} {
		_ = informer.HasSynced() // asking for it is what makes the factory start it
	}
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for range 50 {
		c := New(Options{Client: client, Informers: factory})
		factory.Start(ctx.Done()) // what New asked for
		stopped, stop := context.WithCancel(ctx)
		stop()
		if err := c.Run(stopped); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}
	cancel()
	factory.Shutdown()
}

// upstreamSlices lets the reconciler of kube-controller-manager make the slices
// in an API of its own.
func (s *stroll) upstreamSlices(svc *corev1.Service, pods []corev1.Pod) []discovery.EndpointSlice {
	ctx := context.Background()
	scratch := controllertest.NewAPI()
	client := scratch.Client()
	nodes := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	list, _ := s.user.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	for i := range list.Items {
		s.must(nodes.Add(&list.Items[i]))
	}
	lister := informers.NewSharedInformerFactory(client, 0).Core().V1().Nodes()
	for _, n := range nodes.List() {
		s.must(lister.Informer().GetStore().Add(n))
	}
	r := upstream.NewReconciler(client, lister.Lister(), 100, upstreamutil.NewEndpointSliceTracker(), nil, record.NewFakeRecorder(100), sliceManager,
		upstream.WithPreferSameTrafficDistributionEnabled(true))
	var ptrs []*corev1.Pod
	for i := range pods {
		ptrs = append(ptrs, &pods[i])
	}
	// Its error only says that a pod's node does not exist.
	_ = r.Reconcile(logr.Discard(), svc, ptrs, nil, time.Time{})
	made, err := client.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{})
	s.must(err)
	return made.Items
}

// flat is slices as sorted lines, one an endpoint, without what may differ:
// names and how endpoints of one group lie in slices.
func flat(in []discovery.EndpointSlice) string {
	lines := map[string]bool{}
	for i := range in {
		s := in[i].DeepCopy()
		s.Annotations = nil
		slices.SortFunc(s.Ports, func(a, b discovery.EndpointPort) int { return cmp.Compare(*a.Name, *b.Name) })
		head, rest, _ := strings.Cut(renderSlice(s), "\n")
		if rest == "" {
			// A group without endpoints counts only if there is no other in its family.
			head, _, _ = strings.Cut(head, " :")
			lines[strings.TrimSpace(head)+" (empty)"] = true
			continue
		}
		for line := range strings.Lines(rest) {
			lines[head+line] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(lines)), "\n")
}

func flatEndpoints(ep *corev1.Endpoints) string {
	lines := map[string]bool{}
	for _, sub := range ep.Subsets {
		ports := sub.Ports
		if len(ports) == 0 {
			ports = []corev1.EndpointPort{{}}
		}
		for _, p := range ports {
			for _, a := range sub.Addresses {
				lines[fmt.Sprint(p.Name, p.Port, " ", a.IP, " ready ", a.TargetRef.Name, a.Hostname)] = true
			}
			for _, a := range sub.NotReadyAddresses {
				lines[fmt.Sprint(p.Name, p.Port, " ", a.IP, " unready ", a.TargetRef.Name, a.Hostname)] = true
			}
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(lines)), "\n")
}

// naiveEndpoints is what flatEndpoints should give, by the rules of spec §3.2.
func naiveEndpoints(svc *corev1.Service, pods []corev1.Pod) string {
	var lines []string
	for _, pod := range pods {
		ready := pod.Status.Conditions[0].Status == corev1.ConditionTrue
		if pod.Status.Phase == corev1.PodFailed || pod.DeletionTimestamp != nil && !svc.Spec.PublishNotReadyAddresses {
			continue
		}
		for _, ip := range pod.Status.PodIPs {
			if strings.Contains(ip.IP, ":") != (svc.Spec.IPFamilies[0] == corev1.IPv6Protocol) {
				continue
			}
			host := ""
			if pod.Spec.Subdomain == svc.Name {
				host = pod.Spec.Hostname
			}
			state := " unready "
			if ready || svc.Spec.PublishNotReadyAddresses {
				state = " ready "
			}
			for _, p := range svc.Spec.Ports {
				number := p.TargetPort.IntVal
				if p.TargetPort.StrVal != "" {
					number = pod.Spec.Containers[0].Ports[0].ContainerPort
				}
				lines = append(lines, fmt.Sprint(p.Name, number, " ", ip.IP, state, pod.Name, host))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "\n")
}
