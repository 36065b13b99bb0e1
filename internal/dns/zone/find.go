package zone

import (
	"bytes"
	"net/netip"
	"slices"
	"sort"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// A name is a wire name in lower case, and where its labels begin. It has its own array, so that it needs no heap.
type name struct {
	buf [wire.MaxName]byte
	at  [wire.MaxName/2 + 1]uint8
	len int
	n   int // labels, without the root
}

// set makes it another name, in lower case.
func (n *name) set(from []byte) {
	n.len = len(wire.AppendLower(n.buf[:0], from))
	n.n = 0
	for at := 0; n.buf[at] != 0; at += 1 + int(n.buf[at]) {
		n.at[n.n] = uint8(at)
		n.n++
	}
}

func (n *name) bytes() []byte { return n.buf[:n.len] }

// labels i to j, without j, as on the wire.
func (n *name) labels(i, j int) []byte {
	end := n.len - 1
	if j < n.n {
		end = int(n.at[j])
	}
	return n.buf[n.at[i]:end]
}

// within says how many labels there are below a domain, negative if the name is not in it.
func (n *name) within(domain []byte, labels int) int {
	below := n.n - labels
	if below < 0 || !bytes.HasSuffix(n.bytes(), domain) || int(n.at[below]) != n.len-len(domain) {
		return -1
	}
	return below
}

// Kinds of what there can be at a name of the domain.
type kind uint8

const (
	nothing kind = iota // nor below it
	empty               // there is something below it
	apex
	version   // dns-version
	server    // ns.dns
	itself    // a Service
	endpoint  // of a Service
	portOf    // of a Service
	pod       // a pod that exists
	maybeAPod // one that the Snapshot does not know
)

// A place is what there is at a name.
type place struct {
	kind
	service *service   // that it is of; nil if none
	addrs   *addrs     // of itself or endpoint
	srv     *srvs      // of itself or port
	addr    netip.Addr // of a pod
}

// find looks up a name of the domain, of which so many labels are below it.
func (z *Zone) find(n *name, below int) place {
	if below == 0 {
		return place{kind: apex}
	}
	tree := n.labels(below-1, below)
	switch {
	case string(tree) == "\x03svc":
		return z.findService(n, below-1)
	case string(tree) == "\x03pod":
		return z.findPod(n, below-1)
	case string(tree) == "\x0bdns-version" && below == 1:
		return place{kind: version}
	case string(tree) == "\x03dns" && below == 1:
		return place{kind: empty}
	case string(tree) == "\x03dns" && below == 2 && string(n.labels(0, 1)) == "\x02ns":
		return place{kind: server}
	}
	return place{}
}

// findService looks up a name of which so many labels are below svc.
func (z *Zone) findService(n *name, below int) place {
	switch below {
	case 0:
		return place{kind: empty}
	case 1:
		if _, _, ok := z.namespaces.Get(n.labels(0, 1)); ok {
			return place{kind: empty}
		}
		return place{}
	}
	s, _, _ := z.services.Get(n.labels(below-2, below))
	if s == nil {
		return place{}
	}
	missing := place{service: s}
	if !s.exists {
		return missing
	}
	switch below {
	case 2:
		return place{kind: itself, service: s, addrs: &s.addrs, srv: &s.srv}
	case 3:
		label := n.labels(0, 1)
		if slices.ContainsFunc(s.protocols, func(p []byte) bool { return bytes.Equal(p, label) }) {
			return place{kind: empty, service: s}
		}
		// That of package slices would have the label escape.
		at, ok := sort.Find(len(s.targets), func(i int) int { return bytes.Compare(label, s.targets[i].label()) })
		if ok {
			return place{kind: endpoint, service: s, addrs: &s.targets[at].addrs}
		}
	case 4:
		labels := n.labels(0, 2)
		at, ok := sort.Find(len(s.ports), func(i int) int { return bytes.Compare(labels, s.ports[i].labels) })
		if ok {
			return place{kind: portOf, service: s, srv: &s.ports[at].srv}
		}
	}
	return missing
}

// findPod looks up a name of which so many labels are below pod.
func (z *Zone) findPod(n *name, below int) place {
	switch below {
	case 0, 1:
		return place{kind: empty}
	case 2:
	default:
		return place{}
	}
	addr, ok := parseDashed(n.labels(0, 1)[1:])
	if !ok {
		return place{}
	}
	p := place{kind: maybeAPod, addr: addr}
	key := addr.As16()
	pods, _, _ := z.pods.Get(key[:])
	for i := range pods {
		if pods[i].namespace == string(n.podNamespace()) {
			p.kind = pod
		}
	}
	return p
}

// podNamespace is that of a name of a pod. It is not in place, which would have the name escape.
func (n *name) podNamespace() []byte { return n.labels(1, 2)[1:] }

// Search completes a name of a client's search path, as autopath of CoreDNS does. If name is <rest>.<namespace>.svc.<domain>, and neither that nor
// <rest>.svc.<domain> nor <rest>.<domain> exists, then rest is what the client will ask for in the end: a wire name in lower case, appended to
// dst. A name that could be a pod's might exist.
func (z *Zone) Search(dst, from []byte, namespace string) (rest []byte, ok bool) {
	if z.snapshot == nil {
		return dst, false
	}
	var n, candidate name
	n.set(from)
	below := n.within(z.domain, z.labels)
	if below < 3 || string(n.labels(below-1, below)) != "\x03svc" || string(n.labels(below-2, below-1)[1:]) != namespace {
		return dst, false
	}
	if z.find(&n, below).kind != nothing {
		return dst, false
	}
	path := n.labels(0, below-2)
	for _, tree := range [...]string{"\x03svc", ""} {
		var buf [wire.MaxName]byte // it is shorter than the name
		candidate.set(append(append(append(buf[:0], path...), tree...), z.domain...))
		if z.find(&candidate, candidate.n-z.labels).kind != nothing {
			return dst, false
		}
	}
	return append(append(dst, path...), 0), true
}
