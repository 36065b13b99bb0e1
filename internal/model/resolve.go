package model

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// resolving makes one Service of a Snapshot: what it said itself, its slices, its claims, and what this node knows better.
type resolving struct {
	service *service
	in      *Input
	network *Network
	claims  claims
	was     *Service // nil if there was none

	said      Service
	endpoints []*Endpoint
	// spare is room for the next endpoints that differ from what their slice says.
	spare []Endpoint
	room  int // how many there were at first
}

func (r *resolving) resolve() *Service {
	r.said = r.service.said
	r.said.Problems = slices.Clip(r.said.Problems)
	r.said.Ports = slices.Clone(r.said.Ports)
	owned := r.frontends()
	if r.said.Kind != ExternalName {
		list, _ := r.in.ofService.Get(r.service.id)
		r.gather(list)
		r.exclude(owned)
	}
	slices.SortFunc(r.said.Problems, compareProblems)
	r.said.Endpoints = r.endpoints
	s := r.said
	return &s
}

func (r *resolving) problem(p Problem) { r.said.Problems = append(r.said.Problems, p) }

// frontends are those that no older Service has, by port.
func (r *resolving) frontends() [][]want {
	owned := make([][]want, len(r.service.ports))
	for _, wants := range [...][]want{r.service.wants, r.service.nodePorts(r.network)} {
		for _, w := range wants {
			if owner := r.claims.owner(w.FrontendKey); owner != r.service {
				r.problem(Problem{Kind: "Service", Object: r.said.Key, Reason: FrontendTaken, Message: fmt.Sprintf(
					"%s belongs to the Service %s; give one of them another address or port", w.FrontendKey, owner.said.Key)})
				continue
			}
			owned[w.port] = append(owned[w.port], w)
		}
	}
	return owned
}

// gather collects the endpoints of all slices in order, each once, as this node knows them.
func (r *resolving) gather(list []*slice) {
	total := 0
	for _, s := range list {
		r.said.Problems = append(r.said.Problems, s.problems...)
		if r.said.Kind != Headless {
			r.said.Problems = append(r.said.Problems, s.unnumbered...)
		}
		total += len(s.endpoints)
	}
	if total == 0 {
		return
	}
	all := make([]*Endpoint, 0, total)
	runs := make([]int, 0, len(list)) // where each slice's end
	for _, s := range list {
		for i := range s.endpoints {
			all = append(all, r.known(s, &s.endpoints[i]))
		}
		runs = append(runs, len(all))
	}
	var doubles map[string]int // slice → how many of its endpoints are there again
	all = merge(all, runs)
	r.endpoints = all[:0] // what is kept is never ahead of what is read
	for _, e := range all {
		last := len(r.endpoints) - 1
		if last < 0 || compareEndpoints(r.endpoints[last], e) != 0 {
			r.endpoints = append(r.endpoints, e)
			continue
		}
		worse := e
		if better(e, r.endpoints[last]) {
			worse, r.endpoints[last] = r.endpoints[last], e
		}
		if worse.Reason.final() {
			continue
		}
		if doubles == nil {
			doubles = map[string]int{}
		}
		doubles[worse.Slice]++
	}
	clear(all[len(r.endpoints):])
	for name, n := range doubles {
		r.problem(Problem{Kind: "EndpointSlice", Object: ServiceKey{r.said.Key.Namespace, name}, Reason: Duplicate, Message: fmt.Sprintf(
			"%d of its endpoints are in the Service's slices twice; the better one of each is used", n)})
	}
}

// known is an endpoint as the node knows it: the API's, unless it's its own.
func (r *resolving) known(s *slice, e *Endpoint) *Endpoint {
	local := e.Node != "" && e.Node == r.network.Node
	var fact Reason
	if e.Target.UID != "" && r.in.down.Len() > 0 && r.in.mine(e.Origin) {
		fact, _ = r.in.down.Get(e.Target.UID)
	}
	headless := s.headless && r.said.Kind != Headless
	unnumbered := len(s.unnumbered) > 0 && e.Port() == 0 && e.Reason == None && r.said.Kind != Headless
	if !local && fact == None && !headless && !unnumbered {
		return e
	}
	e = r.copy(e)
	e.Local = local
	if unnumbered {
		e.Reason = BadPort
	}
	e.know(fact, r.said.PublishNotReady)
	if headless && !e.Reason.final() {
		e.Reason = HeadlessSlice
	}
	return e
}

// know lets what this node saw override what the API says. Who publishes endpoints that are not ready wants to reach pods whatever their
// probes or their shutdown say, so that only death counts: a dead process refuses connections, and nobody wants those.
func (e *Endpoint) know(fact Reason, publishNotReady bool) {
	switch {
	case fact == LocalNotReady && !publishNotReady:
		e.lastResort = e.Ready
		e.Ready, e.Serving = false, false
	case fact == LocalDead:
		e.Ready, e.Serving = false, false
	case fact == LocalDraining && !publishNotReady:
		e.Ready, e.Terminating = false, true
	default:
		return
	}
	if !e.Reason.final() {
		e.Reason = fact
	}
}

// copy is where an endpoint can be changed.
func (r *resolving) copy(e *Endpoint) *Endpoint {
	if len(r.spare) == 0 {
		r.room = min(max(1, 2*r.room), 16)
		r.spare = make([]Endpoint, r.room)
	}
	c := &r.spare[0]
	r.spare = r.spare[1:]
	*c = *e
	return c
}

// setReason changes the Reason of an endpoint, which may be a slice's own.
func (r *resolving) setReason(i int, reason Reason) {
	if r.endpoints[i].Reason != reason {
		r.endpoints[i] = r.copy(r.endpoints[i])
		r.endpoints[i].Reason = reason
	}
}

// merge sorts a list of runs that are sorted, given where each ends. What is equal stays in the order of the runs.
func merge(list []*Endpoint, ends []int) []*Endpoint {
	if len(ends) < 2 {
		return list
	}
	other := make([]*Endpoint, len(list))
	for len(ends) > 1 {
		next := ends[:0]
		start := 0
		for i := 0; i < len(ends); i += 2 {
			middle, end := ends[i], ends[min(i+1, len(ends)-1)]
			mergeTwo(other[start:end], list[start:middle], list[middle:end])
			next = append(next, end)
			start = end
		}
		ends = next
		list, other = other, list
	}
	return list
}

func mergeTwo(into, a, b []*Endpoint) {
	for len(a) > 0 && len(b) > 0 {
		if compareEndpoints(a[0], b[0]) <= 0 {
			into[0], a = a[0], a[1:]
		} else {
			into[0], b = b[0], b[1:]
		}
		into = into[1:]
	}
	copy(into[copy(into, a):], b)
}

// better says which of two endpoints with the same address and port counts: an address may have gone from a pod that stops to a new one
// (k8s.io/kubernetes/pkg/proxy EndpointSliceCache), and an endpoint that moves is in two slices for a moment.
func better(a, b *Endpoint) bool {
	rank := func(e *Endpoint) int {
		n := 0
		for _, good := range [...]bool{!e.Reason.final(), !e.Terminating, e.Ready, e.Serving} {
			n <<= 1
			if good {
				n++
			}
		}
		return n
	}
	return rank(a) > rank(b)
}

// exclude gives every endpoint its Reason, port by port, and the Ports their Frontends.
func (r *resolving) exclude(owned [][]want) {
	chosen := make([][2]*choice, len(r.service.ports))
	for start := 0; start < len(r.endpoints); {
		end := start + 1
		for end < len(r.endpoints) && samePort(r.endpoints[start], r.endpoints[end]) {
			end++
		}
		switch at, ok := r.portOf(r.endpoints[start]); {
		case r.said.Kind == Headless:
			r.leave(start, end, None) // DNS answers with those that are ready
		case !ok:
			r.refuse(start, end, NoSuchPort)
		case r.said.OtherProxy != "":
			r.leave(start, end, OtherProxyName)
		default:
			chosen[at][family(r.endpoints[start].Addr())] = r.choose(start, end, owned[at])
		}
		start = end
	}
	r.keep()
	for i, port := range r.service.ports {
		for _, c := range chosen[i] {
			if c != nil {
				r.collect(c)
			}
		}
		if len(owned[i]) > 0 {
			r.port(i, port, owned[i], chosen[i])
		}
	}
	if r.service.externalLocal {
		r.said.LocalEndpoints = r.localEndpoints()
	}
}

// keep uses the endpoints of the Service as it was where they are the same down to the Origin: no more than that, because an
// endpoint of a slice that was replaced would keep all of that slice from being forgotten.
func (r *resolving) keep() {
	if r.was == nil {
		return
	}
	old := r.was.Endpoints
	for i, e := range r.endpoints {
		for len(old) > 0 && old[0] != e && compareEndpoints(old[0], e) < 0 {
			old = old[1:]
		}
		if len(old) > 0 && old[0] != e && *old[0] == *e {
			r.endpoints[i] = old[0]
		}
	}
}

// localEndpoints is what a load balancer is told of this node: addresses that are ready, in the family that has more of them.
func (r *resolving) localEndpoints() int {
	var ready [2][]netip.Addr
	for _, e := range r.endpoints {
		if e.Local && e.Ready && !e.Reason.final() {
			f := family(e.Addr())
			ready[f] = append(ready[f], e.Addr())
		}
	}
	return max(len(sortAddrs(ready[0])), len(sortAddrs(ready[1])))
}

// samePort says whether two endpoints are of one port and family.
func samePort(a, b *Endpoint) bool {
	return a.PortName == b.PortName && a.Protocol == b.Protocol && family(a.Addr()) == family(b.Addr())
}

// portOf is the Service's port that an endpoint is of.
func (r *resolving) portOf(e *Endpoint) (int, bool) {
	return slices.BinarySearchFunc(r.service.ports, e, func(p servicePort, e *Endpoint) int {
		return cmp.Or(strings.Compare(p.name, e.PortName), cmp.Compare(p.protocol, e.Protocol))
	})
}

// refuse gives endpoints a Reason that nothing can change.
func (r *resolving) refuse(start, end int, reason Reason) {
	for i := start; i < end; i++ {
		if !r.endpoints[i].Reason.final() {
			r.setReason(i, reason)
		}
	}
}

// leave gives the endpoints that could be used the Reason given, and the others theirs.
func (r *resolving) leave(start, end int, reason Reason) {
	for i := start; i < end; i++ {
		switch e := r.endpoints[i]; {
		case e.Reason.final():
		case e.Ready:
			r.setReason(i, reason)
		default:
			r.setReason(i, e.unready())
		}
	}
}

// unready is why an endpoint that is not ready gets nothing.
func (e *Endpoint) unready() Reason {
	switch {
	case e.Reason.local():
		return e.Reason
	case e.Serving && e.Terminating:
		return Terminating
	}
	return NotReady
}

// port makes the Frontends of a port.
func (r *resolving) port(at int, port servicePort, owned []want, chosen [2]*choice) {
	said := *r.said.Ports[at]
	said.Frontends = make([]Frontend, 0, len(owned))
	pools := map[PoolKey]*Pool{}
	pool := func(f int, local bool) *Pool {
		key := PoolKey{Service: r.said.Key, Port: port.name, Protocol: port.protocol, IPv6: f == 1, Local: local}
		p := pools[key]
		if p == nil {
			p = chosen[f].pool(key, r.service.affinity)
			pools[key] = p
		}
		return p
	}
	for _, w := range owned {
		f := family(w.Addr)
		frontend := Frontend{FrontendKey: w.FrontendKey, Kind: w.kind}
		if w.kind == FrontendClusterIP {
			frontend.Internal = pool(f, r.service.internalLocal)
			frontend.External = frontend.Internal
		} else {
			frontend.Internal = pool(f, false)
			frontend.External = pool(f, r.service.externalLocal)
			frontend.KeepSource = r.service.externalLocal
		}
		if w.kind == FrontendLoadBalancerIP {
			frontend.SourceRanges = r.service.ranges[f]
		}
		said.Frontends = append(said.Frontends, frontend)
	}
	slices.SortFunc(said.Frontends, func(a, b Frontend) int { return a.Compare(b.FrontendKey) })
	r.said.Ports[at] = &said
}
