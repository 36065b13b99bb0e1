package mirror

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	netutils "k8s.io/utils/net"
)

// group is ports and the addresses that all of them are offered by.
type group struct {
	ports   []corev1.EndpointPort // in the order of the subsets; none if the subset had none
	members []member              // ready ones first, then by address and target
}

// member is one address of a group.
type member struct {
	ip    netip.Addr
	from  *corev1.EndpointAddress // of the informer's object: read only
	ready bool
}

// host identifies an address within one Endpoints object. Several targets may
// share an IP address.
type host struct {
	ip        netip.Addr
	namespace string
	name      string
	uid       string
}

func (h host) compare(o host) int {
	return cmp.Or(h.ip.Compare(o.ip), cmp.Compare(h.namespace, o.namespace), cmp.Compare(h.name, o.name), cmp.Compare(h.uid, o.uid))
}

// port is an EndpointPort that can be compared.
type port struct {
	name, protocol string
	number         int32
	app            string
	hasApp         bool
}

// noPort stands for the ports of a subset that has none.
func noPort() port { return port{number: -1} }

func portOf(p *corev1.EndpointPort) port {
	out := port{name: p.Name, protocol: string(p.Protocol), number: p.Port}
	if p.AppProtocol != nil {
		out.app, out.hasApp = *p.AppProtocol, true
	}
	return out
}

// offer is one port and who offers it.
type offer struct {
	port  *corev1.EndpointPort // nil for noPort
	hosts map[host]bool        // host → whether it is ready
}

// repack brings the subsets together port by port, then joins the ports that
// the same hosts offer in the same readiness (the canonical form of Endpoints,
// as upstream repacks them). It also gives what is no IP address.
func repack(subsets []corev1.EndpointSubset) (groups []group, invalid []string) {
	r := repacker{offers: map[port]*offer{}, first: map[host]*corev1.EndpointAddress{}, invalid: map[string]struct{}{}}
	for i := range subsets {
		r.addSubset(&subsets[i])
	}
	joined := map[string]int{} // hosts → index in groups
	for _, o := range r.order {
		hosts := slices.SortedFunc(maps.Keys(o.hosts), host.compare)
		if len(hosts) == 0 {
			continue
		}
		id := r.identify(hosts, o.hosts)
		i, ok := joined[id]
		if !ok {
			i = len(groups)
			joined[id] = i
			groups = append(groups, group{members: r.members(hosts, o.hosts)})
		}
		if o.port != nil {
			groups[i].ports = append(groups[i].ports, *o.port)
		}
	}
	return groups, slices.Sorted(maps.Keys(r.invalid))
}

type repacker struct {
	offers  map[port]*offer
	order   []*offer // of offers, as the subsets have them
	first   map[host]*corev1.EndpointAddress
	numbers map[host]uint32
	invalid map[string]struct{}
}

func (r *repacker) addSubset(sub *corev1.EndpointSubset) {
	var offers []*offer
	for i := range sub.Ports {
		offers = append(offers, r.offer(portOf(&sub.Ports[i]), &sub.Ports[i]))
	}
	if len(offers) == 0 {
		offers = append(offers, r.offer(noPort(), nil))
	}
	for i := range sub.Addresses {
		r.addAddress(&sub.Addresses[i], offers, true)
	}
	for i := range sub.NotReadyAddresses {
		r.addAddress(&sub.NotReadyAddresses[i], offers, false)
	}
}

func (r *repacker) offer(p port, from *corev1.EndpointPort) *offer {
	o := r.offers[p]
	if o == nil {
		o = &offer{port: from, hosts: map[host]bool{}}
		r.offers[p] = o
		r.order = append(r.order, o)
	}
	return o
}

func (r *repacker) addAddress(a *corev1.EndpointAddress, offers []*offer, ready bool) {
	// Leading zeros are accepted because old Endpoints have them (KEP-4858).
	ip, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(a.IP))
	if !ok {
		r.invalid[a.IP] = struct{}{}
		return
	}
	h := host{ip: ip.Unmap()}
	if t := a.TargetRef; t != nil {
		h.namespace, h.name, h.uid = t.Namespace, t.Name, string(t.UID)
	}
	if r.first[h] == nil {
		r.first[h] = a
	}
	for _, o := range offers {
		if was, known := o.hosts[h]; !known || was {
			o.hosts[h] = ready // not ready wins
		}
	}
}

// identify gives equal strings for equal sets of hosts in equal readiness.
func (r *repacker) identify(hosts []host, ready map[host]bool) string {
	if r.numbers == nil {
		r.numbers = make(map[host]uint32, len(r.first))
	}
	id := make([]byte, 0, 5*len(hosts))
	for _, h := range hosts {
		n, ok := r.numbers[h]
		if !ok {
			n = uint32(len(r.numbers))
			r.numbers[h] = n
		}
		id = binary.BigEndian.AppendUint32(id, n)
		if ready[h] {
			id = append(id, 1)
		} else {
			id = append(id, 0)
		}
	}
	return string(id)
}

func (r *repacker) members(hosts []host, ready map[host]bool) []member {
	out := make([]member, 0, len(hosts))
	for _, want := range []bool{true, false} {
		for _, h := range hosts {
			if ready[h] == want {
				out = append(out, member{ip: h.ip, from: r.first[h], ready: want})
			}
		}
	}
	return out
}

func (m member) family() discovery.AddressType {
	if m.ip.Is4() {
		return discovery.AddressTypeIPv4
	}
	return discovery.AddressTypeIPv6
}

// endpoint is the address as slices have it. It shares the target with the
// Endpoints object.
func (m member) endpoint() *discovery.Endpoint {
	e := &discovery.Endpoint{
		Addresses:  []string{m.ip.String()},
		Conditions: discovery.EndpointConditions{Ready: new(m.ready)},
		TargetRef:  m.from.TargetRef,
		NodeName:   m.from.NodeName,
	}
	if m.from.Hostname != "" {
		e.Hostname = new(m.from.Hostname)
	}
	return e
}
