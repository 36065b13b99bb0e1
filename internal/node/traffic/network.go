package traffic

import (
	"cmp"
	"context"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/model"
)

// info is what the Network needs of a Node.
type info struct {
	zone     string
	addrs    []netip.Addr // InternalIPs
	podCIDRs []netip.Prefix
}

func infoOf(n *corev1.Node) info {
	i := info{zone: n.Labels[corev1.LabelTopologyZone]}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); a.Type == corev1.NodeInternalIP && err == nil {
			i.addrs = append(i.addrs, ip.Unmap())
		}
	}
	texts := n.Spec.PodCIDRs
	if len(texts) == 0 && n.Spec.PodCIDR != "" {
		texts = []string{n.Spec.PodCIDR}
	}
	i.podCIDRs = prefixes(texts)
	return i
}

// prefixes leaves out what is none.
func prefixes(texts []string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			all = append(all, p.Masked())
		}
	}
	return all
}

// slim drops what is large and nobody here needs.
func slim(n *corev1.Node) {
	maps.DeleteFunc(n.Annotations, func(key, _ string) bool { return !strings.HasPrefix(key, "endpointd.io/") })
	n.Status.Images, n.Status.Capacity, n.Status.Allocatable = nil, nil, nil
	n.Status.VolumesInUse, n.Status.VolumesAttached = nil, nil
}

func (t *Traffic) nodeChanged(was, now *corev1.Node) {
	name, next := "", info{}
	if now != nil {
		name, next = now.Name, infoOf(now)
	} else {
		name = was.Name
	}
	t.mu.Lock()
	known, ok := t.members[name]
	same := now != nil && ok && reflect.DeepEqual(known, next)
	t.mu.Unlock()
	if !same {
		t.change(func() {
			t.networkChanged()
			switch {
			case now != nil:
				t.members[name] = next
			case name != t.o.Node: // of itself a node knows what it knew
				delete(t.members, name)
			}
		})
	}
	if t.o.NodeChanged != nil {
		t.o.NodeChanged(was, now)
	}
}

// networkChanged has the Network be looked at again. t.mu is held.
func (t *Traffic) networkChanged() { t.network = true }

// settleNetwork puts the Network into the input if it may be another. It reports false while the node does not know its own addresses. t.mu is held.
func (t *Traffic) settleNetwork() bool {
	own := t.members[t.o.Node]
	addrs := t.o.Addrs
	if len(addrs) == 0 {
		addrs = own.addrs
	}
	if len(addrs) == 0 {
		return false
	}
	if !t.network {
		return true
	}
	t.network = false
	n := model.Network{
		Node: t.o.Node, Zone: own.zone,
		NodePortAddrs: t.o.NodePorts.resolve(addrs, t.local),
		PodCIDRs:      t.o.PodCIDRs, ClusterCIDRs: t.o.ClusterCIDRs,
	}
	if len(n.PodCIDRs) == 0 {
		n.PodCIDRs = own.podCIDRs
	}
	n.NodePodCIDRs = slices.Clone(n.PodCIDRs)
	for _, m := range t.members {
		n.NodePodCIDRs = append(n.NodePodCIDRs, m.podCIDRs...)
	}
	if len(n.ClusterCIDRs) == 0 {
		n.ClusterCIDRs = n.NodePodCIDRs
	}
	for _, r := range t.ranges.List() {
		n.ServiceCIDRs = append(n.ServiceCIDRs, prefixes(r.Spec.CIDRs)...)
	}
	n.PodCIDRs, n.ClusterCIDRs = inOrder(n.PodCIDRs), inOrder(n.ClusterCIDRs)
	n.NodePodCIDRs, n.ServiceCIDRs = inOrder(n.NodePodCIDRs), inOrder(n.ServiceCIDRs)
	t.in = t.in.WithNetwork(n)
	return true
}

// inOrder is a sorted copy without what is there twice.
func inOrder(all []netip.Prefix) []netip.Prefix {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(all)
}

// watchRanges follows ServiceCIDRs if they can be read. A cluster may not have them (before Kubernetes 1.33), and a role not the right.
func (t *Traffic) watchRanges(ctx context.Context) {
	const pause = 500 * time.Millisecond
	for {
		limited, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := t.o.Client.NetworkingV1().ServiceCIDRs().List(limited, metav1.ListOptions{Limit: 1})
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case apierrors.IsForbidden(err) || apierrors.IsNotFound(err):
			t.log.Info("the ranges of ClusterIPs are not known, so that an address there that no Service has is no concern of this node", "err", err)
			close(t.asked)
			return
		case err == nil:
			synced := make(chan struct{})
			go func() {
				defer close(synced)
				select {
				case <-t.ranges.Synced():
					close(t.asked)
				case <-ctx.Done():
				}
			}()
			_ = t.ranges.Run(ctx) // never fails
			<-synced
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// interfacesPeriod is how often this machine's addresses are looked at, if NodePorts are on more than the primary ones.
const interfacesPeriod = 2 * time.Second

func (t *Traffic) watchInterfaces(ctx context.Context) {
	tick := time.NewTicker(interfacesPeriod)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.lookAtInterfaces()
		case <-ctx.Done():
			return
		}
	}
}

func (t *Traffic) lookAtInterfaces() {
	addrs, err := t.o.Interfaces()
	if err != nil {
		t.log.Warn("addresses of this machine, for NodePorts", "err", err)
		return
	}
	t.mu.Lock()
	same := slices.Equal(addrs, t.local)
	t.mu.Unlock()
	if !same {
		t.change(func() {
			t.networkChanged()
			t.local = addrs
		})
	}
}

// interfaces are the addresses of this machine, sorted.
func interfaces() ([]netip.Addr, error) {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, a := range found {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			addrs = append(addrs, p.Addr().Unmap().WithZone(""))
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), nil
}
