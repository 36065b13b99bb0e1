package conntrack

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/endpointd/endpointd/internal/model"
)

// desired is what of a [model.Snapshot] flows are compared with.
type desired interface {
	Owner(key model.FrontendKey) *model.Service
	Service(key model.ServiceKey) *model.Service
}

// A judge says which flows lead where they should not.
type judge struct {
	// now is in force; next, which may be nil, is about to be, or is already.
	now, next desired
	network   *model.Network
	// owned is frontend → its owner in now, but for TCP: the same as now.Owner, which allocates, and this is asked for each flow of the table.
	owned map[model.FrontendKey]*model.Service
	// graves is frontend that is gone → the endpoints it had.
	graves map[model.FrontendKey]grave
	// others is address → how many Services have it that another proxy forwards.
	others map[netip.Addr]int
}

// lost says whether the kernel should forget the flow.
func (j *judge) lost(f *flow) bool {
	if f.protocol == model.TCP && f.answered() {
		return false // an established connection finishes
	}
	key := model.FrontendKey{Addr: f.dst.Addr(), Protocol: f.protocol, Port: f.dst.Port()}
	return j.lostBy(j.owner(key), key, f) && (j.next == nil || j.lostBy(j.next.Owner(key), key, f))
}

func (j *judge) owner(key model.FrontendKey) *model.Service {
	if key.Protocol == model.TCP {
		return j.now.Owner(key)
	}
	return j.owned[key]
}

func (j *judge) lostBy(owner *model.Service, key model.FrontendKey, f *flow) bool {
	if owner != nil {
		return !holds(owner, key, f)
	}
	if j.others[key.Addr] > 0 {
		return false
	}
	if g, ok := j.graves[key]; ok && slices.Contains(g.endpoints, f.endpoint) {
		return true
	}
	return f.endpoint != f.dst && j.orphaned(key.Addr)
}

// orphaned says whether an address that no frontend has is nevertheless only ours to translate.
func (j *judge) orphaned(addr netip.Addr) bool {
	return !slices.Contains(j.network.NodePortAddrs, addr) && slices.ContainsFunc(j.network.ServiceCIDRs, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// holds says whether a flow to the owner's frontend leads to where it may.
func holds(owner *model.Service, key model.FrontendKey, f *flow) bool {
	port, frontend := find(owner, key)
	if frontend == nil {
		return true // the Snapshot contradicts itself; nothing is done on such ground
	}
	connected := f.protocol == model.SCTP && f.answered()
	if !connected && !admits(frontend, f.src.Addr()) {
		return false
	}
	if inPool(frontend.Internal, f.endpoint) || inPool(frontend.External, f.endpoint) {
		return true
	}
	e := endpoint(owner, port, f.endpoint)
	return e != nil && (connected || serves(e))
}

func admits(f *model.Frontend, source netip.Addr) bool {
	return len(f.SourceRanges) == 0 || slices.ContainsFunc(f.SourceRanges, func(p netip.Prefix) bool { return p.Contains(source) })
}

// find returns what a Service, which may be nil, has for the key.
func find(s *model.Service, key model.FrontendKey) (*model.Port, *model.Frontend) {
	if s == nil {
		return nil, nil
	}
	for _, p := range s.Ports {
		if p.Protocol != key.Protocol {
			continue
		}
		if i, ok := slices.BinarySearchFunc(p.Frontends, key, compareFrontend); ok {
			return p, &p.Frontends[i]
		}
	}
	return nil, nil
}

func compareFrontend(f model.Frontend, key model.FrontendKey) int { return f.Compare(key) }

func inPool(p *model.Pool, addr netip.AddrPort) bool {
	if p == nil {
		return false
	}
	_, ok := slices.BinarySearchFunc(p.Endpoints, addr, func(e *model.Endpoint, a netip.AddrPort) int { return e.AddrPort.Compare(a) })
	return ok
}

// endpoint of a Service's port, whatever its condition; nil if there is none.
func endpoint(s *model.Service, p *model.Port, addr netip.AddrPort) *model.Endpoint {
	i, ok := slices.BinarySearchFunc(s.Endpoints, addr, func(e *model.Endpoint, a netip.AddrPort) int {
		return cmp.Or(cmp.Compare(e.PortName, p.Name), cmp.Compare(e.Protocol, p.Protocol), e.AddrPort.Compare(a))
	})
	if !ok {
		return nil
	}
	return s.Endpoints[i]
}

// serves says whether an endpoint answers what was led to it: one that drains does, and so does one in another zone.
func serves(e *model.Endpoint) bool {
	return (e.Ready || e.Serving) && e.Reason != model.LocalDead && e.Reason != model.LocalNotReady
}
