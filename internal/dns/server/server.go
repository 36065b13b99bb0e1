package server

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// A Server answers DNS requests on its addresses. Make one by [New], and run it once.
type Server struct {
	o         Options
	searches  [][]byte
	endpoints []*endpoint
	sockets   []*udp
	zone      atomic.Pointer[current]
	limiter   *limiter
	secrets   secrets
	pods      *pods
	pool      *pool
	streams   *streams
	taps      taps

	shards      []*counters // one for each goroutine that answers much, and slow
	slow        *counters   // for all others
	programming histogram

	udpJobs, streamJobs sync.Pool
}

// current is the Zone in use.
type current struct {
	Zone
	since time.Time
}

// New binds all addresses, so that who has root to lose can lose it before [Server.Run]. Until then requests wait in the kernel.
func New(ctx context.Context, o Options) (*Server, error) {
	from := inherit(o.Inherited)
	defer from.close()
	if err := o.complete(); err != nil {
		return nil, err
	}
	searches, err := parseSearches(o.Searches)
	if err != nil {
		return nil, err
	}
	now := o.Now()
	s := &Server{
		o: o, searches: searches, limiter: newLimiter(o.Limits, now), pods: newPods(&o),
		pool: newPool(o.Waiting, o.Timeout), slow: &counters{},
	}
	s.shards = []*counters{s.slow}
	s.streams = &streams{s: s, open: map[*stream]struct{}{}, client: map[netip.Addr]int{}}
	s.secrets.init(o.CookieLifetime, now)
	s.udpJobs.New = func() any { return &udpJob{w: newWorker(s, s.slow)} }
	s.streamJobs.New = func() any { return &streamJob{w: newWorker(s, s.slow)} }
	s.SetZone(o.Zone)
	for _, addr := range o.Listen {
		e, err := listen(ctx, addr, o.Sockets, from)
		if err == nil {
			s.endpoints = append(s.endpoints, e)
			err = s.attach(e)
		}
		if err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func (s *Server) attach(e *endpoint) error {
	for _, c := range e.udp {
		u, err := newUDP(s, c)
		if err != nil {
			return err
		}
		s.sockets = append(s.sockets, u)
	}
	return nil
}

// Addrs are the addresses that it listens on, in the order of [Options], with the ports that were found for port 0.
func (s *Server) Addrs() []netip.AddrPort {
	addrs := make([]netip.AddrPort, len(s.endpoints))
	for i, e := range s.endpoints {
		addrs[i] = e.addr
	}
	return addrs
}

// SetZone has the next answer come from z. It may be called at any time.
func (s *Server) SetZone(z Zone) { s.zone.Store(&current{z, s.o.Now()}) }

// Programmed notes how long a change took from the API to the next answer.
func (s *Server) Programmed(d time.Duration) { s.programming.observe(d, 1) }

// Run serves until ctx ends or a socket fails. Answers that are waited for then get a moment to arrive. When it returns, everything is closed.
func (s *Server) Run(ctx context.Context) error {
	defer s.close()
	group, ctx := errgroup.WithContext(ctx)
	for _, u := range s.sockets {
		group.Go(u.run)
	}
	for _, e := range s.endpoints {
		group.Go(func() error { return s.streams.accept(ctx, e.tcp) })
	}
	group.Go(func() error {
		<-ctx.Done()
		for _, e := range s.endpoints {
			_ = e.tcp.Close()
		}
		for _, u := range s.sockets {
			_ = u.conn.SetReadDeadline(time.Unix(1, 0))
		}
		return nil
	})
	err := group.Wait()
	stop := s.streams.end(s.o.Drain)
	defer stop()
	s.streams.readers.Wait()
	s.pool.wait(s.o.Drain)
	s.streams.conns.Wait()
	return err
}

// Close gives the addresses back if [Server.Run] is never called.
func (s *Server) Close() { s.close() }

func (s *Server) close() {
	s.pool.cancel()
	for _, e := range s.endpoints {
		e.close()
	}
}
