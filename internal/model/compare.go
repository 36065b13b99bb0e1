package model

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

func compareServiceKeys(a, b ServiceKey) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// Compare orders by address, protocol and port.
func (k FrontendKey) Compare(other FrontendKey) int {
	return cmp.Or(k.Addr.Compare(other.Addr), cmp.Compare(k.Protocol, other.Protocol), cmp.Compare(k.Port, other.Port))
}

func addrPort(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }

// compareEndpoints is the order of Service.Endpoints.
func compareEndpoints(a, b *Endpoint) int {
	if c := strings.Compare(a.PortName, b.PortName); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Protocol, b.Protocol); c != 0 {
		return c
	}
	return a.Compare(b.AddrPort)
}

func compareProblems(a, b Problem) int {
	return cmp.Or(strings.Compare(a.Kind, b.Kind), a.Object.Compare(b.Object), cmp.Compare(a.Reason, b.Reason), strings.Compare(a.Message, b.Message))
}

// equalServices says whether two Services say the same. Sharing makes it fast: what is the same pointer is not looked into.
func equalServices(a, b *Service) bool {
	switch {
	case a == b:
		return true
	case a == nil || b == nil:
		return false
	}
	return a.Key == b.Key && a.UID == b.UID && a.Kind == b.Kind && a.ExternalName == b.ExternalName &&
		a.PublishNotReady == b.PublishNotReady && a.OtherProxy == b.OtherProxy && a.HealthCheckNodePort == b.HealthCheckNodePort &&
		a.LocalEndpoints == b.LocalEndpoints && a.TTL == b.TTL && slices.Equal(a.ClusterIPs, b.ClusterIPs) &&
		slices.Equal(a.Problems, b.Problems) && slices.EqualFunc(a.Ports, b.Ports, equalPorts) &&
		slices.EqualFunc(a.Endpoints, b.Endpoints, equalEndpoints)
}

func equalPorts(a, b *Port) bool {
	return a == b || a.Name == b.Name && a.Protocol == b.Protocol && a.Number == b.Number && a.AppProtocol == b.AppProtocol &&
		slices.EqualFunc(a.Frontends, b.Frontends, func(a, b Frontend) bool {
			return a.FrontendKey == b.FrontendKey && a.Kind == b.Kind && a.KeepSource == b.KeepSource &&
				slices.Equal(a.SourceRanges, b.SourceRanges) && equalPools(a.Internal, b.Internal) && equalPools(a.External, b.External)
		})
}

func equalPools(a, b *Pool) bool {
	return a == b || a.PoolKey == b.PoolKey && a.Empty == b.Empty && a.Affinity == b.Affinity &&
		slices.EqualFunc(a.Endpoints, b.Endpoints, equalEndpoints)
}

// equalEndpoints leaves lastResort out: it is a means to the end of choosing, and nobody who has a Snapshot sees it.
func equalEndpoints(a, b *Endpoint) bool {
	return a == b || a.AddrPort == b.AddrPort && a.PortName == b.PortName && a.Protocol == b.Protocol && a.Ready == b.Ready &&
		a.Serving == b.Serving && a.Terminating == b.Terminating && a.Local == b.Local && a.Reason == b.Reason &&
		a.Hostname == b.Hostname && equalOrigins(a.Origin, b.Origin)
}

func equalOrigins(a, b *Origin) bool {
	return a == b || a.Node == b.Node && a.Zone == b.Zone && a.Slice == b.Slice && a.Target == b.Target &&
		slices.Equal(a.ForZones, b.ForZones) && slices.Equal(a.ForNodes, b.ForNodes)
}

// equal says whether two nodes know the same.
func (n *Network) equal(other *Network) bool {
	return n.Node == other.Node && n.Zone == other.Zone && slices.Equal(n.NodePortAddrs, other.NodePortAddrs) &&
		slices.Equal(n.PodCIDRs, other.PodCIDRs) && slices.Equal(n.ClusterCIDRs, other.ClusterCIDRs) &&
		slices.Equal(n.NodePodCIDRs, other.NodePodCIDRs) && slices.Equal(n.ServiceCIDRs, other.ServiceCIDRs)
}
