package model

import (
	"slices"
	"time"
)

// A choice is which endpoints of one port and family connections are led to, under each traffic policy.
type choice struct {
	start, end     int // of resolving.endpoints
	scan           scan
	inner, outer   bool // there are frontends: a ClusterIP, others
	cluster, local []*Endpoint
}

// A scan is what the endpoints of one port and family have in common.
type scan struct {
	ready, stopping           bool // some are ready; some still serve while they terminate
	localReady, localStopping bool // the same among this node's
	hints                     hints
}

// stopping says whether an endpoint may be fallen back to where none is ready.
func (e *Endpoint) stopping() bool { return !e.Ready && e.Serving && e.Terminating }

// usable says whether connections may be led to an endpoint, where some are ready or stopping. Where none is either, there may be one whose probe failed a
// moment ago on this node while the API still has it for ready: another may be ready by now and the slice that says so not be here yet,
// and a Service must not be refused in between.
func (e *Endpoint) usable(ready, stopping bool) bool {
	switch {
	case e.Ready:
		return true
	case ready:
		return false
	case e.stopping():
		return true
	}
	return !stopping && e.lastResort
}

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
	case !e.usable(s.ready, s.stopping):
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
	case e.Local && !e.usable(s.localReady, s.localStopping), !e.Local && !e.usable(s.ready, s.stopping):
		return e.unready()
	case !e.Local:
		return OtherNode
	}
	return None
}

// choose decides about the endpoints of one port and family, which the frontends owned lead to, and gives each its Reason.
func (r *resolving) choose(start, end int, owned []want) *choice {
	c := &choice{start: start, end: end, scan: r.scan(start, end)}
	f := family(r.endpoints[start].Addr())
	for _, w := range owned {
		if family(w.Addr) == f {
			c.inner, c.outer = c.inner || w.kind == FrontendClusterIP, c.outer || w.kind != FrontendClusterIP
		}
	}
	for i := start; i < end; i++ {
		e := r.endpoints[i]
		switch {
		case e.Reason.final():
		case !r.service.families[f]:
			r.setReason(i, FamilyUnused)
		case !c.inner && !c.outer:
			r.leave(i, i+1, FrontendTaken)
		case c.inner && r.service.internalLocal:
			r.setReason(i, inLocal(e, &c.scan))
		default:
			r.setReason(i, r.inCluster(e, &c.scan))
		}
	}
	return c
}

// collect puts the endpoints into the pools, when all is said about them.
func (r *resolving) collect(c *choice) {
	useCluster := c.outer || c.inner && !r.service.internalLocal
	useLocal := c.inner && r.service.internalLocal || c.outer && r.service.externalLocal
	if useCluster {
		c.cluster = r.chosen(c, func(e *Endpoint) bool { return r.inCluster(e, &c.scan) == None })
	}
	if useLocal {
		c.local = r.chosen(c, func(e *Endpoint) bool { return inLocal(e, &c.scan) == None })
	}
}

// chosen is a list without room for more: there are many, and they are kept for long.
func (r *resolving) chosen(c *choice, in func(*Endpoint) bool) []*Endpoint {
	n := 0
	for _, e := range r.endpoints[c.start:c.end] {
		if !e.Reason.final() && in(e) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	list := make([]*Endpoint, 0, n)
	for _, e := range r.endpoints[c.start:c.end] {
		if !e.Reason.final() && in(e) {
			list = append(list, e)
		}
	}
	return list
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
		if c.scan.ready || c.scan.stopping {
			p.Empty = Drop
		}
	}
	return p
}
