package conntrack

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/endpointd/endpointd/internal/model"
)

type frontend = model.FrontendKey

// world is like a Snapshot.
type world struct {
	services map[model.ServiceKey]*model.Service
	owners   map[frontend]*model.Service
	network  model.Network
}

func newWorld(services ...*model.Service) *world {
	w := &world{services: map[model.ServiceKey]*model.Service{}, owners: map[frontend]*model.Service{}, network: model.Network{
		NodePortAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		ServiceCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
	}}
	for _, s := range services {
		w.services[s.Key] = s
		for _, p := range s.Ports {
			for _, f := range p.Frontends {
				w.owners[f.FrontendKey] = s
			}
		}
	}
	return w
}

func (w *world) Owner(key frontend) *model.Service           { return w.owners[key] }
func (w *world) Service(key model.ServiceKey) *model.Service { return w.services[key] }

// changed are the Services that differ from those of another world.
func (w *world) changed(was *world) iter.Seq[model.ServiceKey] {
	return func(yield func(model.ServiceKey) bool) {
		for key, s := range w.services {
			if (was == nil || was.services[key] != s) && !yield(key) {
				return
			}
		}
		if was == nil {
			return
		}
		for key := range was.services {
			if w.services[key] == nil && !yield(key) {
				return
			}
		}
	}
}

// service makes one from words:
//
//	name         of the Service
//	udp:ADDR     a frontend; also tcp: and sctp:
//	>ADDR        an endpoint that is ready; >ADDR,drains is terminating, >ADDR,unready does not serve, >ADDR,far is in another zone, and
//	             >ADDR,dead is one whose process this node saw end; >ADDR,only does not serve and is in the pool
//	from:PREFIX  a source range of all frontends
//	other:ADDR   a ClusterIP that another proxy forwards
func service(words string) *model.Service {
	fields := strings.Fields(words)
	s := &model.Service{Key: model.ServiceKey{Namespace: "default", Name: fields[0]}}
	ports := map[model.Protocol]*model.Port{}
	pools := map[poolOf]*model.Pool{}
	var ranges []netip.Prefix
	for _, word := range fields[1:] {
		kind, rest, _ := strings.Cut(word, ":")
		if protocol, ok := map[string]model.Protocol{"udp": model.UDP, "tcp": model.TCP, "sctp": model.SCTP}[kind]; ok {
			addr := netip.MustParseAddrPort(rest)
			if ports[protocol] == nil {
				ports[protocol] = &model.Port{Name: kind, Protocol: protocol, Number: addr.Port()}
				s.Ports = append(s.Ports, ports[protocol])
			}
			of := poolOf{protocol, addr.Addr().Is6()}
			if pools[of] == nil {
				pools[of] = &model.Pool{}
			}
			ports[protocol].Frontends = append(ports[protocol].Frontends, model.Frontend{
				FrontendKey: frontend{Addr: addr.Addr(), Protocol: protocol, Port: addr.Port()}, Internal: pools[of], External: pools[of],
			})
		} else if kind == "from" {
			ranges = append(ranges, netip.MustParsePrefix(rest))
		} else if kind == "other" {
			s.OtherProxy, s.ClusterIPs = "somebody", append(s.ClusterIPs, netip.MustParseAddr(rest))
		}
	}
	for _, word := range fields[1:] {
		if addr, ok := strings.CutPrefix(word, ">"); ok {
			addEndpoint(s, pools, addr)
		}
	}
	for _, p := range s.Ports {
		slices.SortFunc(p.Frontends, func(a, b model.Frontend) int { return a.Compare(b.FrontendKey) })
		for i := range p.Frontends {
			p.Frontends[i].SourceRanges = ranges
		}
	}
	slices.SortFunc(s.Endpoints, func(a, b *model.Endpoint) int {
		return cmp.Or(cmp.Compare(a.PortName, b.PortName), cmp.Compare(a.Protocol, b.Protocol), a.AddrPort.Compare(b.AddrPort))
	})
	for _, p := range pools {
		slices.SortFunc(p.Endpoints, func(a, b *model.Endpoint) int { return a.AddrPort.Compare(b.AddrPort) })
	}
	return s
}

type poolOf struct {
	protocol model.Protocol
	v6       bool
}

func addEndpoint(s *model.Service, pools map[poolOf]*model.Pool, word string) {
	addr, condition, _ := strings.Cut(word, ",")
	for _, p := range s.Ports {
		e := &model.Endpoint{AddrPort: netip.MustParseAddrPort(addr), PortName: p.Name, Protocol: p.Protocol, Ready: true, Serving: true}
		pooled := false
		switch condition {
		case "":
			pooled = true
		case "drains":
			e.Ready, e.Terminating, e.Reason = false, true, model.Terminating
		case "unready":
			e.Ready, e.Serving, e.Reason = false, false, model.NotReady
		case "far":
			e.Reason = model.OtherZone
		case "dead":
			e.Reason = model.LocalDead
		case "only":
			e.Ready, e.Serving, pooled = false, false, true
		default:
			panic(word)
		}
		s.Endpoints = append(s.Endpoints, e)
		if pool := pools[poolOf{p.Protocol, e.Addr().Is6()}]; pooled && pool != nil {
			pool.Endpoints = append(pool.Endpoints, e)
		}
	}
}

// flowOf makes one from words: "udp SRC DST ENDPOINT", with " answered" perhaps.
func flowOf(words string) *flow {
	fields := strings.Fields(words)
	f := &flow{
		protocol: map[string]model.Protocol{"udp": model.UDP, "tcp": model.TCP, "sctp": model.SCTP}[fields[0]],
		src:      netip.MustParseAddrPort(fields[1]), dst: netip.MustParseAddrPort(fields[2]), endpoint: netip.MustParseAddrPort(fields[3]),
	}
	if slices.Contains(fields, "answered") {
		f.status |= statusSeenReply
	}
	return f
}

func show(key frontend) string {
	return map[model.Protocol]string{model.UDP: "udp", model.TCP: "tcp", model.SCTP: "sctp"}[key.Protocol] + ":" +
		netip.AddrPortFrom(key.Addr, key.Port).String()
}

func (f *flow) String() string {
	return fmt.Sprintf("%d %v → %v (%v), status %s", f.protocol, f.src, f.dst, f.endpoint, strconv.FormatUint(uint64(f.status), 2))
}
