package apiserver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/storage"
	endpointsv1 "k8s.io/kubernetes/pkg/api/v1/endpoints"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/controlplane/controller/kubernetesservice"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"
)

const (
	// leaseTTL and endpointInterval: a server that dies leaves the endpoints after at most their sum, as upstream.
	leaseTTL         = 15 * time.Second
	endpointInterval = 10 * time.Second

	kubernetesServicePort = 443
)

// kubernetesService keeps the Service default/kubernetes and its endpoints: the addresses of all living servers on
// this etcd, each of which holds a lease there.
func (b *builder) kubernetesService() (*kubernetesservice.Controller, error) {
	config, err := b.storageFactory.NewConfig(api.Resource("apiServerIPInfo"), &api.Endpoints{})
	if err != nil {
		return nil, err
	}
	leases, err := reconcilers.NewLeases(config, "/masterleases/", leaseTTL)
	if err != nil {
		return nil, fmt.Errorf("leases of API servers: %w", err)
	}
	adapter := reconcilers.NewEndpointsAdapter(b.client.CoreV1(), b.client.DiscoveryV1())

	var reconciler reconcilers.EndpointReconciler
	address, err := advertised(b.options)
	if err == nil {
		reconciler = &announced{EndpointReconciler: reconcilers.NewLeaseEndpointReconciler(adapter, leases), leases: leases}
	} else {
		b.options.Logger.Info("service default/kubernetes has no endpoint of this server", "component", "apiserver", "reason", err.Error())
		reconciler = &withoutAddress{adapter: adapter, leases: leases}
	}
	_, port, err := b.config.SecureServing.HostPort()
	if err != nil {
		return nil, err
	}
	return kubernetesservice.New(kubernetesservice.Config{
		PublicIP: address.AsSlice(), EndpointReconciler: reconciler, EndpointInterval: endpointInterval,
		ServiceIP: net.IP(b.options.ServiceCIDRs[0].Addr().Next().AsSlice()), ServicePort: kubernetesServicePort, PublicServicePort: port,
	}, b.client, b.informers.Core().V1().Services()), nil
}

// advertised is the address of this server for Endpoints; the error says why there is none and what to do.
func advertised(o Options) (netip.Addr, error) {
	addr := o.Advertise
	if !addr.IsValid() {
		addr = listenAddr(o)
	}
	primary := o.ServiceCIDRs[0]
	if addr.IsUnspecified() {
		unspecified := net.IPv4zero
		if primary.Addr().Is6() {
			unspecified = net.IPv6unspecified
		}
		ip, err := utilnet.ResolveBindAddress(unspecified)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("the host has no default route to take an address from; listen on one address: --listen ADDRESS:PORT (%w)", err)
		}
		addr, _ = netip.AddrFromSlice(ip)
		addr = addr.Unmap()
	}
	switch {
	case !addr.IsValid():
		return netip.Addr{}, errors.New("the listener has no IP address; listen on one: --listen ADDRESS:PORT")
	case addr.IsLoopback():
		return netip.Addr{}, errors.New("it listens on loopback only, which the API forbids in Endpoints; to be reached from elsewhere: --listen ADDRESS:PORT")
	case checkAdvertise(addr) != nil:
		return netip.Addr{}, checkAdvertise(addr)
	case addr.Is4() != primary.Addr().Is4():
		return netip.Addr{}, fmt.Errorf("its address %s is not of the family of the primary service range %s; put a range of that family first", addr, primary)
	}
	return addr, nil
}

// announced is the upstream lease reconciler, started right after a server that did not end cleanly.
type announced struct {
	reconcilers.EndpointReconciler
	leases reconcilers.Leases
	done   atomic.Bool // the first reconciliation
}

// ReconcileEndpoints corrects the port once per start. Upstream never does, so that a server which died and came back
// on another port would be announced with the old one for ever.
func (a *announced) ReconcileEndpoints(service string, ip net.IP, ports []corev1.EndpointPort, reconcilePorts bool) error {
	err := a.EndpointReconciler.ReconcileEndpoints(service, ip, ports, reconcilePorts || !a.done.Load())
	if err == nil {
		a.done.Store(true)
	}
	return err
}

// RemoveEndpoints is called first at the start, for what an earlier run left. When that is all there is, upstream
// refuses, and logs an error at each start after a crash; it will be right again when this server is ready.
func (a *announced) RemoveEndpoints(service string, ip net.IP, ports []corev1.EndpointPort) error {
	if !a.done.Load() {
		if addresses, err := a.leases.ListLeases(); err == nil && slices.Equal(addresses, []string{ip.String()}) {
			return storage.NewKeyNotFoundError(service, 0)
		}
	}
	return a.EndpointReconciler.RemoveEndpoints(service, ip, ports)
}

// withoutAddress is the upstream lease reconciler for a server that has no address to announce: it makes sure that
// Endpoints and EndpointSlice exist, and holds those of the other servers on this etcd, if any.
type withoutAddress struct {
	adapter reconcilers.EndpointsAdapter
	leases  reconcilers.Leases

	mu      sync.Mutex // guards stopped, and Endpoints from two reconciliations at once
	stopped bool
}

func (w *withoutAddress) ValidateIP(net.IP) error { return nil }

func (w *withoutAddress) ReconcileEndpoints(service string, _ net.IP, ports []corev1.EndpointPort, _ bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return nil
	}
	addresses, err := w.leases.ListLeases()
	if err != nil {
		return err
	}
	want := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{
		Name: service, Namespace: metav1.NamespaceDefault, Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"},
	}}
	have, err := w.adapter.Get(metav1.NamespaceDefault, service, metav1.GetOptions{})
	switch {
	case err == nil:
		want = have.DeepCopy()
		if len(have.Subsets) > 0 {
			ports = have.Subsets[0].Ports // of the servers that announce themselves
		}
	case !apierrors.IsNotFound(err):
		return err
	}
	want.Subsets = nil
	if slices.Sort(addresses); len(addresses) > 0 {
		subset := corev1.EndpointSubset{Ports: ports}
		for _, address := range addresses {
			subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: address})
		}
		want.Subsets = endpointsv1.RepackSubsets([]corev1.EndpointSubset{subset})
	}
	switch {
	case err != nil:
		_, err = w.adapter.Create(metav1.NamespaceDefault, want)
	case equality.Semantic.DeepEqual(have.Subsets, want.Subsets):
		err = w.adapter.EnsureEndpointSliceFromEndpoints(metav1.NamespaceDefault, want)
	default:
		_, err = w.adapter.Update(metav1.NamespaceDefault, want)
	}
	return err
}

// RemoveEndpoints has nothing to remove. The caller logs that as an error at the end and its opposite at the start.
func (w *withoutAddress) RemoveEndpoints(service string, _ net.IP, _ []corev1.EndpointPort) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return nil
	}
	return storage.NewKeyNotFoundError(service, 0)
}

func (w *withoutAddress) StopReconciling() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
}

func (w *withoutAddress) Destroy() { w.leases.Destroy() }
