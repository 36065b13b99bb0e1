package model

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// A slice is what is kept of an EndpointSlice. Its endpoints are as the API gives them, so that most of them are part of Snapshots as they are.
type slice struct {
	id      string // key of Input.slices
	service string // key of Input.services; "" if it belongs to none
	name    ServiceKey
	// headless is the label that tells proxies to look away.
	headless bool
	hinted   bool // some endpoint has a hint
	// endpoints of each port, in the order of a Service's; Local is false, and Reason is set only if it can never be used. Those that
	// are equal are in the order of the API object.
	endpoints []Endpoint
	problems  []Problem
	// unnumbered are those of ports without a number. They are none of a headless Service's: its endpoints are names, and such a port is all there
	// is to say of some (EndpointSlice v1: slices that are not derived from a Service may have such).
	unnumbered []Problem
	// names keeps the strings that many slices have in common from being forgotten, so that there is one of each.
	names []unique.Handle[string]
}

// slicePort is a port of a slice, sound or not.
type slicePort struct {
	name     string
	protocol Protocol
	number   uint16
	reason   Reason
}

// newSlice reads an EndpointSlice; nothing of it is kept but strings.
func newSlice(id string, from *discoveryv1.EndpointSlice) *slice {
	s := &slice{id: id, name: ServiceKey{from.Namespace, from.Name}}
	if name := from.Labels[discoveryv1.LabelServiceName]; name != "" {
		s.service, _ = keyOf(from.Namespace, name)
	}
	_, s.headless = from.Labels[corev1.IsHeadlessService]
	switch from.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
	default:
		s.problem(BadAddress, fmt.Sprintf("its addressType is %q, and connections are led to IPv4 and IPv6 addresses only; use one of these, or a Service of type ExternalName", from.AddressType))
		return s
	}
	var in interner
	ports := s.readPorts(from.Ports, &in)
	origins, found := s.readEndpoints(from, &in)
	s.names = slices.Clone(in.handles)
	slices.SortStableFunc(found, func(a, b Endpoint) int { return a.Addr().Compare(b.Addr()) })
	s.endpoints = make([]Endpoint, 0, len(ports)*len(origins))
	for _, port := range ports {
		for _, e := range found {
			e.PortName, e.Protocol, e.Reason = port.name, port.protocol, port.reason
			e.AddrPort = addrPort(e.Addr(), port.number)
			s.endpoints = append(s.endpoints, e)
		}
	}
	order := func(a, b Endpoint) int { return compareEndpoints(&a, &b) }
	if !slices.IsSortedFunc(s.endpoints, order) { // two ports have one name
		slices.SortStableFunc(s.endpoints, order)
	}
	return s
}

func (s *slice) problem(reason Reason, message string) {
	s.problems = append(s.problems, Problem{Kind: "EndpointSlice", Object: s.name, Reason: reason, Message: message})
}

// readPorts returns the ports in the order of a Service's endpoints. A slice without ports has one with number 0: that of a Service without.
func (s *slice) readPorts(from []discoveryv1.EndpointPort, in *interner) []slicePort {
	if len(from) == 0 {
		return []slicePort{{}}
	}
	ports := make([]slicePort, 0, len(from))
	for i := range from {
		port := s.readPort(&from[i], in)
		ports = append(ports, port)
	}
	slices.SortStableFunc(ports, func(a, b slicePort) int {
		return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.number, b.number))
	})
	return slices.CompactFunc(ports, func(a, b slicePort) bool {
		return a.name == b.name && a.protocol == b.protocol && a.number == b.number
	})
}

func (s *slice) readPort(from *discoveryv1.EndpointPort, in *interner) slicePort {
	var port slicePort
	if from.Name != nil {
		port.name = in.intern(*from.Name)
	}
	protocol := corev1.ProtocolTCP
	if from.Protocol != nil {
		protocol = *from.Protocol
	}
	var known bool
	if port.protocol, known = readProtocol(protocol); !known {
		port.reason = BadProtocol
		s.problem(BadProtocol, fmt.Sprintf("port %q has the protocol %q; use TCP, UDP or SCTP", port.name, protocol))
		return port
	}
	switch {
	case from.Port == nil: // what that means is the Service's to say
		s.unnumbered = append(s.unnumbered, Problem{Kind: "EndpointSlice", Object: s.name, Reason: BadPort, Message: fmt.Sprintf(
			"port %q has no number; give it one from 1 to 65535", port.name)})
	case *from.Port < 1 || *from.Port > 65535:
		port.reason = BadPort
		s.problem(BadPort, fmt.Sprintf("port %q has the number %d; use one from 1 to 65535", port.name, *from.Port))
	default:
		port.number = uint16(*from.Port)
	}
	return port
}

// readEndpoints returns an Endpoint without a port for each address that can be used, and what they share.
func (s *slice) readEndpoints(from *discoveryv1.EndpointSlice, in *interner) ([]Origin, []Endpoint) {
	origins := make([]Origin, 0, len(from.Endpoints))
	found := make([]Endpoint, 0, len(from.Endpoints))
	name := from.Name
	var bad int
	var first error
	for i := range from.Endpoints {
		ep := &from.Endpoints[i]
		text := ""
		if len(ep.Addresses) > 0 {
			text = ep.Addresses[0] // EndpointSlice v1: consumers ignore the others
		}
		addr, err := endpointAddr(text, from.AddressType == discoveryv1.AddressTypeIPv6)
		if err != nil {
			if bad++; first == nil {
				first = err
			}
			continue
		}
		origins = append(origins, Origin{Slice: name, Node: in.of(ep.NodeName), Zone: in.of(ep.Zone)})
		origin := &origins[len(origins)-1]
		if ref := ep.TargetRef; ref != nil {
			origin.Target = Target{Kind: in.intern(ref.Kind), Name: ref.Name, UID: string(ref.UID)}
		}
		if ep.Hints != nil {
			origin.ForZones = in.list(len(ep.Hints.ForZones), func(i int) string { return ep.Hints.ForZones[i].Name })
			origin.ForNodes = in.list(len(ep.Hints.ForNodes), func(i int) string { return ep.Hints.ForNodes[i].Name })
			s.hinted = s.hinted || len(origin.ForZones)+len(origin.ForNodes) > 0
		}
		e := Endpoint{Origin: origin, AddrPort: addrPort(addr, 0)}
		e.Ready = ep.Conditions.Ready == nil || *ep.Conditions.Ready
		e.Serving = ep.Conditions.Serving == nil || *ep.Conditions.Serving
		e.Terminating = ep.Conditions.Terminating != nil && *ep.Conditions.Terminating
		if ep.Hostname != nil {
			e.Hostname = *ep.Hostname
		}
		found = append(found, e)
	}
	if bad > 0 {
		s.problem(BadAddress, fmt.Sprintf("%d of %d endpoints have no usable address, the first because %v", bad, len(from.Endpoints), first))
	}
	return origins, found
}

// An interner makes equal strings the same string, in this slice and all others, as long as the handles are kept.
type interner struct {
	handles []unique.Handle[string] // each once; a search costs less than a map, as a handle is a pointer
	last    []string                // the last list of hints: neighbours mostly have the same
}

func (in *interner) intern(text string) string {
	if text == "" {
		return ""
	}
	handle := unique.Make(text)
	if !slices.Contains(in.handles, handle) {
		in.handles = append(in.handles, handle)
	}
	return handle.Value()
}

func (in *interner) of(text *string) string {
	if text == nil {
		return ""
	}
	return in.intern(*text)
}

// list returns n strings sorted, without empty ones and repetitions.
func (in *interner) list(n int, at func(int) string) []string {
	if n == 0 {
		return nil
	}
	if n == 1 && len(in.last) == 1 && in.last[0] == at(0) {
		return in.last
	}
	var list []string
	for i := range n {
		if name := in.intern(at(i)); name != "" {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	in.last = slices.Clip(slices.Compact(list))
	return in.last
}

// equal says whether two slices are worth the same.
func (s *slice) equal(other *slice) bool {
	return s.id == other.id && s.service == other.service && s.headless == other.headless &&
		slices.Equal(s.problems, other.problems) && slices.Equal(s.unnumbered, other.unnumbered) &&
		slices.EqualFunc(s.endpoints, other.endpoints, func(a, b Endpoint) bool { return equalEndpoints(&a, &b) })
}
