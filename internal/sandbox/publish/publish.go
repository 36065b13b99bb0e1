// Package publish lets clients on the machine's loopback reach Services in the sandbox: it takes connections and datagrams
// on node ports and passes them to endpoints, which are the nodes' own node ports.
//
// In: whole lists of ports (Set), and a way to open a listener, which lies in another network namespace than the endpoints.
// Out: bytes, and a word about ports that could not be opened.
//
// Invariants: Set is idempotent and latest wins; one port that fails never keeps another from being open, and is tried again
// until it is free; the end of one direction of a connection is passed on as that; the number of connections and of UDP
// sessions is bounded.
//
// It refuses to choose wisely: endpoints take turns. Session affinity and traffic policy are the data plane's.
//
// To test it: go test -race ./internal/sandbox/publish.
package publish

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Key is a port of the machine.
type Key struct {
	Network string // tcp or udp
	Number  uint16
}

// Port is a port that is to be open.
type Port struct {
	Key
	Endpoints []netip.AddrPort // none refuses connections
	// InOrder leads to the first endpoint as long as it answers, instead of to all in turn.
	InOrder bool
}

// Options of a Publisher.
type Options struct {
	// Open returns what listens, one file a family; they are the caller's. It may block, and is called by one goroutine.
	Open func(ctx context.Context, network string, port uint16) ([]*os.File, error)
	// Failed is called when a port can not be opened, once until it is free or not wanted any more; by one goroutine.
	Failed func(k Key, err error)
	Logger *slog.Logger
	// MaxConns is the number of connections and, apart, of UDP sessions at once, of all ports; zero is 4096.
	MaxConns int
	// UDPIdle is after how long without a datagram a UDP session ends; zero is a minute.
	UDPIdle time.Duration
	// Retry is how often a port that is taken is tried again; zero is 5 s.
	Retry time.Duration
}

// Publisher holds ports open. Run it, then Set what is to be open at any time.
type Publisher struct {
	o     Options
	conns chan struct{} // one each; full = wait
	udp   atomic.Int64  // sessions

	mu      sync.Mutex // guards what follows
	want    []Port
	changed chan struct{} // holds one when want has changed
}

// New gives defaults to options.
func New(o Options) *Publisher {
	if o.MaxConns == 0 {
		o.MaxConns = 4096
	}
	if o.UDPIdle == 0 {
		o.UDPIdle = time.Minute
	}
	if o.Retry == 0 {
		o.Retry = 5 * time.Second
	}
	return &Publisher{o: o, conns: make(chan struct{}, o.MaxConns), changed: make(chan struct{}, 1)}
}

// Set says what is to be open from now on. It takes the list, and returns at once.
func (p *Publisher) Set(ports []Port) {
	p.mu.Lock()
	p.want = ports
	p.mu.Unlock()
	select {
	case p.changed <- struct{}{}:
	default: // it will see this, too
	}
}

// Run keeps ports open until ctx ends; then it closes them and all connections, and returns when they are.
func (p *Publisher) Run(ctx context.Context) {
	open := map[Key]*opened{}
	failed := map[Key]bool{}
	defer func() {
		for _, o := range open {
			o.close()
		}
	}()
	retry := time.NewTicker(p.o.Retry)
	defer retry.Stop()
	for {
		p.mu.Lock()
		want := p.want
		p.mu.Unlock()
		p.apply(ctx, want, open, failed)
		select {
		case <-ctx.Done():
			return
		case <-p.changed:
		case <-retry.C:
		}
	}
}

func (p *Publisher) apply(ctx context.Context, want []Port, open map[Key]*opened, failed map[Key]bool) {
	wanted := map[Key]bool{}
	for _, port := range want {
		wanted[port.Key] = true
	}
	for key, o := range open { // first: a port may go from one Service to another
		if !wanted[key] {
			o.close()
			delete(open, key)
		}
	}
	for key := range failed {
		if !wanted[key] {
			delete(failed, key)
		}
	}
	for _, port := range want {
		if o := open[port.Key]; o != nil {
			o.set(port)
			continue
		}
		o, err := p.open(ctx, port)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			open[port.Key] = o
			delete(failed, port.Key)
		case !failed[port.Key]:
			failed[port.Key] = true
			p.o.Failed(port.Key, err)
		}
	}
}

// opened is an open port.
type opened struct {
	publisher *Publisher
	stop      context.CancelFunc
	work      sync.WaitGroup
	turn      atomic.Uint64

	mu        sync.Mutex // guards endpoints and inOrder
	endpoints []netip.AddrPort
	inOrder   bool
	udp       []*udpPort
}

func (p *Publisher) open(ctx context.Context, port Port) (*opened, error) {
	files, err := p.o.Open(ctx, port.Network, port.Number)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range files {
			_ = f.Close() // listeners have their own
		}
	}()
	var tcp []net.Listener
	o := &opened{publisher: p, endpoints: port.Endpoints, inOrder: port.InOrder}
	for _, f := range files {
		if port.Network == "tcp" {
			var l net.Listener
			if l, err = net.FileListener(f); err == nil {
				tcp = append(tcp, l)
			}
		} else {
			var c net.PacketConn
			if c, err = net.FilePacketConn(f); err == nil {
				o.udp = append(o.udp, newUDPPort(o, c.(*net.UDPConn)))
			}
		}
		if err != nil {
			break
		}
	}
	if err == nil && len(files) == 0 {
		err = errors.New("nothing was opened")
	}
	if err != nil {
		for _, l := range tcp {
			_ = l.Close() // the first error says it
		}
		for _, u := range o.udp {
			_ = u.conn.Close()
		}
		return nil, err
	}
	ctx, o.stop = context.WithCancel(ctx)
	for _, l := range tcp {
		o.work.Go(func() { o.serveTCP(ctx, l) })
	}
	for _, u := range o.udp {
		o.work.Go(func() { u.serve(ctx) })
	}
	return o, nil
}

func (o *opened) set(port Port) {
	o.mu.Lock()
	o.endpoints, o.inOrder = port.Endpoints, port.InOrder
	o.mu.Unlock()
	for _, u := range o.udp {
		u.keep(port.Endpoints)
	}
}

// next returns endpoints in the order in which to try them, each once.
func (o *opened) next() []netip.AddrPort {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(o.endpoints)
	if n == 0 {
		return nil
	}
	first := 0
	if !o.inOrder {
		first = int(o.turn.Add(1)-1) % n
	}
	return slices.Concat(o.endpoints[first:], o.endpoints[:first])
}

func (o *opened) close() {
	o.stop()
	o.work.Wait()
}
