package zone

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/model"
)

// An oracle answers as a Zone should, from a table of all records: name → type → what follows the type in a zone file, by a program so simple that
// one sees that it is right.
type oracle struct {
	records  map[string]map[string][]string
	ttl      map[string]int  // name → of its records
	above    map[string]bool // names of records, and all above them
	negative map[string]int  // name → of answers that there is none, if it is not 5: of a Service and what is below
	network  model.Network
	zones    map[string]string // name → of its reverse zone, once found
}

const domain = "cluster.local."

func newOracle(s *model.Snapshot, serial uint32) *oracle {
	o := &oracle{records: map[string]map[string][]string{}, ttl: map[string]int{}, negative: map[string]int{}, network: s.Network}
	o.above, o.zones = map[string]bool{}, map[string]string{}
	soa := fmt.Sprintf("ns.dns.cluster.local. hostmaster.cluster.local. %d 30 10 86400 5", serial)
	o.add(domain, 5, "SOA", soa)
	o.add(domain, 5, "NS", "ns.dns.cluster.local.")
	o.add("dns-version."+domain, 28800, "TXT", `"1.1.0"`)
	o.add("ns.dns."+domain, 5, "A", "10.96.0.10")
	o.add("ns.dns."+domain, 5, "AAAA", "fd00::a")
	for service := range s.Services() {
		if label(service.Key.Namespace) && label(service.Key.Name) {
			o.service(service)
		}
	}
	return o
}

func label(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func (o *oracle) add(name string, ttl int, rtype, data string) {
	if o.records[name] == nil {
		o.records[name] = map[string][]string{}
		for rest := name; rest != ""; _, rest, _ = strings.Cut(rest, ".") {
			o.above[rest] = true
		}
	}
	if !slices.Contains(o.records[name][rtype], data) {
		o.records[name][rtype] = append(o.records[name][rtype], data)
	}
	if was, ok := o.ttl[name]; !ok || ttl < was {
		o.ttl[name] = ttl
	}
}

func (o *oracle) addr(name string, ttl int, addr netip.Addr) {
	o.add(name, ttl, map[bool]string{true: "A", false: "AAAA"}[addr.Is4()], addr.String())
}

func (o *oracle) pointer(addr netip.Addr, ttl int, name string) {
	reverse, _ := dns.ReverseAddr(addr.String())
	o.add(reverse, ttl, "PTR", name)
}

func dashes(addr netip.Addr) string {
	text := strings.NewReplacer(".", "-", ":", "-").Replace(addr.String())
	if strings.HasSuffix(text, "-") {
		text += "0"
	}
	return text
}

func (o *oracle) service(s *model.Service) {
	name := s.Key.Name + "." + s.Key.Namespace + ".svc." + domain
	ttl := 5
	if s.TTL >= 0 {
		ttl = int(s.TTL.Seconds())
	}
	o.negative[name] = min(ttl, 5)
	for _, e := range s.Endpoints {
		if e.Target.Kind == "Pod" && e.Addr().IsValid() {
			o.addr(dashes(e.Addr())+"."+s.Key.Namespace+".pod."+domain, 5, e.Addr())
		}
	}
	var entries []string // of SRV, with repetitions, for the weight: name, port, target
	switch s.Kind {
	case model.ExternalName:
		if s.ExternalName != "" {
			o.add(name, ttl, "CNAME", s.ExternalName+".")
		}
		return
	case model.ClusterIP:
		for _, addr := range s.ClusterIPs {
			o.addr(name, ttl, addr)
			o.pointer(addr, ttl, name)
			for _, p := range s.Ports {
				entries = append(entries, srvOwner(p.Name, p.Protocol, name)+fmt.Sprintf(" %d %s", p.Number, name))
			}
		}
	case model.Headless:
		for _, e := range s.Endpoints {
			if e.Reason != model.None {
				continue
			}
			host := e.Hostname
			if !label(host) {
				host = dashes(e.Addr())
			}
			host += "." + name
			o.addr(name, ttl, e.Addr())
			o.addr(host, ttl, e.Addr())
			o.pointer(e.Addr(), ttl, host)
			if e.Port() != 0 && e.Protocol != 0 {
				entries = append(entries, srvOwner(e.PortName, e.Protocol, name)+fmt.Sprintf(" %d %s", e.Port(), host))
			}
		}
	}
	byOwner := map[string][]string{}
	for _, entry := range entries {
		owner, data, _ := strings.Cut(entry, " ")
		if owner != "" {
			byOwner[owner] = append(byOwner[owner], data)
		}
		byOwner[name] = append(byOwner[name], data)
	}
	for owner, list := range byOwner {
		for _, data := range list {
			o.add(owner, ttl, "SRV", fmt.Sprintf("0 %d %s", max(100/len(list), 1), data))
		}
	}
}

func srvOwner(port string, protocol model.Protocol, service string) string {
	if !label(port) {
		return ""
	}
	return "_" + port + "._" + strings.ToLower(protocol.String()) + "." + service
}

// exists says whether there is something at a name or below it.
func (o *oracle) exists(name string) bool {
	if slices.Contains([]string{"svc." + domain, "pod." + domain}, name) || strings.Count(name, ".") == 4 && strings.HasSuffix(name, ".pod."+domain) {
		return true
	}
	return o.above[name]
}

// an expectation is an answer, its records sorted.
type expectation struct {
	outcome OutcomeKind
	rcode   string
	answer  []string
	ttl     int // of the SOA; -1 = there is none
	zone    string
}

// answer a question; name is in lower case.
func (o *oracle) answer(name, rtype string) expectation {
	want := expectation{rcode: "NOERROR", ttl: -1, zone: domain}
	if !strings.HasSuffix("."+name, "."+domain) {
		if want.zone = o.reverseZone(name); want.zone == "" {
			return expectation{outcome: NotOurs}
		}
	}
	seen := map[string]bool{}
	for len(o.records[name]["CNAME"]) > 0 {
		target := o.records[name]["CNAME"][0]
		want.answer = append(want.answer, fmt.Sprintf("%s %d CNAME %s", name, o.ttl[name], target))
		seen[name] = true
		name = strings.ToLower(target)
		if rtype == "CNAME" || seen[name] {
			return want
		}
		if !strings.HasSuffix("."+name, "."+domain) {
			want.outcome = Follow
			return want
		}
	}
	if o.unknownPod(name) {
		return expectation{outcome: AskPod}
	}
	owner := name
	if addr, namespace, ok := podOf(name); ok { // in any form of the address
		name = dashes(addr) + "." + namespace + ".pod." + domain
	}
	for _, data := range o.records[name][rtype] {
		want.answer = append(want.answer, fmt.Sprintf("%s %d %s %s", owner, o.ttl[name], rtype, data))
	}
	if len(o.records[name][rtype]) == 0 && name == want.zone && name != domain && (rtype == "SOA" || rtype == "NS") {
		want.answer = append(want.answer, fmt.Sprintf("%s 5 %s %s", name, rtype, o.records[domain][rtype][0]))
		return want
	}
	slices.Sort(want.answer)
	if len(o.records[name][rtype]) > 0 {
		return want
	}
	if !o.exists(name) && name != want.zone {
		want.rcode = "NXDOMAIN"
	}
	want.ttl = 5
	for service, ttl := range o.negative {
		if name == service || strings.HasSuffix(name, "."+service) {
			want.ttl = ttl
		}
	}
	return want
}

// unknownPod says whether a name is that of a pod that the Snapshot does not know.
func (o *oracle) unknownPod(name string) bool {
	addr, namespace, ok := podOf(name)
	return ok && len(o.records[dashes(addr)+"."+namespace+".pod."+domain]) == 0
}

// podOf reads the name of a pod.
func podOf(name string) (netip.Addr, string, bool) {
	labels := strings.Split(strings.TrimSuffix(name, ".pod."+domain), ".")
	if !strings.HasSuffix(name, ".pod."+domain) || len(labels) != 2 {
		return netip.Addr{}, "", false
	}
	addr, err := netip.ParseAddr(strings.ReplaceAll(labels[0], "-", "."))
	if err != nil {
		addr, err = netip.ParseAddr(strings.ReplaceAll(labels[0], "-", ":"))
	}
	return addr, labels[1], err == nil
}

// reverseZone is the name of the zone that a reverse name is in, "" if it is none of ours.
func (o *oracle) reverseZone(name string) string {
	best, known := o.zones[name]
	if known {
		return best
	}
	defer func() { o.zones[name] = best }()
	for _, prefix := range slices.Concat(o.network.ServiceCIDRs, o.network.ClusterCIDRs) {
		reverse, _ := dns.ReverseAddr(prefix.Masked().Addr().String())
		labels := dns.SplitDomainName(reverse)
		unit := map[bool]int{true: 8, false: 4}[prefix.Addr().Is4()]
		asked := dns.SplitDomainName(name)
		n := (prefix.Bits() + unit - 1) / unit
		if len(asked) < n+2 {
			continue
		}
		// All zones of the range, by trying the values of the last label.
		zone := labels[len(labels)-n-2:]
		if base := strings.Join(zone[1:], ".") + "."; !strings.HasSuffix("."+name, "."+base) {
			continue
		}
		for value := range 1 << unit {
			zone[0] = map[int]string{4: fmt.Sprintf("%x", value), 8: fmt.Sprint(value)}[unit]
			text := strings.Join(zone, ".") + "."
			if !strings.HasSuffix("."+name, "."+text) || best != "" && len(text) >= len(best) {
				continue
			}
			if addr, ok := parseReverse(text); ok && prefix.Contains(addr) {
				best = text
			}
		}
	}
	if best == "" && len(o.records[name]["PTR"]) > 0 {
		best = name
	}
	return best
}

// parseReverse reads a reverse name, the labels that are not there as 0.
func parseReverse(name string) (netip.Addr, bool) {
	labels := dns.SplitDomainName(name)
	var text strings.Builder
	slices.Reverse(labels)
	if labels[1] == "in-addr" {
		labels = append(labels[2:], "0", "0", "0", "0")[:4]
		addr, err := netip.ParseAddr(strings.Join(labels, "."))
		return addr, err == nil
	}
	labels = append(labels[2:], strings.Split(strings.Repeat("0", 32), "")...)[:32]
	for i, digit := range labels {
		if i > 0 && i%4 == 0 {
			text.WriteString(":")
		}
		text.WriteString(digit)
	}
	addr, err := netip.ParseAddr(text.String())
	return addr, err == nil
}

// names to ask for: all there are, those above, beside and below them.
func (o *oracle) names() []string {
	set := map[string]bool{"x.a.svc." + domain: true, "a.pod." + domain: true, "10-1-0-1.a.pod." + domain: true, "fd02--1.a.pod." + domain: true,
		"fd02-0-0-1--.a.pod." + domain: true, "1.0.96.10.in-addr.arpa.": true, "5.0.1.10.in-addr.arpa.": true, "example.com.": true, "other." + domain: true}
	for owner := range o.records {
		set["below."+owner] = true
		set["_tcp."+owner] = true
		for name := owner; name != "."; {
			set[name] = true
			labels := dns.SplitDomainName(name)
			set["beside."+strings.Join(labels[1:], ".")+"."] = len(labels) > 2
			name = strings.Join(labels[1:], ".") + "."
		}
	}
	for service := range o.negative {
		set[service], set["_http._tcp."+service], set["10-1-0-1."+service] = true, true, true
	}
	delete(set, "beside..")
	return slices.Sorted(maps.Keys(set))
}
