package forward

import (
	"context"
	"errors"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// Errors of [Forwarder.Resolve]: SERVFAIL for the client, without anything that could be remembered.
var (
	ErrBusy   = errors.New("too many questions are in flight to upstreams")
	ErrClosed = errors.New("the forwarder has stopped")
)

const (
	// failureTTL is how long nobody is asked again after all failed: at most 5 min, at least 1 s (RFC 9520, section 3.2).
	failureTTL = 5 * time.Second
	// timeoutDown is how long a question takes where all upstreams are known to be down.
	timeoutDown = 1500 * time.Millisecond
	// What is asked for again before it gets old: what was found so often, in the last tenth of its time, if that was not very short.
	prefetchHits = 2
	prefetchPart = 10
	prefetchMin  = 5 * time.Second
)

// A flight is a question that is being asked.
type flight struct {
	done   chan struct{}
	answer *Answer // once done
}

// Lookup finds the answer to q, if it is known and not too old, or too old and asking just failed. It does not wait. Of q it reads Name, Type, Class,
// CheckingDisabled and EDNS.DNSSECOK.
func (f *Forwarder) Lookup(q *wire.Query, now time.Time) (*Answer, bool) {
	var buf [maxQuestion]byte
	a := f.cache.find(appendQuestion(buf[:0], q))
	if a == nil {
		return nil, false
	}
	age := now.Sub(a.at)
	if age >= a.ttl {
		if int64(age) >= a.excused.Load() || !f.usable(a, now) {
			return nil, false
		}
		f.metrics.Stale.Add(1)
	}
	f.metrics.Hits.Add(1)
	hits := a.hits.Load()
	if hits < hitsEnough {
		a.hits.Add(1)
	}
	if hits >= prefetchHits && a.ttl >= prefetchMin && age < a.ttl && a.ttl-age <= a.ttl/prefetchPart {
		f.prefetch(a)
	}
	return a, true
}

// prefetch asks again, once for each Answer, and not if half of what may be in flight is.
func (f *Forwarder) prefetch(a *Answer) {
	if a.failed || !a.refreshing.CompareAndSwap(false, true) {
		return
	}
	if _, joined, err := f.join(a.question, f.o.MaxInFlight/2); err == nil && !joined {
		f.metrics.Prefetch.Add(1)
	}
}

// usable says whether an Answer may be given although it is stale.
func (f *Forwarder) usable(a *Answer, now time.Time) bool {
	return a != nil && !a.failed && now.Sub(a.at) < a.ttl+f.o.StaleFor
}

// Resolve asks upstreams, or waits for somebody who asks the same. If that takes too long, or nobody answers, it is the stale answer, if there is one,
// otherwise one with SERVFAIL. An error is ErrBusy, ErrClosed, or that of ctx.
func (f *Forwarder) Resolve(ctx context.Context, q *wire.Query) (*Answer, error) {
	f.metrics.Misses.Add(1)
	asked := question(appendQuestion(nil, q))
	var z *zone
	if len(q.Name) > 0 {
		z = f.zoneOf([]byte(asked.name()))
	}
	if z == nil || !forwardable(q.Type, q.Class) {
		f.metrics.Refused.Add(1)
		return failure(asked, dns.RcodeRefused, 0), nil
	}
	if len(z.upstreams) == 0 {
		rcode := dns.RcodeNameError
		if q.Name[0] == 0 {
			rcode = dns.RcodeSuccess // the root is there, with the cluster's domain below it
		}
		return failure(asked, rcode, 0), nil
	}
	now := f.o.Clock()
	known := f.cache.find([]byte(asked))
	if known != nil && now.Sub(known.at) < known.ttl {
		return known, nil // it came since the caller looked
	}
	isUsable := f.usable(known, now)
	fl, joined, err := f.join(asked, f.o.MaxInFlight)
	if err != nil {
		if isUsable {
			f.metrics.Stale.Add(1)
			return known, nil
		}
		return nil, err
	}
	if joined {
		f.metrics.Joined.Add(1)
	}
	var patience <-chan time.Time // for ever
	if isUsable {
		wait := f.o.StaleWait
		if z.isDown() {
			wait = 0
		}
		timer := time.NewTimer(wait)
		defer timer.Stop()
		patience = timer.C
	}
	select {
	case <-fl.done:
		if fl.answer == nil {
			return nil, ErrClosed
		}
		if fl.answer.Stale(f.o.Clock()) {
			f.metrics.Stale.Add(1)
		}
		return fl.answer, nil
	case <-patience:
		f.excuse(known)
		f.metrics.Stale.Add(1)
		return known, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// excuse has Lookup find what is stale for a while: the next clients need not wait as the first one did.
func (f *Forwarder) excuse(a *Answer) {
	a.excused.Store(int64(f.o.Clock().Sub(a.at) + failureTTL))
}

// join returns the flight of a question, which it starts if there is none and fewer than limit are.
func (f *Forwarder) join(q question, limit int) (fl *flight, joined bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.flights[q]; fl != nil {
		return fl, true, nil
	}
	if f.closed {
		return nil, false, ErrClosed
	}
	if len(f.flights) >= limit {
		f.metrics.Busy.Add(1)
		return nil, false, ErrBusy
	}
	fl = &flight{done: make(chan struct{})}
	f.flights[q] = fl
	f.wg.Go(func() {
		fl.answer = f.ask(q)
		f.mu.Lock()
		delete(f.flights, q)
		f.mu.Unlock()
		close(fl.done)
	})
	return fl, false, nil
}

// ask puts a question to its zone's upstreams, and remembers the answer; nil if the Forwarder stops.
func (f *Forwarder) ask(q question) *Answer {
	z := f.zoneOf([]byte(q.name()))
	timeout := f.o.Timeout
	if z.isDown() {
		timeout = min(timeout, timeoutDown)
	}
	ctx, cancel := context.WithTimeout(f.ctx, timeout)
	defer cancel()
	a, err := z.ask(ctx, q)
	if err != nil {
		if f.ctx.Err() != nil {
			return nil
		}
		f.metrics.Failures.Add(1)
		f.o.Logger.Debug("no upstream has an answer", "name", wire.NameString([]byte(q.name())), "type", dns.TypeToString[q.rtype()], "err", err)
		return f.fail(q)
	}
	f.keep(a)
	return a
}

// fail is the answer where no upstream has one: what is known although it is stale, or SERVFAIL, and for a while no upstream is asked again.
func (f *Forwarder) fail(q question) *Answer {
	now := f.o.Clock()
	if known := f.cache.find([]byte(q)); f.usable(known, now) {
		if now.Sub(known.at) >= known.ttl { // otherwise this was a prefetch
			f.excuse(known)
		}
		return known
	}
	a := failure(q, dns.RcodeServerFailure, failureTTL)
	f.keep(a)
	return a
}

// keep puts an Answer into the cache, if it may be kept at all; then what was known before is forgotten.
func (f *Forwarder) keep(a *Answer) {
	a.at = f.o.Clock()
	a.kept = a.ttl > 0
	if a.kept && f.cache.put(a) {
		return
	}
	a.kept = false
	f.cache.remove(a.question)
}
