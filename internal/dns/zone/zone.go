package zone

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/statedb/part"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/model"
)

// DefaultTTL is that of records without an annotation of their Service, CoreDNS's too.
const DefaultTTL = 5 * time.Second

// Options of a Zone.
type Options struct {
	// Domain of the cluster, such as "cluster.local".
	Domain string
	// TTL of records, and of answers that there is none; 0 = DefaultTTL, negative = 0 s. The TTL of a Service goes before it, but for answers
	// that there is none it counts only if it is lower.
	TTL time.Duration
	// Servers are the addresses at which the zone is served: what ns.dns.<domain> resolves to. Without any, that name has no records.
	Servers []netip.Addr
	// Now is what the serial of the SOA is from; nil = time.Now.
	Now func() time.Time
}

// A Zone answers from one Snapshot. It is immutable: all methods may be called from any goroutine. See [New].
type Zone struct {
	*constants
	snapshot *model.Snapshot // nil = none yet
	serial   uint32
	cuts     []cut
	index
}

// constants are what is the same for all Zones that come of one.
type constants struct {
	domain  []byte // wire name, lower case
	labels  int    // of domain
	server  []byte // name of the server, ns.dns.<domain>
	mailbox []byte
	ttl     uint32
	servers []netip.Addr // sorted
	now     func() time.Time
}

// index is what names and addresses are looked up in. Its keys are as the names are on the wire, so that a question's bytes are one.
type index struct {
	services   part.Tree[*service] // labels of Service and namespace → what they say
	namespaces part.Tree[int]      // label → how many Services in it have records
	pointers   part.Tree[[]pointer]
	pods       part.Tree[[]podsOf]
}

// New returns a Zone of no Snapshot, which answers SERVFAIL.
func New(o Options) (*Zone, error) {
	domain, err := wire.AppendName(nil, o.Domain)
	if err != nil || len(domain) < 2 {
		return nil, fmt.Errorf("cluster domain %q: this is no domain name; use one such as cluster.local", o.Domain)
	}
	c := &constants{domain: wire.AppendLower(nil, domain), now: o.Now}
	for rest := c.domain; len(rest) > 1; c.labels++ {
		_, rest = wire.Label(rest)
	}
	c.server = slices.Concat([]byte("\x02ns\x03dns"), c.domain)
	c.mailbox = slices.Concat([]byte("\x0ahostmaster"), c.domain)
	if len(c.mailbox) > wire.MaxName-len("\x04_tcp\x03svc") {
		return nil, errors.New("the cluster domain is so long that no name fits below it; use one such as cluster.local")
	}
	switch {
	case o.TTL == 0:
		c.ttl = seconds(DefaultTTL)
	case o.TTL > 0:
		c.ttl = seconds(o.TTL)
	}
	for _, addr := range o.Servers {
		if addr.IsValid() {
			c.servers = append(c.servers, addr.Unmap().WithZone(""))
		}
	}
	slices.SortFunc(c.servers, netip.Addr.Compare)
	c.servers = slices.Compact(c.servers)
	if c.now == nil {
		c.now = time.Now
	}
	return &Zone{constants: c, index: index{
		services:   part.New[*service](part.RootOnlyWatch),
		namespaces: part.New[int](part.RootOnlyWatch),
		pointers:   part.New[[]pointer](part.RootOnlyWatch),
		pods:       part.New[[]podsOf](part.RootOnlyWatch),
	}}, nil
}

// seconds is a TTL (RFC 2181, section 8).
func seconds(d time.Duration) uint32 {
	return uint32(min(max(d/time.Second, 0), math.MaxInt32))
}

// Next is the Zone of a Snapshot. z stays as it is. It costs in proportion to the changes since z's Snapshot, if that is not much older. Calls
// for Zones that come of one New must not be at the same time.
//
// The serial of the SOA is the time in hundredths of a second, so that it does not go back when the process starts again, and is about the same on
// all nodes; each Zone's is later than that of the one before (RFC 1982), so that who has transferred the zone sees that it is another.
func (z *Zone) Next(s *model.Snapshot) *Zone {
	if s == nil || s == z.snapshot {
		return z
	}
	next := &Zone{constants: z.constants, snapshot: s, serial: uint32(z.now().UnixMilli() / 10), cuts: z.cuts} //nolint:gosec // it goes round
	if z.snapshot != nil && int32(next.serial-z.serial) <= 0 {                                                 //nolint:gosec // RFC 1982, section 3.2
		next.serial = z.serial + 1
	}
	if z.snapshot == nil || !sameRanges(&s.Network, &z.snapshot.Network) {
		next.cuts = cutsOf(&s.Network)
	}
	c := z.change()
	for key := range s.Changed(z.snapshot) {
		c.replace(key, s.Service(key))
	}
	next.index = c.done()
	return next
}

// Snapshot is what it answers from, nil if there was none yet.
func (z *Zone) Snapshot() *model.Snapshot { return z.snapshot }

// Namespace is that of the pod with an address, as far as endpoints tell. It is not known if pods of several namespaces have it, which those on
// their node's own network can.
func (z *Zone) Namespace(client netip.Addr) (string, bool) {
	key := client.As16()
	pods, _, _ := z.pods.Get(key[:])
	if len(pods) != 1 {
		return "", false
	}
	return pods[0].namespace, true
}
