package server

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// A Status is how a server does, for people; the counts are since it began. The metrics have more.
type Status struct {
	Listen      []netip.AddrPort
	ZoneAge     time.Duration // since the zone last changed
	Waiting     int           // requests that wait for an upstream or the API
	Connections int
	Responses   uint64
	Malformed   uint64 // packets that are no request
	Refused     uint64 // requests of those who may not ask
	Limited     uint64 // requests beyond the rate limit of their client
	Overloaded  uint64 // requests that could not wait, as too many did
	Unresolved  uint64 // requests that upstreams or the API failed
	Unsent      uint64 // responses that the kernel or the client did not take
}

// Status is how it does now.
func (s *Server) Status() Status {
	st := Status{
		Listen: s.Addrs(), ZoneAge: s.o.Now().Sub(s.zone.Load().since), Waiting: s.pool.waiting(), Connections: s.streams.count(),
		Malformed:  s.sum(func(c *counters) *atomic.Uint64 { return &c.malformed }),
		Refused:    s.sum(func(c *counters) *atomic.Uint64 { return &c.refused }),
		Limited:    s.sum(func(c *counters) *atomic.Uint64 { return &c.limited }),
		Overloaded: s.sum(func(c *counters) *atomic.Uint64 { return &c.overloaded }),
		Unresolved: s.sum(func(c *counters) *atomic.Uint64 { return &c.unresolved }),
		Unsent:     s.sum(func(c *counters) *atomic.Uint64 { return &c.unsent }),
	}
	for _, c := range s.shards {
		for t := range c.replies {
			for q := range c.replies[t] {
				for r := range c.replies[t][q] {
					st.Responses += c.replies[t][q][r].Load()
				}
			}
		}
	}
	return st
}
