package server

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// A LogFilter says which requests are logged. What is empty fits all.
type LogFilter struct {
	Suffix    string // the name, or what it ends in, label by label
	Client    netip.Prefix
	PerSecond int // at most; 100 if 0
}

// queryLog is a LogFilter that is in force.
type queryLog struct {
	suffix   []byte // in lower case
	client   netip.Prefix
	interval int64        // nanoseconds a line
	full     atomic.Int64 // when the burst of a second will be over, in nanoseconds since 1970
	left     atomic.Uint64
}

// SetLog logs the requests that fit from the next one on, with their responses; nil ends that. Without a filter, a request costs no more than
// looking whether there is one.
func (s *Server) SetLog(f *LogFilter) error {
	if f == nil {
		s.queryLog.Store(nil)
		return nil
	}
	if f.PerSecond < 0 || f.PerSecond > maxPerSecond {
		return fmt.Errorf("query log: %d lines a second; choose 1 to %d, or 0 for 100", f.PerSecond, maxPerSecond)
	}
	l := &queryLog{client: f.Client, interval: int64(time.Second) / 100}
	if f.PerSecond > 0 {
		l.interval = int64(time.Second) / int64(f.PerSecond)
	}
	if f.Suffix != "" {
		name, err := wire.AppendName(nil, f.Suffix)
		if err != nil {
			return fmt.Errorf("query log: name %q: %w", f.Suffix, err)
		}
		l.suffix = wire.AppendLower(nil, name)
	}
	s.queryLog.Store(l)
	return nil
}

func (l *queryLog) fits(name []byte, client netip.Addr) bool {
	if l.client.IsValid() && !l.client.Contains(client) {
		return false
	}
	if len(l.suffix) < 2 { // none, or the root
		return true
	}
	for rest := name; len(rest) >= len(l.suffix); _, rest = wire.Label(rest) {
		if equalFold(rest, string(l.suffix)) {
			return true
		}
	}
	return false
}

// room takes one of the lines of this second.
func (l *queryLog) room(now time.Time) bool {
	for {
		was, t := l.full.Load(), now.UnixNano()
		next := max(was, t) + l.interval
		if next-t > int64(time.Second) {
			l.left.Add(1)
			return false
		}
		if l.full.CompareAndSwap(was, next) {
			return true
		}
	}
}

func (l *queryLog) write(w *worker, rq *request, size int) {
	now := w.s.o.Now()
	if !l.fits(w.q.Name, rq.client.Addr()) || !l.room(now) {
		return
	}
	name := ""
	if len(w.q.Name) > 0 {
		name = wire.NameString(w.q.Name)
	}
	w.s.o.Logger.Info("query", "name", name, "type", dns.Type(w.q.Type).String(), "client", rq.client,
		"transport", transportNames()[transportOf(rq.tcp)], "rcode", rcodeName(w.r.RCode()), "truncated", w.r.Truncated(),
		"bytes", size, "took", now.Sub(rq.at), "omitted", l.left.Swap(0))
}

func rcodeName(rcode int) string {
	if name, ok := dns.RcodeToString[rcode]; ok {
		return name
	}
	return fmt.Sprintf("RCODE%d", rcode)
}
