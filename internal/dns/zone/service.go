package zone

import (
	"bytes"
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
	srv           srvs     // at its own name
	ports         []port   // with a name; sorted by labels
	protocols     [][]byte // of ports, such as _tcp, each once
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

// newSRVs takes the records over.
func newSRVs(records []srv, endpoints int) srvs {
	slices.SortFunc(records, func(a, b srv) int { return cmp.Or(cmp.Compare(a.target, b.target), cmp.Compare(a.port, b.port)) })
	return srvs{slices.Compact(records), uint16(max(100/max(endpoints, 1), 1))}
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
	slices.SortFunc(s.ports, func(a, b port) int { return bytes.Compare(a.labels, b.labels) })
	for i := range s.ports {
		protocol := s.ports[i].protocol()
		if !slices.ContainsFunc(s.protocols, func(p []byte) bool { return bytes.Equal(p, protocol) }) {
			s.protocols = append(s.protocols, protocol)
		}
	}
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
	label  []byte
	target int
}

// readEndpoints is for what is headless.
func (s *service) readEndpoints(from []*model.Endpoint) {
	list := s.nameEndpoints(from)
	if s.exists = len(list) > 0; !s.exists {
		return
	}
	s.makeTargets(list)
	slices.SortFunc(list, func(a, b answering) int {
		return cmp.Or(strings.Compare(a.PortName, b.PortName), cmp.Compare(a.Protocol, b.Protocol))
	})
	all := make([]srv, 0, len(list))
	for start := 0; start < len(list); {
		first, before := list[start], len(all)
		for ; start < len(list) && list[start].PortName == first.PortName && list[start].Protocol == first.Protocol; start++ {
			if e := list[start]; e.Port() > 0 && e.Protocol > 0 { // else there is no port
				all = append(all, srv{e.target, e.Port()})
			}
		}
		if labels := portLabels(first.PortName, first.Protocol); labels != nil && len(all) > before {
			s.ports = append(s.ports, port{labels, newSRVs(slices.Clone(all[before:]), len(all)-before)})
		}
	}
	s.srv = newSRVs(all, len(all))
	s.sortPorts()
}

// nameEndpoints finds those that DNS answers with, sorted by label and address.
func (s *service) nameEndpoints(from []*model.Endpoint) []answering {
	list := make([]answering, 0, len(from))
	var labels []byte
	for _, e := range from {
		if e.Reason != model.None || !e.Addr().IsValid() {
			continue
		}
		start := len(labels)
		if isLabel(e.Hostname) {
			labels = append(labels, e.Hostname...)
		} else {
			labels = AppendDashed(labels, e.Addr())
		}
		if label := labels[start:]; 1+len(label)+len(s.name) <= wire.MaxName {
			list = append(list, answering{e, label, 0})
		}
	}
	slices.SortFunc(list, func(a, b answering) int {
		return cmp.Or(cmp.Compare(len(a.label), len(b.label)), bytes.Compare(a.label, b.label), a.Addr().Compare(b.Addr()))
	})
	return list
}

// makeTargets makes them of a list that is sorted, and what the addresses of all are. All names are in one array, and all addresses.
func (s *service) makeTargets(list []answering) {
	length, n := 0, 0
	for i := range list {
		if i == 0 || !bytes.Equal(list[i].label, list[i-1].label) {
			length += 1 + len(list[i].label) + len(s.name)
			n++
		}
		list[i].target = n - 1
	}
	names, addrs := make([]byte, 0, length), make([]netip.Addr, 0, len(list))
	s.targets, s.pointers = make([]target, n), make([]pointer, 0, len(list))
	for i := 0; i < len(list); {
		t, at := &s.targets[list[i].target], len(names)
		names = append(append(append(names, byte(len(list[i].label))), list[i].label...), s.name...)
		t.name = names[at:len(names):len(names)]
		first := i
		from, six := len(addrs), len(addrs) // IPv4 is sorted before IPv6
		for ; i < len(list) && list[i].target == list[first].target; i++ {
			addr := list[i].Addr()
			if i > first && addr == list[i-1].Addr() {
				continue
			}
			addrs = append(addrs, addr)
			if family(addr) == 0 {
				six = len(addrs)
			}
			s.pointers = append(s.pointers, pointer{addr, t.name, s.ttl})
		}
		t.addrs[0], t.addrs[1] = addrs[from:six:six], addrs[six:len(addrs):len(addrs)]
	}
	slices.SortFunc(s.pointers, pointer.compare)
	all := sortAddrs(slices.Clone(addrs))
	six := 0
	for six < len(all) && family(all[six]) == 0 {
		six++
	}
	s.addrs[0], s.addrs[1] = all[:six:six], all[six:]
}

func (s *service) readPods(from []*model.Endpoint) {
	s.pods = make([]netip.Addr, 0, len(from))
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
	if list = slices.Compact(list); len(list) < cap(list) {
		list = append([]netip.Addr(nil), list...) // it is kept for long
	}
	return list
}
