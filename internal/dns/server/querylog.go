package server

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// A LogFilter says which requests somebody wants to hear of. What is empty fits all.
type LogFilter struct {
	Suffix    string // the name, or what it ends in, label by label
	Clients   []netip.Prefix
	PerSecond int // at most; 100 if 0
}

const (
	// maxTaps bounds the memory of those who listen: each has up to tapLength exchanges of up to maxUDPReply octets, about 1 MB.
	maxTaps   = 16
	tapLength = 256
	// linesPerSecond is for filters that do not say.
	linesPerSecond = 100
)

// A Tap hears of requests that fit its filter, with their responses. It never slows an answer: what comes while nobody takes what was before is left
// out and counted.
type Tap struct {
	s         *Server
	suffix    []byte // in lower case
	clients   []netip.Prefix
	interval  int64        // nanoseconds a line
	full      atomic.Int64 // when the burst of a second will be over, in nanoseconds since 1970
	omitted   atomic.Uint64
	exchanges chan *Exchange
}

// taps are all who listen.
type taps struct {
	mu  sync.Mutex             // held to change all
	all atomic.Pointer[[]*Tap] // nil = nobody, which is all that a request looks at then
}

// Tap listens from the next request on, until [Tap.Close].
func (s *Server) Tap(f LogFilter) (*Tap, error) {
	if f.PerSecond < 0 || f.PerSecond > maxPerSecond {
		return nil, fmt.Errorf("query log: %d lines a second; choose 1 to %d, or 0 for %d", f.PerSecond, maxPerSecond, linesPerSecond)
	}
	t := &Tap{s: s, clients: slices.Clone(f.Clients), interval: int64(time.Second) / linesPerSecond, exchanges: make(chan *Exchange, tapLength)}
	if f.PerSecond > 0 {
		t.interval = int64(time.Second) / int64(f.PerSecond)
	}
	if f.Suffix != "" {
		name, err := wire.AppendName(nil, f.Suffix)
		if err != nil {
			return nil, fmt.Errorf("query log: name %q: %w", f.Suffix, err)
		}
		t.suffix = wire.AppendLower(nil, name)
	}
	s.taps.mu.Lock()
	defer s.taps.mu.Unlock()
	var others []*Tap
	if all := s.taps.all.Load(); all != nil {
		others = *all
	}
	if len(others) >= maxTaps {
		return nil, fmt.Errorf("query log: %d are being followed already: end one of them", maxTaps)
	}
	all := append(slices.Clone(others), t)
	s.taps.all.Store(&all)
	return t, nil
}

// Close ends it. More calls do nothing. What was not taken yet can still be.
func (t *Tap) Close() {
	s := t.s
	s.taps.mu.Lock()
	defer s.taps.mu.Unlock()
	all := s.taps.all.Load()
	if all == nil {
		return
	}
	rest := slices.DeleteFunc(slices.Clone(*all), func(other *Tap) bool { return other == t })
	if len(rest) == 0 {
		s.taps.all.Store(nil)
	} else {
		s.taps.all.Store(&rest)
	}
}

// Exchanges are what it heard. The channel is never closed.
func (t *Tap) Exchanges() <-chan *Exchange { return t.exchanges }

// Omitted is how many exchanges that fit were left out since the last call.
func (t *Tap) Omitted() uint64 { return t.omitted.Swap(0) }

// Log writes what fits to the server's log until ctx ends.
func (s *Server) Log(ctx context.Context, f LogFilter) error {
	t, err := s.Tap(f)
	if err != nil {
		return err
	}
	defer t.Close()
	for {
		select {
		case e := <-t.exchanges:
			s.o.Logger.Info("query", "name", e.Name(), "type", e.Type(), "client", e.Client, "transport", e.Transport(), "rcode", e.RCode(),
				"truncated", e.Truncated, "bytes", e.Bytes, "took", e.Took, "answer", e.Answer(), "omitted", t.Omitted())
		case <-ctx.Done():
			return nil
		}
	}
}

func (t *Tap) fits(name []byte, client netip.Addr) bool {
	if len(t.clients) > 0 && !slices.ContainsFunc(t.clients, func(p netip.Prefix) bool { return p.Contains(client) }) {
		return false
	}
	if len(t.suffix) < 2 { // none, or the root
		return true
	}
	for rest := name; len(rest) >= len(t.suffix); _, rest = wire.Label(rest) {
		if equalFold(rest, string(t.suffix)) {
			return true
		}
	}
	return false
}

// room takes one of the lines of this second.
func (t *Tap) room(now time.Time) bool {
	for {
		was, at := t.full.Load(), now.UnixNano()
		next := max(was, at) + t.interval
		if next-at > int64(time.Second) {
			return false
		}
		if t.full.CompareAndSwap(was, next) {
			return true
		}
	}
}

// hear tells all who want to hear it of a response. Only what somebody has room for is copied.
func (w *worker) hear(all []*Tap, rq *request, reply []byte) {
	var now time.Time
	var e *Exchange // the same for all, and not modified
	for _, t := range all {
		if !t.fits(w.q.Name, rq.client.Addr()) {
			continue
		}
		if now.IsZero() {
			now = w.s.o.Now()
		}
		if len(t.exchanges) == cap(t.exchanges) || !t.room(now) {
			t.omitted.Add(1)
			continue
		}
		if e == nil {
			e = w.exchange(rq, reply, now)
		}
		select {
		case t.exchanges <- e:
		default:
			t.omitted.Add(1)
		}
	}
}
