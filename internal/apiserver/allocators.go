package apiserver

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/registry/core/rangeallocation"
	"k8s.io/kubernetes/pkg/registry/core/service/allocator"
	serviceallocator "k8s.io/kubernetes/pkg/registry/core/service/allocator/storage"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
	ipcontroller "k8s.io/kubernetes/pkg/registry/core/service/ipallocator/controller"
	"k8s.io/kubernetes/pkg/registry/core/service/portallocator"
	portcontroller "k8s.io/kubernetes/pkg/registry/core/service/portallocator/controller"
)

// repairInterval is the time between checks of all allocations, as upstream.
const repairInterval = 3 * time.Minute

// allocators hand out cluster IPs (IPAddress objects, KEP-1880) and node ports (one bitmap in etcd).
type allocators struct {
	primary api.IPFamily
	ips     map[api.IPFamily]ipallocator.Interface // IP family → allocator over all ServiceCIDRs of it
	ports   *portallocator.PortAllocator

	// repairs run until the channel closes and call back after their first success.
	repairs []func(onFirstSuccess func(), stop chan struct{})
}

func newAllocators(sf serverstorage.StorageFactory, client kubernetes.Interface, inf informers.SharedInformerFactory,
	cidrs []netip.Prefix, nodePorts utilnet.PortRange,
) (*allocators, error) {
	a := &allocators{ips: map[api.IPFamily]ipallocator.Interface{}}
	serviceCIDRs, addresses := inf.Networking().V1().ServiceCIDRs(), inf.Networking().V1().IPAddresses()
	for i, cidr := range cidrs {
		ips, err := ipallocator.NewMetaAllocator(client.NetworkingV1(), serviceCIDRs, addresses, cidr.Addr().Is6(), nil)
		if err != nil {
			return nil, fmt.Errorf("cluster IP allocator for %s: %w", cidr, err)
		}
		if i == 0 {
			a.primary = ips.IPFamily()
		}
		a.ips[ips.IPFamily()] = ips
	}

	config, err := sf.NewConfig(api.Resource("services"), &api.Service{})
	if err != nil {
		return nil, err
	}
	var registry rangeallocation.RangeRegistry
	a.ports, err = portallocator.New(nodePorts, func(max int, spec string, offset int) (allocator.Interface, error) {
		etcd, err := serviceallocator.NewEtcd(allocator.NewAllocationMapWithOffset(max, spec, offset), "/ranges/servicenodeports",
			config.ForResource(api.Resource("servicenodeportallocations")))
		registry = etcd
		return etcd, err
	})
	if err != nil {
		return nil, fmt.Errorf("node port allocator for %s: %w", nodePorts.String(), err)
	}

	a.repairs = append(a.repairs,
		ipcontroller.NewRepairIPAddress(repairInterval, client, inf.Core().V1().Services(), serviceCIDRs, addresses).RunUntil,
		portcontroller.NewRepair(repairInterval, client.CoreV1(), client.EventsV1(), nodePorts, registry).RunUntil)
	return a, nil
}

// start runs the repairs with spawn, until ctx ends, and returns once each has succeeded, for before that no node port
// can be allocated. Upstream ends the process when the first check takes more than a minute; here it goes on, not
// ready, and the log says why.
func (a *allocators) start(ctx context.Context, spawn func(func())) {
	first := make(chan struct{}, len(a.repairs))
	stop := make(chan struct{})
	spawn(func() {
		<-ctx.Done()
		close(stop)
	})
	for _, repair := range a.repairs {
		spawn(func() { repair(func() { first <- struct{}{} }, stop) })
	}
	for range a.repairs {
		select {
		case <-first:
		case <-ctx.Done():
			return
		}
	}
}
