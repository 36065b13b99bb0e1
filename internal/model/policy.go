package model

import (
	"net/netip"
	"slices"
	"time"
)

// A choice is which endpoints of one port and family connections are led to, under each traffic policy.
type choice struct {
	cluster, local []*Endpoint
	elsewhere      bool         // there are endpoints, wherever
	ready          []netip.Addr // of this node
}

// A scan is what the endpoints of one port and family have in common.
type scan struct {
	ready, stopping           bool // some are ready; some still serve while they terminate
	localReady, localStopping bool // the same among this node's
	hints                     hints
}

// stopping says whether an endpoint may be fallen back to where none is ready.
func (e *Endpoint) stopping() bool { return !e.Ready && e.Serving && e.Terminating }

// hints is how far traffic is kept, decided by the hints of all ready endpoints together (KEP-2433, KEP-3015; k8s.io/kubernetes/pkg/proxy
// topologyModeFromHints): each must have one, and one must be for this node or its zone, else they don't count.
type hints uint8

const (
	anywhere hints = iota
	sameZone
	sameNode
)

func (r *resolving) scan(start, end int) scan {
	var s scan
	nodes, zones := true, true // all have such a hint
	forNode, forZone := false, false
	for _, e := range r.endpoints[start:end] {
		switch {
		case e.Reason.final():
		case e.Ready:
			s.ready = true
			s.localReady = s.localReady || e.Local
			nodes, forNode = nodes && len(e.ForNodes) > 0, forNode || slices.Contains(e.ForNodes, r.network.Node)
			zones, forZone = zones && len(e.ForZones) > 0, forZone || slices.Contains(e.ForZones, r.network.Zone)
		case e.stopping():
			s.stopping = true
			s.localStopping = s.localStopping || e.Local
		}
	}
	switch {
	case nodes && forNode:
		s.hints = sameNode
	case zones && forZone:
		s.hints = sameZone
	}
	return s
}

// inCluster says whether the policy Cluster leads to an endpoint, and if it does not, why.
func (r *resolving) inCluster(e *Endpoint, s *scan) Reason {
	switch {
	case !e.Ready && s.ready, !e.Ready && !e.stopping():
		return e.unready()
	case e.Ready && s.hints == sameNode && !slices.Contains(e.ForNodes, r.network.Node):
		return OtherNode
	case e.Ready && s.hints == sameZone && !slices.Contains(e.ForZones, r.network.Zone):
		return OtherZone
	}
	return None
}

// inLocal says the same of the policy Local. It falls back to endpoints that stop by itself, whatever there is elsewhere.
func inLocal(e *Endpoint, s *scan) Reason {
	switch {
	case !e.Ready && (!e.stopping() || e.Local && s.localReady || !e.Local && s.ready):
		return e.unready()
	case !e.Local:
		return OtherNode
	}
	return None
}

// choose decides about the endpoints of one port and family, which are owned[…]'s to lead to.
func (r *resolving) choose(start, end, f int, owned []want) *choice {
	s := r.scan(start, end)
	c := &choice{elsewhere: s.ready || s.stopping}
	inner, outer := false, false
	for _, w := range owned {
		if family(w.Addr) == f {
			inner, outer = inner || w.kind == FrontendClusterIP, outer || w.kind != FrontendClusterIP
		}
	}
	useCluster := outer || inner && !r.service.internalLocal
	useLocal := inner && r.service.internalLocal || outer && r.service.externalLocal
	for i := start; i < end; i++ {
		e := r.endpoints[i]
		if e.Reason.final() {
			continue
		}
		cluster, local := r.inCluster(e, &s), inLocal(e, &s)
		switch {
		case !r.service.families[f]:
			r.setReason(i, FamilyUnused)
		case !inner && !outer:
			r.leave(i, i+1, FrontendTaken)
		case inner && r.service.internalLocal:
			r.setReason(i, local)
		default:
			r.setReason(i, cluster)
		}
		e = r.endpoints[i]
		if useCluster && cluster == None {
			c.cluster = append(c.cluster, e)
		}
		if useLocal && local == None {
			c.local = append(c.local, e)
		}
		if e.Local && e.Ready {
			c.ready = append(c.ready, e.Addr())
		}
	}
	return c
}

// pool is what connections are led to under one of the policies. c is nil if the Service has no endpoint of that port and family.
func (c *choice) pool(key PoolKey, affinity time.Duration) *Pool {
	p := &Pool{PoolKey: key, Affinity: affinity}
	if c == nil {
		return p
	}
	p.Endpoints = c.cluster
	if key.Local {
		p.Endpoints = c.local
		if c.elsewhere {
			p.Empty = Drop
		}
	}
	return p
}
