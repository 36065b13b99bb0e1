package app

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/endpointd/endpointd/internal/controller/nodedns"
	"github.com/endpointd/endpointd/internal/dns/zone"
	"github.com/endpointd/endpointd/internal/model"
)

// expectNames has the Node go on telling of the DNS server if an earlier run's sockets collect questions for it: clients are to be led there meanwhile.
func (a *agent) expectNames() { a.answering.Store(a.o.DNSPort != 0 && a.kept.Has(keptNames)) }

// makeNames makes the node's DNS server, if it is to have one. That another program has the port costs no more than this.
func (a *agent) makeNames(ctx context.Context) {
	if a.o.DNSPort == 0 {
		return
	}
	o := namesOptions{NamesOptions: a.o.Names, pods: a.o.PodCIDRs, servers: a.o.ClusterDNS, namespace: a.own.namespace, podExists: a.podExists, kept: a.kept, log: a.o.Logger}
	if len(o.servers) == 0 {
		o.servers = a.o.Addrs
	}
	for _, addr := range a.o.Addrs {
		o.Listen = append(o.Listen, netip.AddrPortFrom(addr, a.o.DNSPort))
	}
	o.Domain = a.o.Domain
	n, err := newNames(ctx, o)
	if (n == nil || !n.server.Inherited()) && a.answering.CompareAndSwap(true, false) {
		a.registry.Refresh()
	}
	if err != nil {
		a.noNames = fmt.Errorf("names of Services are not answered here: %w; --dns-port chooses another port, or 0 for none", err)
		a.o.Logger.Warn("names of Services are not answered here; --dns-port chooses another port, or 0 for none", "err", err)
		return
	}
	a.names, a.plane.names = n, n
	if len(a.o.ClusterDNS) == 0 && a.o.DNSPort == dnsPort { // no resolver takes another port
		a.o.ClusterDNS = a.o.Addrs
	}
}

// runNames has the DNS server answer until all other parts have ended, which may take their clients' time: so nobody waits for its next run longer
// than for the agent to start.
func (a *agent) runNames(ctx context.Context) {
	last, end := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.names.run(last); last.Err() == nil {
			a.fail(fmt.Errorf("DNS: %w", err))
		}
	}()
	a.endNames = func() {
		end()
		<-done
	}
}

// setNames answers from a Snapshot from now on, and has the API know of the server when there is the first one.
func (a *agent) setNames(s *model.Snapshot) {
	if a.names == nil {
		return
	}
	a.names.set(s)
	if a.answering.CompareAndSwap(false, true) {
		a.registry.Refresh()
	}
}

// annotations are those of the Node.
func (a *agent) annotations() map[string]string {
	port := ""
	if a.answering.Load() {
		port = strconv.Itoa(int(a.o.DNSPort))
	}
	return map[string]string{nodedns.Annotation: port}
}

// ownPods knows the addresses of this node's pods.
type ownPods struct {
	mu     sync.RWMutex
	byAddr map[netip.Addr]ownPod
}

type ownPod struct {
	uid       types.UID
	namespace string
}

// changed takes in a change of a pod; either may be nil. Pods on the node's own network have no address of their own.
func (p *ownPods) changed(was, now *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byAddr == nil {
		p.byAddr = map[netip.Addr]ownPod{}
	}
	if was != nil {
		for _, addr := range podAddrs(was) {
			if p.byAddr[addr].uid == was.UID {
				delete(p.byAddr, addr)
			}
		}
	}
	if now != nil && !now.Spec.HostNetwork && now.Status.Phase != corev1.PodSucceeded && now.Status.Phase != corev1.PodFailed {
		for _, addr := range podAddrs(now) {
			p.byAddr[addr] = ownPod{now.UID, now.Namespace}
		}
	}
}

func podAddrs(pod *corev1.Pod) []netip.Addr {
	var addrs []netip.Addr
	for _, ip := range pod.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs
}

func (p *ownPods) namespace(addr netip.Addr) (string, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	pod, ok := p.byAddr[addr]
	return pod.namespace, ok
}

// podExists says whether a namespace has a pod with an address that no endpoint has told of: of its own pods an agent knows, and for another
// node's pods it asks the DNS server there.
func (a *agent) podExists(ctx context.Context, namespace string, addr netip.Addr) (bool, error) {
	if own, ok := a.own.namespace(addr); ok {
		return own == namespace, nil
	}
	if contains(a.o.PodCIDRs, addr) {
		return false, nil
	}
	for _, n := range a.nodes.List() {
		p, port := peer(n), n.Annotations[nodedns.Annotation]
		if n.Name == a.o.Name || !contains(p.PodCIDRs, addr) || len(p.Addrs) == 0 || port == "" {
			continue
		}
		return askForPod(ctx, p.Addrs[0].String(), port, namespace, a.o.Domain, addr)
	}
	return false, nil // of what runs elsewhere nobody knows but its endpoints
}

// askForPod asks a node for the record of one of its pods.
func askForPod(ctx context.Context, server, port, namespace, domain string, addr netip.Addr) (bool, error) {
	rtype := dns.TypeA
	if addr.Is6() {
		rtype = dns.TypeAAAA
	}
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(string(zone.AppendDashed(nil, addr))+"."+namespace+".pod."+domain), rtype)
	m.RecursionDesired = false
	answer, _, err := new(dns.Client).ExchangeContext(ctx, m, net.JoinHostPort(server, port))
	if err != nil {
		return false, fmt.Errorf("ask %s for a pod with %s: %w", server, addr, err)
	}
	switch answer.Rcode {
	case dns.RcodeSuccess:
		return slices.ContainsFunc(answer.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == rtype }), nil
	case dns.RcodeNameError:
		return false, nil
	}
	return false, fmt.Errorf("ask %s for a pod with %s: the answer is %s", server, addr, dns.RcodeToString[answer.Rcode])
}
