package model_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/endpointd/endpointd/internal/model"
)

// check is what holds of every Snapshot, whatever it was built from.
func check(t testing.TB, s *model.Snapshot) {
	t.Helper()
	owners := map[model.FrontendKey]*model.Service{}
	n := 0
	for service := range s.Services() {
		n++
		if s.Service(service.Key) != service {
			t.Errorf("%s is not found by its key", service.Key)
		}
		c := checking{TB: t, snapshot: s, service: service, pooled: map[*model.Endpoint]bool{}}
		c.endpoints()
		for _, port := range service.Ports {
			for i := range port.Frontends {
				f := &port.Frontends[i]
				if other := owners[f.FrontendKey]; other != nil {
					t.Errorf("%s: %s and %s have it", f.FrontendKey, other.Key, service.Key)
				}
				owners[f.FrontendKey] = service
				if owner := s.Owner(f.FrontendKey); owner != service {
					t.Errorf("%s of %s has the owner %v", f.FrontendKey, service.Key, owner)
				}
				c.frontend(port, f)
			}
		}
		c.reasons()
		for i, p := range service.Problems {
			if p.Reason == model.None || p.Message == "" || i > 0 && p == service.Problems[i-1] && p.Reason == model.Duplicate && p.Kind == "EndpointSlice" {
				t.Errorf("%s: problem %v", service.Key, p)
			}
		}
	}
	if n != s.Len() {
		t.Errorf("%d Services, and Len is %d", n, s.Len())
	}
}

type checking struct {
	testing.TB
	snapshot *model.Snapshot
	service  *model.Service
	pooled   map[*model.Endpoint]bool // endpoints that some Pool leads to
}

// fatal reasons are those that no condition of an endpoint overcomes.
func fatal(r model.Reason) bool {
	return !slices.Contains([]model.Reason{model.None, model.NotReady, model.Terminating, model.OtherNode, model.OtherZone,
		model.LocalDead, model.LocalNotReady, model.LocalDraining, model.FrontendTaken}, r)
}

func (c *checking) endpoints() {
	var last *model.Endpoint
	for _, e := range c.service.Endpoints {
		if !e.Addr().IsValid() || e.Addr().Is4In6() || e.Addr().Zone() != "" {
			c.Errorf("%s: address %v", c.service.Key, e.AddrPort)
		}
		if last != nil {
			names, same := last.PortName < e.PortName, last.PortName == e.PortName
			if !names && !(same && (last.Protocol < e.Protocol || last.Protocol == e.Protocol && last.Compare(e.AddrPort) < 0)) {
				c.Errorf("%s: %v comes before %v", c.service.Key, last.AddrPort, e.AddrPort)
			}
		}
		last = e
	}
}

func (c *checking) frontend(port *model.Port, f *model.Frontend) {
	if f.Internal == nil || f.External == nil {
		c.Fatalf("%s leads nowhere", f.FrontendKey)
	}
	if f.Protocol != port.Protocol || f.Kind != model.FrontendNodePort && f.Port != port.Number || c.service.Kind != model.ClusterIP || c.service.OtherProxy != "" {
		c.Errorf("%s: a frontend %v of port %v", c.service.Key, f.FrontendKey, port)
	}
	if f.Kind == model.FrontendClusterIP && f.Internal != f.External || f.Kind != model.FrontendClusterIP && (f.Internal.Local || f.KeepSource != f.External.Local) {
		c.Errorf("%s: %s leads to %v and %v", c.service.Key, f.FrontendKey, f.Internal.PoolKey, f.External.PoolKey)
	}
	for _, r := range f.SourceRanges {
		if f.Kind != model.FrontendLoadBalancerIP || r.Addr().Is4() != f.Addr.Is4() || r != r.Masked() {
			c.Errorf("%s: %s takes from %v", c.service.Key, f.FrontendKey, r)
		}
	}
	for _, pool := range []*model.Pool{f.Internal, f.External} {
		want := model.PoolKey{Service: c.service.Key, Port: port.Name, Protocol: port.Protocol, IPv6: f.Addr.Is6(), Local: pool.Local}
		if pool.PoolKey != want || pool.Affinity < 0 || pool.Affinity%1e9 != 0 {
			c.Errorf("%s: %s leads to %v with affinity %v", c.service.Key, f.FrontendKey, pool.PoolKey, pool.Affinity)
		}
		c.pool(pool)
	}
}

// pool decides by itself which endpoints should be in it, in the slow and simple way.
func (c *checking) pool(p *model.Pool) {
	var all []*model.Endpoint
	for _, e := range c.service.Endpoints {
		if e.PortName == p.Port && e.Protocol == p.Protocol && e.Addr().Is6() == p.IPv6 && !fatal(e.Reason) {
			all = append(all, e)
		}
	}
	ready := filter(all, func(e *model.Endpoint) bool { return e.Ready })
	stopping := filter(all, func(e *model.Endpoint) bool { return e.Serving && e.Terminating && !e.Ready })
	resort := filter(all, func(e *model.Endpoint) bool { return model.LastResort(e) })
	local := func(e *model.Endpoint) bool { return e.Local }
	var want []*model.Endpoint
	verdict := model.Reject
	if p.Local {
		want = filter(ready, local)
		if len(want) == 0 {
			want = filter(stopping, local)
		}
		if len(want) == 0 {
			want = filter(resort, local)
		}
		if len(ready)+len(stopping) > 0 {
			verdict = model.Drop
		}
	} else {
		want = c.hinted(ready)
		if len(ready) == 0 {
			want = stopping
		}
		if len(ready)+len(stopping) == 0 {
			want = resort
		}
	}
	if !slices.Equal(p.Endpoints, want) || len(want) == 0 && p.Empty != verdict {
		c.Errorf("%s: pool %v leads to %v (%v), want %v (%v)", c.service.Key, p.PoolKey, addrs(p.Endpoints), p.Empty, addrs(want), verdict)
	}
	for i, e := range p.Endpoints {
		c.pooled[e] = true
		if e.Port() == 0 || i > 0 && p.Endpoints[i-1].Compare(e.AddrPort) >= 0 {
			c.Errorf("%s: pool %v has %v after another", c.service.Key, p.PoolKey, e.AddrPort)
		}
	}
}

func (c *checking) hinted(ready []*model.Endpoint) []*model.Endpoint {
	for _, by := range []struct {
		mine  string
		hints func(*model.Endpoint) []string
	}{
		{c.snapshot.Network.Node, func(e *model.Endpoint) []string { return e.ForNodes }},
		{c.snapshot.Network.Zone, func(e *model.Endpoint) []string { return e.ForZones }},
	} {
		without := filter(ready, func(e *model.Endpoint) bool { return len(by.hints(e)) == 0 })
		mine := filter(ready, func(e *model.Endpoint) bool { return slices.Contains(by.hints(e), by.mine) })
		if len(without) == 0 && len(mine) > 0 {
			return mine
		}
	}
	return ready
}

// reasons holds that what has none is used, and what is used by clients in the cluster has none.
func (c *checking) reasons() {
	inner := map[*model.Endpoint]bool{}
	for _, port := range c.service.Ports {
		for _, f := range port.Frontends {
			if f.Kind == model.FrontendClusterIP {
				for _, e := range f.Internal.Endpoints {
					inner[e] = true
				}
			}
		}
	}
	for _, e := range c.service.Endpoints {
		switch {
		case c.service.Kind != model.ClusterIP:
			if e.Reason == model.None && !e.Ready || e.Ready && !fatal(e.Reason) && e.Reason != model.None {
				c.Errorf("%s: %v is for DNS with reason %v", c.service.Key, e.AddrPort, e.Reason)
			}
		case e.Reason == model.None && !c.pooled[e], e.Reason != model.None && inner[e]:
			c.Errorf("%s: %v has the reason %q, and is it in a pool? %v", c.service.Key, e.AddrPort, e.Reason, c.pooled[e])
		}
	}
}

func filter(list []*model.Endpoint, keep func(*model.Endpoint) bool) []*model.Endpoint {
	var kept []*model.Endpoint
	for _, e := range list {
		if keep(e) {
			kept = append(kept, e)
		}
	}
	return kept
}

func addrs(list []*model.Endpoint) []netip.AddrPort {
	var all []netip.AddrPort
	for _, e := range list {
		all = append(all, e.AddrPort)
	}
	return all
}
