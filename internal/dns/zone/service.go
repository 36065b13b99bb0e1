package zone

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/model"
)

// A service is the records of one. What it refers to is not modified.
type service struct {
	name          []byte // wire name
	ttl, negative uint32 // of its records, and of answers that there is none
	exists        bool   // it has records; else it is here for its TTL
	cname         []byte // of an ExternalName
	addrs         addrs
	srv           srvs   // at its own name
	ports         []port // with a name; sorted by labels
	targets       []target

	pointers []pointer    // sorted
	pods     []netip.Addr // its endpoints that are pods, ready or not; sorted
}

// addrs are IPv4 and IPv6 addresses, each sorted.
type addrs [2][]netip.Addr

func (a *addrs) add(addr netip.Addr) {
	f := family(addr)
	a[f] = append(a[f], addr)
}

// family is an index of addrs.
func family(addr netip.Addr) int {
	if addr.Is4() {
		return 0
	}
	return 1
}

// A port is a name such as _http._tcp.
type port struct {
	labels []byte // as on the wire
	srv    srvs
}

func (p *port) protocol() []byte { return p.labels[1+p.labels[0]:] }

// srvs are SRV records.
type srvs struct {
	records []srv // sorted, each once
	// weight is 100, shared by all endpoints as CoreDNS does. They are all the same, so that it means nothing to clients.
	weight uint16
}

// A srv is the port and target of an SRV record.
type srv struct {
	target int // of service.targets; -1 is the Service itself
	port   uint16
}

func newSRVs(records []srv, endpoints int) srvs {
	slices.SortFunc(records, func(a, b srv) int { return cmp.Or(cmp.Compare(a.target, b.target), cmp.Compare(a.port, b.port)) })
	return srvs{slices.Clip(slices.Compact(records)), uint16(max(100/max(endpoints, 1), 1))}
}

// A target is an endpoint's name, which several may have.
type target struct {
	name  []byte // wire name
	addrs addrs
}

// label of it, with its length.
func (t *target) label() []byte { return t.name[:1+t.name[0]] }

// newService is nil if its name is too long.
func (c *constants) newService(from *model.Service) *service {
	s := &service{ttl: c.ttl}
	if from.TTL >= 0 {
		s.ttl = seconds(from.TTL)
	}
	s.negative = min(s.ttl, c.ttl)
	s.name = make([]byte, 0, len(from.Key.Name)+len(from.Key.Namespace)+len(c.domain)+6)
	s.name = append(appendLabel(appendLabel(appendLabel(s.name, from.Key.Name), from.Key.Namespace), "svc"), c.domain...)
	if !fits(s.name) {
		return nil
	}
	switch from.Kind {
	case model.ExternalName:
		if name, err := wire.AppendName(nil, from.ExternalName); err == nil && len(name) > 1 {
			s.cname, s.exists = name, true
		}
	case model.Headless:
		s.readEndpoints(from.Endpoints)
	default:
		s.readClusterIPs(from)
	}
	s.readPods(from.Endpoints)
	return s
}

func (s *service) readClusterIPs(from *model.Service) {
	for _, addr := range from.ClusterIPs {
		s.addrs.add(addr)
		s.pointers = append(s.pointers, pointer{addr, s.name, s.ttl})
	}
	slices.SortFunc(s.pointers, pointer.compare)
	if s.exists = len(from.ClusterIPs) > 0; !s.exists {
		return
	}
	var all []srv
	for _, p := range from.Ports {
		record := srv{-1, p.Number}
		all = append(all, record)
		if labels := portLabels(p.Name, p.Protocol); labels != nil {
			s.ports = append(s.ports, port{labels, newSRVs([]srv{record}, len(from.ClusterIPs))})
		}
	}
	s.srv = newSRVs(all, len(all)*len(from.ClusterIPs))
	s.sortPorts()
}

func (s *service) sortPorts() {
	slices.SortFunc(s.ports, func(a, b port) int { return slices.Compare(a.labels, b.labels) })
}

// portLabels are nil for what has no name, or one that fits no label with the underscore.
func portLabels(name string, protocol model.Protocol) []byte {
	var proto string
	switch protocol {
	case model.TCP:
		proto = "_tcp"
	case model.UDP:
		proto = "_udp"
	case model.SCTP:
		proto = "_sctp"
	default:
		return nil
	}
	if !isLabel(name) || len(name) == maxLabel {
		return nil
	}
	labels := make([]byte, 0, 3+len(name)+len(proto))
	return appendLabel(append(append(labels, byte(1+len(name)), '_'), name...), proto)
}

// An answering is an endpoint that is ready, and its name.
type answering struct {
	*model.Endpoint
	label  string
	target int
}

// readEndpoints is for what is headless.
func (s *service) readEndpoints(from []*model.Endpoint) {
	list := s.nameEndpoints(from)
	if s.exists = len(s.targets) > 0; !s.exists {
		return
	}
	for i := range s.targets {
		for f, addrs := range s.targets[i].addrs {
			s.addrs[f] = append(s.addrs[f], addrs...)
			for _, addr := range addrs {
				s.pointers = append(s.pointers, pointer{addr, s.targets[i].name, s.ttl})
			}
		}
	}
	for f := range s.addrs {
		s.addrs[f] = sortAddrs(s.addrs[f])
	}
	slices.SortFunc(s.pointers, pointer.compare)

	slices.SortFunc(list, func(a, b answering) int {
		return cmp.Or(strings.Compare(a.PortName, b.PortName), cmp.Compare(a.Protocol, b.Protocol))
	})
	var all []srv
	for start := 0; start < len(list); {
		first := list[start]
		var records []srv
		for ; start < len(list) && list[start].PortName == first.PortName && list[start].Protocol == first.Protocol; start++ {
			if e := list[start]; e.Port() > 0 && e.Protocol > 0 { // else there is no port
				records = append(records, srv{e.target, e.Port()})
			}
		}
		all = append(all, records...)
		if labels := portLabels(first.PortName, first.Protocol); labels != nil && len(records) > 0 {
			s.ports = append(s.ports, port{labels, newSRVs(records, len(records))})
		}
	}
	s.srv = newSRVs(all, len(all))
	s.sortPorts()
}

// nameEndpoints finds those that DNS answers with, and makes the targets. Targets are sorted by label.
func (s *service) nameEndpoints(from []*model.Endpoint) []answering {
	list := make([]answering, 0, len(from))
	for _, e := range from {
		if e.Reason != model.None || !e.Addr().IsValid() {
			continue
		}
		label := e.Hostname
		if !isLabel(label) {
			label = dashed(e.Addr())
		}
		if 1+len(label)+len(s.name) <= wire.MaxName {
			list = append(list, answering{e, label, 0})
		}
	}
	slices.SortFunc(list, func(a, b answering) int {
		return cmp.Or(cmp.Compare(len(a.label), len(b.label)), strings.Compare(a.label, b.label), a.Addr().Compare(b.Addr()))
	})
	for i := range list {
		e := &list[i]
		if i == 0 || e.label != list[i-1].label {
			name := make([]byte, 0, 1+len(e.label)+len(s.name))
			s.targets = append(s.targets, target{name: append(appendLabel(name, e.label), s.name...)})
		}
		e.target = len(s.targets) - 1
		if t := &s.targets[e.target]; i == 0 || e.label != list[i-1].label || e.Addr() != list[i-1].Addr() {
			t.addrs.add(e.Addr())
		}
	}
	return list
}

func (s *service) readPods(from []*model.Endpoint) {
	for _, e := range from {
		if e.Origin != nil && e.Target.Kind == "Pod" && e.Addr().IsValid() {
			s.pods = append(s.pods, e.Addr())
		}
	}
	s.pods = sortAddrs(s.pods)
}

// sortAddrs removes repetitions too.
func sortAddrs(list []netip.Addr) []netip.Addr {
	if !slices.IsSortedFunc(list, netip.Addr.Compare) {
		slices.SortFunc(list, netip.Addr.Compare)
	}
	return slices.Clip(slices.Compact(list))
}
