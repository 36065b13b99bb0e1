package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/dns/forward"
	dnsserver "github.com/endpointd/endpointd/internal/dns/server"
	"github.com/endpointd/endpointd/internal/dns/zone"
	"github.com/endpointd/endpointd/internal/fdstore"
	"github.com/endpointd/endpointd/internal/model"
)

// NamesOptions say how names are answered.
type NamesOptions struct {
	// Listen are the addresses of the DNS server; none = there is no such server.
	Listen []netip.AddrPort
	Domain string // of the cluster
	// TTL of the cluster's names; 0 = the zone's default.
	TTL time.Duration
	// Upstreams are a domain → who is asked for names in it. Without "." the name servers of ResolvConf are.
	Upstreams map[string][]forward.Upstream
	// ResolvConf is the file that says which name servers and search domains this machine has.
	ResolvConf string
	// Clients may ask besides nodes and pods.
	Clients []netip.Prefix
	// Transfers may ask, too, and transfer the cluster's zone.
	Transfers []netip.Prefix
	// Log has what fits be written to the log; nil = nothing.
	Log *dnsserver.LogFilter
}

// namesOptions are those of names.
type namesOptions struct {
	NamesOptions
	pods      []netip.Prefix // of this node, from which nobody else can ask
	servers   []netip.Addr   // where clients find this server: glue of the zone's NS record, and never an upstream
	namespace func(netip.Addr) (string, bool)
	podExists func(ctx context.Context, namespace string, addr netip.Addr) (bool, error)
	kept      *fdstore.Keeper // has the sockets of an earlier run, and keeps these for the next one
	log       *slog.Logger
}

// names is the DNS server of a node, or one that runs alone.
type names struct {
	o         namesOptions
	server    *dnsserver.Server
	forwarder *forward.Forwarder
	zone      atomic.Pointer[zone.Zone] // of the last Snapshot; who calls set writes it
	first     chan struct{}             // closed when there is one
	patience  time.Duration             // of those who asked before this run, until then

	clients atomic.Pointer[clients]
	mu      sync.Mutex // guards what follows
	network *model.Network
	nodes   []netip.Addr
}

// clients are who may ask.
type clients struct {
	own   []netip.Prefix // this node's pods
	all   []netip.Prefix // and all other pods, and who was named
	nodes map[netip.Addr]struct{}
}

// newNames binds the addresses, or takes them over from an earlier run.
func newNames(ctx context.Context, o namesOptions) (*names, error) {
	n := &names{o: o, first: make(chan struct{}), patience: firstPatience}
	n.o.Clients = slices.Concat(o.Clients, o.Transfers)
	n.clients.Store(&clients{all: n.o.Clients})
	empty, err := zone.New(zone.Options{Domain: o.Domain, TTL: o.TTL, Servers: o.servers})
	if err != nil {
		return nil, err
	}
	n.zone.Store(empty)
	upstreams, searches, err := n.upstreams()
	if err != nil {
		return nil, err
	}
	if n.forwarder, err = forward.New(forward.Options{Upstreams: upstreams, Own: n.own(), Logger: o.log}); err != nil {
		return nil, err
	}
	n.server, err = dnsserver.New(ctx, dnsserver.Options{
		Listen: o.Listen, Inherited: o.kept.Take(keptNames), Zone: empty, Forwarder: dnsserver.Forward(n.forwarder), Searches: searches,
		Limits: dnsserver.Limits{Own: o.pods, Exempt: n.exempt()}, Allow: n.mayAsk, Transfer: n.mayTransfer, UDPSize: n.udpSize, Namespace: n.namespace, PodExists: o.podExists, Logger: o.log,
	})
	n.keep()
	if err != nil {
		return nil, err
	}
	if n.server.Inherited() {
		o.log.Info("names: taken over from an earlier run, with what was asked meanwhile")
	}
	return n, nil
}

// keptNames is what the DNS server's sockets are kept as.
const keptNames = "dns"

// keep has the sockets collect questions while no agent runs; without a server there is nothing to collect.
func (n *names) keep() {
	var sockets []syscall.Conn
	if n.server != nil {
		sockets = n.server.Sockets()
	}
	if err := n.o.kept.Keep(keptNames, sockets...); err != nil {
		n.o.log.Warn("what is asked while this program restarts will not be answered", "err", err)
	}
}

// tellReady tells systemd, or whatever else has started this program.
func tellReady(kept *fdstore.Keeper, log *slog.Logger) {
	if err := kept.Ready(); err != nil {
		log.Warn("who supervises this program was not told that it is ready", "err", err)
	}
}

// own are the addresses at which we answer ourselves.
func (n *names) own() []netip.AddrPort {
	own := slices.Clone(n.o.Listen)
	for _, addr := range n.o.servers {
		own = append(own, netip.AddrPortFrom(addr, dnsPort))
	}
	return own
}

const dnsPort = 53

// exempt are those whose questions are not counted: this machine.
func (n *names) exempt() []netip.Prefix {
	exempt := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	for _, l := range n.o.Listen {
		if addr := l.Addr(); !addr.IsUnspecified() {
			exempt = append(exempt, netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
	return exempt
}

// upstreams are who is asked for other names: what was said, and else this machine's name servers, but for ourselves.
func (n *names) upstreams() (all map[string][]forward.Upstream, searches []string, err error) {
	all = map[string][]forward.Upstream{}
	maps.Copy(all, n.o.Upstreams)
	config, err := dns.ClientConfigFromFile(n.o.ResolvConf)
	if err != nil {
		if all["."] == nil {
			n.o.log.Warn("no name servers of this machine: names that are not the cluster's are not resolved", "err", err)
		}
		return all, nil, nil
	}
	if all["."] == nil {
		for _, text := range config.Servers {
			u, err := forward.ParseUpstream(text)
			if err != nil {
				n.o.log.Warn("name server left out", "file", n.o.ResolvConf, "err", err)
				continue
			}
			if n.isOwn(u.Addr) {
				n.o.log.Info("name server left out: it is this one", "file", n.o.ResolvConf, "upstream", u)
				continue
			}
			all["."] = append(all["."], u)
		}
		if all["."] == nil {
			n.o.log.Warn("this machine has no other name server: names that are not the cluster's are not resolved; name one with --dns-upstream", "file", n.o.ResolvConf)
		}
	}
	for _, domain := range config.Search {
		if _, ok := dns.IsDomainName(domain); !ok {
			n.o.log.Warn("search domain left out: it is no name", "file", n.o.ResolvConf, "domain", domain)
			continue
		}
		if !dns.IsSubDomain(dns.Fqdn(n.o.Domain), dns.Fqdn(domain)) && domain != "." {
			searches = append(searches, domain)
		}
	}
	return all, searches, nil
}

// isOwn says whether we answer at an address. Who listens on all addresses does so on those of loopback, too.
func (n *names) isOwn(addr netip.AddrPort) bool {
	return slices.ContainsFunc(n.own(), func(own netip.AddrPort) bool {
		return own == addr || own.Port() == addr.Port() && own.Addr().IsUnspecified() && addr.Addr().IsLoopback()
	})
}

// set answers from a Snapshot from now on. Calls must not be at the same time.
func (n *names) set(s *model.Snapshot) {
	next := n.zone.Load().Next(s)
	n.zone.Store(next)
	n.server.SetZone(next)
	select {
	case <-n.first:
	default:
		close(n.first)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.network = &s.Network
	n.allow()
}

// programmed counts how long a change took from the API to the zone that answers so. Of a Service with an address no answer says what its endpoints are.
func (n *names) programmed(s *model.Service, trigger time.Time) {
	if s.Kind == model.Headless {
		n.server.Programmed(time.Since(trigger))
	}
}

// setNodes says which addresses the nodes have.
func (n *names) setNodes(nodes []*corev1.Node) {
	var addrs []netip.Addr
	for _, node := range nodes {
		addrs = append(addrs, peer(node).Addrs...)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes = addrs
	n.allow()
}

// allow lets nodes and pods ask. n.mu is held.
func (n *names) allow() {
	next := &clients{all: n.o.Clients, nodes: map[netip.Addr]struct{}{}}
	if n.network != nil {
		next.own, next.all = n.network.PodCIDRs, slices.Concat(next.all, n.network.ClusterCIDRs)
	}
	for _, addr := range n.nodes {
		next.nodes[addr] = struct{}{}
	}
	n.clients.Store(next)
}

func contains(ranges []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// mayAsk keeps strangers out: this is no open resolver.
func (n *names) mayAsk(client netip.Addr) bool {
	c := n.clients.Load()
	if client.IsLoopback() || contains(c.own, client) || contains(c.all, client) || slices.Contains(n.o.servers, client) {
		return true
	}
	_, isNode := c.nodes[client]
	return isNode
}

// mayTransfer is for who was named: a zone says what there is in all namespaces.
func (n *names) mayTransfer(client netip.Addr) bool { return contains(n.o.Transfers, client) }

// UDP responses to this node's pods cross no wire, so that they may be long; others get what passes everywhere (DNS Flag Day 2020).
const (
	ownUDPSize   = 4096
	otherUDPSize = 1232
)

func (n *names) udpSize(client netip.Addr) int {
	if client.IsLoopback() || contains(n.clients.Load().own, client) {
		return ownUDPSize
	}
	return otherUDPSize
}

// namespace is a client's, which this node knows of its own pods, and the Snapshot of those that are endpoints.
func (n *names) namespace(client netip.Addr) (string, bool) {
	if n.o.namespace != nil {
		if namespace, ok := n.o.namespace(client); ok {
			return namespace, true
		}
	}
	return n.zone.Load().Namespace(client)
}

// firstPatience is how long questions that were asked while nobody ran wait for the first Snapshot: clients ask again after five seconds.
const firstPatience = 3 * time.Second

// awaitFirst has them wait, where they are.
func (n *names) awaitFirst(ctx context.Context) {
	if !n.server.Inherited() {
		return
	}
	limit := time.NewTimer(n.patience)
	defer limit.Stop()
	select {
	case <-n.first:
	case <-limit.C:
	case <-ctx.Done():
	}
}

// run serves until ctx ends. Until the first Snapshot the cluster's names are answered with SERVFAIL.
func (n *names) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var work sync.WaitGroup
	work.Go(func() {
		if err := n.forwarder.Run(ctx); ctx.Err() == nil {
			cancel(fmt.Errorf("forwarder: %w", err))
		}
	})
	if n.o.Log != nil {
		work.Go(func() {
			if err := n.server.Log(ctx, *n.o.Log); err != nil {
				cancel(err)
			}
		})
	}
	n.awaitFirst(ctx)
	err := n.server.Run(ctx)
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	cancel(nil)
	work.Wait()
	return err
}
