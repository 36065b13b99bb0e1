package forward

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// Options say whom to ask, and the bounds. A duration or a number of 0 is the default.
type Options struct {
	// Upstreams are a domain → who is asked for names in it; "." is for all others. The longest domain that matches wins. A name that none matches
	// is refused; one that a domain without upstreams matches does not exist.
	Upstreams map[string][]Upstream
	// Own are the addresses where we listen: none may be an upstream.
	Own []netip.AddrPort
	// RootCAs are who certificates of upstreams are from; nil means those of the system.
	RootCAs *x509.CertPool

	MaxEntries int   // of the cache: 10,000
	MaxBytes   int64 // of the cache: 16 MiB
	// MaxInFlight is how many different questions are put to upstreams at once: 512.
	MaxInFlight int

	Timeout time.Duration // until a question is given up: 5 s
	// StaleFor is how long what is too old is kept for when no upstream answers: 1 h; less than 0 means not at all.
	StaleFor time.Duration
	// StaleWait is how long a client waits for upstreams before it gets what is too old: 1.8 s, as clients ask again after 2 s or more.
	StaleWait      time.Duration
	MinTTL, MaxTTL time.Duration // of what exists: 0 and 1 h
	MaxNegativeTTL time.Duration // of what does not exist: 5 min

	// Loop is called when an upstream leads back here, at most once at a time. It must not block.
	Loop   func(Upstream)
	Clock  func() time.Time // time.Now
	Logger *slog.Logger     // required
}

func (o *Options) setDefaults() {
	o.MaxEntries = cmp.Or(o.MaxEntries, 10_000)
	o.MaxBytes = cmp.Or(o.MaxBytes, 16<<20)
	o.MaxInFlight = cmp.Or(o.MaxInFlight, 512)
	o.Timeout = cmp.Or(o.Timeout, 5*time.Second)
	o.StaleFor = max(cmp.Or(o.StaleFor, time.Hour), 0)
	o.StaleWait = cmp.Or(o.StaleWait, 1800*time.Millisecond)
	o.MaxTTL = cmp.Or(o.MaxTTL, time.Hour)
	o.MaxNegativeTTL = cmp.Or(o.MaxNegativeTTL, 5*time.Minute)
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Loop == nil {
		o.Loop = func(Upstream) {}
	}
}

// A Forwarder asks upstreams and remembers. All methods may be called concurrently.
type Forwarder struct {
	o         Options
	limits    limits
	cache     *cache
	zones     map[string]*zone // a domain in wire form and lower case → who is asked; not changed
	upstreams []*upstream      // of all zones, in the order of their names
	metrics   *Metrics         // apart, as what is beside it is read all the time
	patience  [2]time.Duration // the least and the most that an upstream is waited for before the next is asked

	ctx  context.Context // of flights and connections; it ends with Run
	stop context.CancelFunc

	mu      sync.Mutex // guards what is below
	flights map[question]*flight
	closed  bool
	wg      sync.WaitGroup // flights and connections; nothing is added once closed

	probesMu sync.Mutex // guards probes
	probes   map[string]*upstream
}

// New checks the options. Nothing is sent yet; Run must be called even if it is to end at once.
func New(o Options) (*Forwarder, error) {
	o.setDefaults()
	switch {
	case o.Logger == nil:
		return nil, errors.New("forward: Options.Logger is missing")
	case o.MaxEntries < 0 || o.MaxBytes < 0 || o.MaxInFlight < 0:
		return nil, fmt.Errorf("forward: bounds of %d entries, %d bytes and %d questions in flight: none may be negative", o.MaxEntries, o.MaxBytes, o.MaxInFlight)
	case o.MinTTL > o.MaxTTL:
		return nil, fmt.Errorf("forward: the least TTL %v is above the greatest, %v", o.MinTTL, o.MaxTTL)
	}
	f := &Forwarder{
		o: o, limits: limits{o.MinTTL, o.MaxTTL, o.MaxNegativeTTL},
		zones: map[string]*zone{}, flights: map[question]*flight{}, probes: map[string]*upstream{},
		metrics: new(Metrics), patience: [2]time.Duration{patienceMin, patienceMax},
	}
	f.cache = newCache(o.MaxEntries, o.MaxBytes, &f.metrics.Evictions)
	f.ctx, f.stop = context.WithCancel(context.Background())
	byUpstream := map[Upstream]*upstream{}
	for domain, list := range o.Upstreams {
		if err := f.addZone(domain, list, byUpstream); err != nil {
			f.stop()
			return nil, err
		}
	}
	for _, u := range byUpstream {
		slices.Sort(u.domains)
		f.upstreams = append(f.upstreams, u)
	}
	slices.SortFunc(f.upstreams, func(a, b *upstream) int { return cmp.Compare(a.String(), b.String()) })
	return f, nil
}

func (f *Forwarder) addZone(domain string, list []Upstream, known map[Upstream]*upstream) error {
	wired, err := wire.AppendName(nil, domain)
	if err != nil {
		return fmt.Errorf("domain %q: %w", domain, err)
	}
	key := string(wire.AppendLower(nil, wired))
	domain = wire.NameString([]byte(key))
	if f.zones[key] != nil {
		return fmt.Errorf("domain %s has two lists of upstreams; join them", domain)
	}
	z := &zone{}
	for _, up := range list {
		if own, is := ownAddress(f.o.Own, up.Addr); is {
			return fmt.Errorf("upstream %s of %s is this server's own address %s, so questions would go round; name the server behind it", up, domain, own)
		}
		u := known[up]
		if u == nil {
			u = f.newUpstream(up)
			known[up] = u
		}
		if slices.Contains(z.upstreams, u) {
			continue
		}
		u.domains = append(u.domains, domain)
		z.upstreams = append(z.upstreams, u)
	}
	f.zones[key] = z
	return nil
}

// ownAddress finds an address among our own. Who listens on all addresses does so on the loopback ones.
func ownAddress(own []netip.AddrPort, addr netip.AddrPort) (netip.AddrPort, bool) {
	for _, o := range own {
		if o.Port() == addr.Port() && (o.Addr().Unmap() == addr.Addr() || o.Addr().IsUnspecified() && addr.Addr().IsLoopback()) {
			return o, true
		}
	}
	return netip.AddrPort{}, false
}

// zoneOf finds who is asked for a name in lower case: nil if nobody.
func (f *Forwarder) zoneOf(name []byte) *zone {
	for {
		if z := f.zones[string(name)]; z != nil || name[0] == 0 {
			return z
		}
		_, name = wire.Label(name)
	}
}

// Metrics are the counters.
func (f *Forwarder) Metrics() *Metrics { return f.metrics }

// Cached is how much the cache holds.
func (f *Forwarder) Cached() (entries int, bytes int64) {
	return int(f.cache.entries.Load()), f.cache.bytes.Load()
}

// Upstreams tells how it is with each, in the order of their names.
func (f *Forwarder) Upstreams() []Status {
	var all []Status
	for _, u := range f.upstreams {
		all = append(all, Status{
			Upstream: u.Upstream, Domains: u.domains, Healthy: !u.down.Load(), Loops: u.loops.Load(),
			RTT: time.Duration(u.rtt.Load()), Metrics: &u.metrics,
		})
	}
	return all
}

// Run looks for loops, and for upstreams that are down to come back, until ctx ends. Then it ends all that is in flight, closes connections, and
// returns when nothing of the Forwarder runs any more. Questions may be asked before it is called.
func (f *Forwarder) Run(ctx context.Context) error {
	var watchers sync.WaitGroup
	for _, u := range f.upstreams {
		watchers.Go(func() { u.watch(ctx) })
	}
	<-ctx.Done()
	watchers.Wait()
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.stop()
	f.wg.Wait()
	return nil
}

// spawn runs what Run waits for. It reports false if that is over.
func (f *Forwarder) spawn(run func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.wg.Go(run)
	return true
}
