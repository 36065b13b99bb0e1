package app

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/endpointd/endpointd/internal/controller/workload"
	"github.com/endpointd/endpointd/internal/sandbox"
	"github.com/endpointd/endpointd/internal/sandbox/publish"
)

// nodePorts publishes the node ports of Services on the machine's loopback: it leads to the node ports of the nodes that are ready, whose
// data planes choose endpoints.
type nodePorts struct {
	client kubernetes.Interface
	open   func(ctx context.Context, network string, port uint16) ([]*os.File, error)
	report func(sandbox.Event)
	log    *slog.Logger
}

// run runs until ctx ends.
func (n *nodePorts) run(ctx context.Context) error {
	if err := awaitServer(ctx, n.client); err != nil {
		return err
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: n.client.CoreV1().Events("")})
	recorder := events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "endpointd-up"})

	factory := informers.NewSharedInformerFactoryWithOptions(n.client, 0, informers.WithTransform(workload.StripManagedFields))
	defer factory.Shutdown() // after stop
	services, nodes, endpointSlices := factory.Core().V1().Services(), factory.Core().V1().Nodes(), factory.Discovery().V1().EndpointSlices()
	changed := make(chan struct{}, 1)
	tell := func() {
		select {
		case changed <- struct{}{}:
		default: // one look sees both changes
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: func(any) { tell() }, UpdateFunc: func(any, any) { tell() }, DeleteFunc: func(any) { tell() }}
	for _, informer := range []cache.SharedIndexInformer{services.Informer(), nodes.Informer(), endpointSlices.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	serviceList, nodeList, sliceList := services.Lister(), nodes.Lister(), endpointSlices.Lister()
	factory.StartWithContext(ctx)
	factory.WaitForCacheSync(ctx.Done())

	publisher := publish.New(publish.Options{Open: n.open, Logger: n.log, Failed: func(k publish.Key, err error) {
		n.failed(serviceList, recorder, k, err)
	}})
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { publisher.Run(ctx) })
	for {
		ports, err := wantedPorts(serviceList, nodeList, sliceList)
		if err != nil {
			return err
		}
		publisher.Set(ports)
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// failed says it in the log and to whoever describes the Service.
func (n *nodePorts) failed(services corelisters.ServiceLister, recorder record.EventRecorder, k publish.Key, err error) {
	text := fmt.Sprintf("node port %d/%s is not published on this machine's loopback: %v: stop what uses the port, or choose another nodePort", k.Number, k.Network, err)
	n.report(sandbox.Event{Kind: sandbox.EventWarn, Name: "node ports", Text: text})
	all, listErr := services.List(labels.Everything())
	if listErr != nil {
		return
	}
	for _, s := range all {
		if slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return portKey(p) == k }) {
			recorder.Event(s, corev1.EventTypeWarning, "NodePortNotPublished", text)
		}
	}
}

func portKey(p corev1.ServicePort) publish.Key {
	return publish.Key{Network: strings.ToLower(string(p.Protocol)), Number: uint16(p.NodePort)}
}

func wantedPorts(services corelisters.ServiceLister, nodes corelisters.NodeLister, slicesOf discoverylisters.EndpointSliceLister) ([]publish.Port, error) {
	all, err := services.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	members, err := nodes.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	members = usable(members)
	var ports []publish.Port
	for _, s := range all {
		if s.Spec.Type != corev1.ServiceTypeNodePort && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
			continue
		}
		if s.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
			ports = append(ports, published(s, members)...)
			continue
		}
		own, err := slicesOf.EndpointSlices(s.Namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: s.Name}))
		if err != nil {
			return nil, err
		}
		ports = append(ports, published(s, withEndpoints(members, own))...)
	}
	slices.SortFunc(ports, func(a, b publish.Port) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Network, b.Network))
	})
	return ports, nil
}

// usable are the nodes that are ready; if none is, all: what a node leads it leads on without its agent. In order.
func usable(nodes []*corev1.Node) []*corev1.Node {
	nodes = slices.SortedFunc(slices.Values(nodes), func(a, b *corev1.Node) int { return cmp.Compare(a.Name, b.Name) })
	ready := slices.DeleteFunc(slices.Clone(nodes), func(n *corev1.Node) bool {
		return !slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
	})
	if len(ready) == 0 {
		return nodes
	}
	return ready
}

// withEndpoints are the nodes with endpoints that serve: under externalTrafficPolicy Local the others drop what comes. A load balancer would ask each
// node's healthCheckNodePort.
func withEndpoints(nodes []*corev1.Node, own []*discoveryv1.EndpointSlice) []*corev1.Node {
	serving := map[string]bool{}
	for _, slice := range own {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if e.NodeName != nil && (e.Conditions.Serving == nil || *e.Conditions.Serving) {
				serving[*e.NodeName] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(nodes), func(n *corev1.Node) bool { return !serving[n.Name] })
}

// published are the node ports of one Service, at the nodes' addresses of its first family.
func published(s *corev1.Service, nodes []*corev1.Node) []publish.Port {
	v6 := len(s.Spec.IPFamilies) > 0 && s.Spec.IPFamilies[0] == corev1.IPv6Protocol
	var ports []publish.Port
	for _, p := range s.Spec.Ports {
		if p.NodePort == 0 || p.Protocol != corev1.ProtocolTCP && p.Protocol != corev1.ProtocolUDP {
			continue
		}
		// Each node keeps its own clients at one endpoint, so those with affinity must come to one node.
		port := publish.Port{Key: portKey(p), InOrder: s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP}
		for _, n := range nodes {
			for _, addr := range peer(n).Addrs {
				if addr.Is6() == v6 {
					port.Endpoints = append(port.Endpoints, netip.AddrPortFrom(addr, port.Number))
					break
				}
			}
		}
		ports = append(ports, port)
	}
	return ports
}
