package conntrack

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/endpointd/endpointd/internal/model"
)

// A grave is what is left of a frontend that no Service has any more.
type grave struct {
	endpoints []netip.AddrPort
	dug       time.Time
}

// A kind of flows can be asked of the kernel at once.
type kind struct {
	v6       bool
	protocol model.Protocol
}

func kindOf(key model.FrontendKey) kind { return kind{v6: key.Addr.Is6(), protocol: key.Protocol} }

// A difference is what two Snapshots mean for flows.
type difference struct {
	// look are the frontends with flows that may lead elsewhere now.
	look map[model.FrontendKey]struct{}
	// graves are frontends that are gone, each with the endpoints it had.
	graves map[model.FrontendKey][]netip.AddrPort
	// born are frontends that have an owner now and had none.
	born []model.FrontendKey
	// owned are frontends that another Service value has now, or none, but for TCP.
	owned map[model.FrontendKey]*model.Service
	// frontends is by how many each kind became more or fewer.
	frontends map[kind]int
	// others is by how many Services of other proxies an address was taken more or less.
	others map[netip.Addr]int
}

func newDifference() *difference {
	return &difference{
		look: map[model.FrontendKey]struct{}{}, graves: map[model.FrontendKey][]netip.AddrPort{},
		owned: map[model.FrontendKey]*model.Service{}, frontends: map[kind]int{}, others: map[netip.Addr]int{},
	}
}

// compare says what changed; was is nil if there was nothing. It costs in proportion to the Services that changed.
func compare(was, now desired, changed iter.Seq[model.ServiceKey]) *difference {
	d := newDifference()
	for key := range changed {
		var before, after *model.Service
		if was != nil {
			before = was.Service(key)
		}
		after = now.Service(key)
		if before == after {
			continue
		}
		d.count(before, -1)
		d.count(after, 1)
		if before != nil {
			d.leave(before, now)
		}
		if after != nil {
			d.enter(was, after)
		}
	}
	return d
}

// urgent says whether there is more to look at than SYNs.
func (d *difference) urgent() bool {
	for key := range d.look {
		if key.Protocol != model.TCP {
			return true
		}
	}
	return false
}

func (d *difference) count(s *model.Service, by int) {
	if s == nil {
		return
	}
	if s.OtherProxy != "" {
		for _, addr := range s.ClusterIPs {
			d.others[addr] += by
		}
	}
	for _, p := range s.Ports {
		for i := range p.Frontends {
			d.frontends[kindOf(p.Frontends[i].FrontendKey)] += by
		}
	}
}

// leave looks at what a Service had: is it gone, and has its successor, most often the same Service, lost an endpoint of it?
func (d *difference) leave(before *model.Service, now desired) {
	for _, p := range before.Ports {
		had := portEndpoints(before, p)
		var addrs []netip.AddrPort // of had, once they are needed
		var kept *model.Port       // what all says is about this one
		var all bool
		for i := range p.Frontends {
			f := &p.Frontends[i]
			owner := now.Owner(f.FrontendKey)
			if owner == nil {
				if p.Protocol != model.TCP {
					d.owned[f.FrontendKey] = nil
				}
				if addrs == nil {
					addrs = addresses(had)
				}
				d.graves[f.FrontendKey] = addrs
				d.look[f.FrontendKey] = struct{}{}
				continue
			}
			port, frontend := find(owner, f.FrontendKey)
			if frontend == nil {
				continue
			}
			if port != kept { // the frontends of a port have a port in common afterwards too, nearly always
				kept, all = port, keeps(p.Protocol, had, portEndpoints(owner, port))
			}
			if !all || !slices.Equal(f.SourceRanges, frontend.SourceRanges) || poolShrank(f, frontend) {
				d.look[f.FrontendKey] = struct{}{}
			}
		}
	}
}

// enter looks at what a Service has: flows that were there before it, or while it had no endpoint, were not translated. For TCP
// those are refused, or are SYNs, which a sweep finds.
func (d *difference) enter(was desired, after *model.Service) {
	for _, p := range after.Ports {
		for i := range p.Frontends {
			f := &p.Frontends[i]
			var owner *model.Service
			if was != nil {
				owner = was.Owner(f.FrontendKey)
			}
			if owner == nil {
				d.born = append(d.born, f.FrontendKey)
			}
			if p.Protocol == model.TCP {
				continue
			}
			d.owned[f.FrontendKey] = after
			if empty(f) {
				continue
			}
			if owner != nil {
				if _, before := find(owner, f.FrontendKey); before != nil && !empty(before) {
					continue
				}
			}
			d.look[f.FrontendKey] = struct{}{}
		}
	}
}

func empty(f *model.Frontend) bool {
	return (f.Internal == nil || len(f.Internal.Endpoints) == 0) && (f.External == nil || len(f.External.Endpoints) == 0)
}

// portEndpoints are those of one port, sorted by AddrPort.
func portEndpoints(s *model.Service, p *model.Port) []*model.Endpoint {
	by := func(e *model.Endpoint, p *model.Port) int {
		return cmp.Or(cmp.Compare(e.PortName, p.Name), cmp.Compare(e.Protocol, p.Protocol))
	}
	from, _ := slices.BinarySearchFunc(s.Endpoints, p, by)
	length, _ := slices.BinarySearchFunc(s.Endpoints[from:], p, func(e *model.Endpoint, p *model.Port) int {
		if by(e, p) > 0 {
			return 0
		}
		return -1
	})
	return s.Endpoints[from : from+length]
}

// keeps says whether no endpoint of had can have flows that it may not have any more. Both are sorted by AddrPort.
func keeps(protocol model.Protocol, had, have []*model.Endpoint) bool {
	for _, e := range had {
		for len(have) > 0 && have[0].AddrPort.Compare(e.AddrPort) < 0 {
			have = have[1:]
		}
		there := len(have) > 0 && have[0].AddrPort == e.AddrPort
		if !there && protocol == model.SCTP || serves(e) && (!there || !serves(have[0])) {
			return false
		}
	}
	return true
}

// poolShrank says whether an endpoint that does not even serve has left the pools: the model may choose what it likes.
func poolShrank(before, after *model.Frontend) bool {
	left := func(p *model.Pool) bool {
		return p != nil && slices.ContainsFunc(p.Endpoints, func(e *model.Endpoint) bool {
			return !serves(e) && !inPool(after.Internal, e.AddrPort) && !inPool(after.External, e.AddrPort)
		})
	}
	return left(before.Internal) || before.External != before.Internal && left(before.External)
}

func addresses(endpoints []*model.Endpoint) []netip.AddrPort {
	all := make([]netip.AddrPort, len(endpoints))
	for i, e := range endpoints {
		all[i] = e.AddrPort
	}
	return all
}

// narrow is up to how many addresses the kernel is asked for each alone. That goes for IPv4: of IPv6 Linux 6.18 and before send what is NOT the address.
const narrow = 4

// questions are those that what is owed needs answered; more than it needs costs time, and less is wrong.
func (t *Tracker) questions(due owed) []question {
	var questions []question
	ask := func(k kind, to netip.Addr) {
		questions = append(questions, question{kind: k, to: to, unanswered: k.protocol == model.TCP})
	}
	if due.all {
		for k := range t.kinds() {
			ask(k, netip.Addr{})
		}
		return questions
	}
	addrs := map[kind]map[netip.Addr]struct{}{}
	for key := range due.look {
		k := kindOf(key)
		if addrs[k] == nil {
			addrs[k] = map[netip.Addr]struct{}{}
		}
		addrs[k][key.Addr] = struct{}{}
	}
	for k, all := range addrs {
		if len(all) > narrow || k.v6 {
			ask(k, netip.Addr{})
			continue
		}
		for addr := range all {
			ask(k, addr)
		}
	}
	return questions
}

// kinds are those of which flows can be ours: at first all, then what frontends are of, or were.
func (t *Tracker) kinds() map[kind]bool {
	kinds := map[kind]bool{}
	if !t.swept {
		for _, v6 := range []bool{false, true} {
			for _, protocol := range []model.Protocol{model.UDP, model.SCTP, model.TCP} {
				kinds[kind{v6: v6, protocol: protocol}] = true
			}
		}
	}
	for k := range t.frontends {
		kinds[k] = true
	}
	for key := range t.graves {
		kinds[kindOf(key)] = true
	}
	return kinds
}
