package server

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/dns/zone"
)

// A Zone answers for names that are the cluster's: [zone.Zone] does. Calls come from many goroutines at once, must not block and should not allocate.
type Zone interface {
	// Answer writes into r, which has its question and nothing else, and says what is left to do.
	Answer(q *wire.Query, r *wire.Response, random uint64) zone.Outcome
	// AnswerPod writes what Answer left open with [zone.AskPod].
	AnswerPod(q *wire.Query, r *wire.Response, exists bool) zone.Outcome
	// Search reports whether name is `<rest>.<namespace>.svc.<zone>`, and none of it, `<rest>.svc.<zone>` and `<rest>.<zone>` exists: the first miss
	// of a pod's search path. The rest, with the root at its end, is appended to dst.
	Search(dst, name []byte, namespace string) (rest []byte, ok bool)
	// Namespace is that of the pod with this address.
	Namespace(client netip.Addr) (string, bool)
	// Transfer has the records of the zone with this name, the SOA first, or says why not by an RCODE. What comes is good until the next.
	Transfer(zone []byte) (records iter.Seq[zone.Record], rcode int)
	// Serial of the zone.
	Serial() uint32
}

// A Forwarder answers for all other names: see [Forward]. Calls come from many goroutines at once; a query and its slices are the caller's again when a call has ended.
type Forwarder interface {
	// Lookup does not block: it is false if the answer has to be fetched.
	Lookup(q *wire.Query, now time.Time) (Answer, bool)
	// Resolve may take until ctx ends. An error stands for SERVFAIL.
	Resolve(ctx context.Context, q *wire.Query) (Answer, error)
	// IsLoopProbe says whether the name is one that the forwarder itself has asked for to find loops, and notes that it came back.
	IsLoopProbe(name []byte) bool
}

// An Answer is what a [Forwarder] knows of a name. It is not modified.
type Answer interface {
	// Append writes the records with the asked name at offset at. It is false if some did not fit, in which case TC is due.
	Append(r *wire.Response, at int, now time.Time) bool
	RCode() int
	// AuthenticData says whether the upstream vouches for it by DNSSEC.
	AuthenticData() bool
}

// Options say what a [Server] does. Zero values are good where no other default is named.
type Options struct {
	// Listen has at least one address; port 0 is a free one, the same for UDP and TCP. An unspecified address listens on all of its family.
	Listen []netip.AddrPort
	// Sockets for UDP on each address; GOMAXPROCS if 0, but at most 8. The kernel spreads clients over them.
	Sockets int
	// Inherited are sockets of an earlier run, see [Server.Sockets]. They are the Server's: those that listen on one of the addresses are used instead of
	// new ones, and the others are closed.
	Inherited []*os.File

	// Zone to begin with, which must not be nil.
	Zone Zone
	// Forwarder for what is not the zone's; nil refuses that.
	Forwarder Forwarder

	// Allow says who may ask; nil is loopback only. It is called for each request, and must be fast.
	Allow func(client netip.Addr) bool
	// Transfer says who of those who may ask may also transfer the zone; nil is nobody.
	Transfer func(client netip.Addr) bool
	// DropOthers is silent towards others, where the default is REFUSED.
	DropOthers bool
	// UDPSize is how long a UDP response to a client may be, at most 4096; nil is 1232 for everybody. Less than 512 is 512.
	UDPSize func(client netip.Addr) int
	// Limits of UDP responses.
	Limits Limits
	// CookieLifetime is how long a server cookie is good at least; an hour if 0.
	CookieLifetime time.Duration

	// Namespace of a client; nil asks the Zone.
	Namespace func(client netip.Addr) (string, bool)
	// Searches are the domains that pods have behind the cluster's own in resolv.conf: those of the node.
	Searches []string
	// PodExists asks the API whether a pod with this address is in a namespace; nil means that none is. It may take until ctx ends.
	PodExists func(ctx context.Context, namespace string, addr netip.Addr) (bool, error)

	// Waiting is how many requests may wait for an upstream or the API at one time, and twice of how many may those of one address; 1024 if 0.
	Waiting int
	// Timeout of such a wait; 5 s if 0.
	Timeout time.Duration
	// Drain is how long the end of [Server.Run] waits for them; 500 ms if 0.
	Drain time.Duration
	// TCP bounds connections.
	TCP TCPOptions

	Logger *slog.Logger
	// Now is the clock; time.Now if nil.
	Now func() time.Time

	batch int // packets by one system call; maxBatch if 0
}

// TCPOptions bound connections (RFC 7766).
type TCPOptions struct {
	Connections int           // at one time; 512 if 0
	PerClient   int           // of one address; 64 if 0
	Idle        time.Duration // without a request: then it is closed; 10 s if 0
	Transfer    time.Duration // for one request to arrive or one response to leave; 5 s if 0
}

const (
	maxBatch     = 64
	maxSockets   = 8    // by default: each has 400 kB, and one answers a quarter of a million queries a second
	maxRequest   = 2048 // UDP; longer ones are dropped
	maxUDPReply  = 4096
	defaultReply = 1232 // what passes every path without fragments
)

func (o *Options) complete() error {
	if len(o.Listen) == 0 {
		return errors.New("DNS: no address to listen on; give one with --listen")
	}
	if o.Zone == nil {
		return errors.New("DNS: no zone to answer for")
	}
	for _, n := range []struct {
		value    *int
		standard int
	}{
		{&o.Sockets, min(runtime.GOMAXPROCS(0), maxSockets)}, {&o.Waiting, 1024}, {&o.TCP.Connections, 512}, {&o.TCP.PerClient, 64}, {&o.batch, maxBatch},
	} {
		if *n.value == 0 {
			*n.value = n.standard
		}
		if *n.value < 0 {
			return fmt.Errorf("DNS: %d sockets, waiting requests or connections are less than none", *n.value)
		}
	}
	for _, d := range []struct {
		value    *time.Duration
		standard time.Duration
	}{
		{&o.CookieLifetime, time.Hour}, {&o.Timeout, 5 * time.Second}, {&o.Drain, 500 * time.Millisecond},
		{&o.TCP.Idle, 10 * time.Second}, {&o.TCP.Transfer, 5 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.standard
		}
	}
	if o.Allow == nil {
		o.Allow = netip.Addr.IsLoopback
	}
	if o.UDPSize == nil {
		o.UDPSize = func(netip.Addr) int { return defaultReply }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.batch = min(o.batch, maxBatch)
	return o.Limits.complete()
}
