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

// nodePorts publishes the node ports of Services on the machine's loopback.
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
	services, endpointSlices := factory.Core().V1().Services(), factory.Discovery().V1().EndpointSlices()
	changed := make(chan struct{}, 1)
	tell := func() {
		select {
		case changed <- struct{}{}:
		default: // one look sees both changes
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: func(any) { tell() }, UpdateFunc: func(any, any) { tell() }, DeleteFunc: func(any) { tell() }}
	for _, informer := range []cache.SharedIndexInformer{services.Informer(), endpointSlices.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	serviceList, sliceList := services.Lister(), endpointSlices.Lister()
	factory.StartWithContext(ctx)
	factory.WaitForCacheSync(ctx.Done())

	publisher := publish.New(publish.Options{Open: n.open, Logger: n.log, Failed: func(k publish.Key, err error) {
		n.failed(serviceList, recorder, k, err)
	}})
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { publisher.Run(ctx) })
	for {
		ports, err := wantedPorts(serviceList, sliceList)
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

func wantedPorts(services corelisters.ServiceLister, slicesOf discoverylisters.EndpointSliceLister) ([]publish.Port, error) {
	all, err := services.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	var ports []publish.Port
	for _, s := range all {
		if s.Spec.Type != corev1.ServiceTypeNodePort && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
			continue
		}
		own, err := slicesOf.EndpointSlices(s.Namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: s.Name}))
		if err != nil {
			return nil, err
		}
		ports = append(ports, published(s, own)...)
	}
	slices.SortFunc(ports, func(a, b publish.Port) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Network, b.Network))
	})
	return ports, nil
}

// published are the node ports of one Service, with their ready endpoints, or the serving ones that terminate when none is
// ready (KEP-1669).
func published(s *corev1.Service, own []*discoveryv1.EndpointSlice) []publish.Port {
	var ports []publish.Port
	for _, p := range s.Spec.Ports {
		if p.NodePort == 0 || p.Protocol != corev1.ProtocolTCP && p.Protocol != corev1.ProtocolUDP {
			continue
		}
		var ready, terminating []netip.AddrPort
		for _, slice := range own {
			number := slicePort(slice, p)
			for _, e := range slice.Endpoints {
				addr, err := netip.ParseAddr(e.Addresses[0])
				if err != nil || number == 0 {
					continue // names, or another port
				}
				at := netip.AddrPortFrom(addr, number)
				switch c := e.Conditions; {
				case c.Ready == nil || *c.Ready:
					ready = append(ready, at)
				case c.Terminating != nil && *c.Terminating && (c.Serving == nil || *c.Serving):
					terminating = append(terminating, at)
				}
			}
		}
		if len(ready) == 0 {
			ready = terminating
		}
		slices.SortFunc(ready, netip.AddrPort.Compare)
		ports = append(ports, publish.Port{Key: portKey(p), Endpoints: slices.Compact(ready)})
	}
	return ports
}

// slicePort is the number that a slice gives to a Service's port, zero if it has none.
func slicePort(slice *discoveryv1.EndpointSlice, want corev1.ServicePort) uint16 {
	for _, p := range slice.Ports {
		if p.Port == nil || p.Name != nil && *p.Name != want.Name || p.Name == nil && want.Name != "" || p.Protocol != nil && *p.Protocol != want.Protocol {
			continue
		}
		return uint16(*p.Port)
	}
	return 0
}
