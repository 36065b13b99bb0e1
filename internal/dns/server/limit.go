package server

import (
	"errors"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// Limits bound what UDP clients get, so that nobody makes us flood a third party in whose name he asks. Clients are counted by their /24 or /56;
// who has shown a cookie of ours is not counted.
type Limits struct {
	PerSecond int // of a prefix; 1000 if 0, no limit if negative
	Burst     int // at once; PerSecond if 0
	// Slip: every so many-th response beyond the limit is sent, with TC and nothing else, so that a real client comes by TCP; 2 if 0, none if negative.
	Slip int
	// Own are counted by address, not by prefix: this node's pods, whose addresses nobody else can send from.
	Own          []netip.Prefix
	OwnPerSecond int // 50,000 if 0, no limit if negative
	// Exempt are not counted; loopback if nil.
	Exempt []netip.Prefix
}

func (l *Limits) complete() error {
	for _, n := range []struct {
		value    *int
		standard int
	}{{&l.PerSecond, 1000}, {&l.OwnPerSecond, 50_000}, {&l.Slip, 2}} {
		if *n.value == 0 {
			*n.value = n.standard
		}
	}
	if l.Burst == 0 {
		l.Burst = max(l.PerSecond, 1)
	}
	if l.Burst < 0 || l.PerSecond > maxPerSecond || l.OwnPerSecond > maxPerSecond {
		return errors.New("DNS: a rate limit is negative in its burst, or above a million a second; use a negative rate for none")
	}
	if l.Exempt == nil {
		l.Exempt = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	}
	return nil
}

const (
	maxPerSecond = 1_000_000
	limiterSets  = 4096
	limiterWays  = 4
)

// A limiter has a bucket for each client, in a table whose size is fixed. A bucket is one time: when it will be empty again (GCRA), so that one
// in the past says nothing and gives its place to another client.
type limiter struct {
	limits Limits
	seed   maphash.Seed
	start  time.Time
	table  [][limiterWays]bucket
}

type bucket struct {
	key   atomic.Uint64
	empty atomic.Int64 // nanoseconds since start
}

func newLimiter(l Limits, now time.Time) *limiter {
	return &limiter{limits: l, seed: maphash.MakeSeed(), start: now, table: make([][limiterWays]bucket, limiterSets)}
}

// over counts one response to a client and says whether it is beyond the limit. It does not lock: of two that race for the last one, both may win.
func (l *limiter) over(client netip.Addr, now time.Time) bool {
	rate, burst, key, limited := l.bucketOf(client)
	if !limited {
		return false
	}
	t := now.Sub(l.start).Nanoseconds()
	interval := int64(time.Second) / int64(rate)
	b := l.find(key, t)
	for {
		was := b.empty.Load()
		next := max(was, t) + interval
		if next-t > interval*int64(burst) {
			return true
		}
		if b.empty.CompareAndSwap(was, next) {
			return false
		}
	}
}

func (l *limiter) bucketOf(client netip.Addr) (rate, burst int, key uint64, limited bool) {
	in := func(p netip.Prefix) bool { return p.Contains(client) }
	if slices.ContainsFunc(l.limits.Exempt, in) {
		return 0, 0, 0, false
	}
	if slices.ContainsFunc(l.limits.Own, in) {
		return l.limits.OwnPerSecond, max(l.limits.OwnPerSecond, 1), maphash.Comparable(l.seed, client), l.limits.OwnPerSecond > 0
	}
	bits := 24
	if client.Is6() {
		bits = 56
	}
	prefix, err := client.Prefix(bits)
	if err != nil {
		return 0, 0, 0, false
	}
	return l.limits.PerSecond, l.limits.Burst, maphash.Comparable(l.seed, prefix), l.limits.PerSecond > 0
}

// find returns the bucket of a client, which is perhaps another's whose time was over, or the one of four that has least to remember.
func (l *limiter) find(key uint64, now int64) *bucket {
	set := &l.table[key%limiterSets]
	oldest := &set[0]
	for i := range set {
		b := &set[i]
		if b.key.Load() == key {
			return b
		}
		if b.empty.Load() < oldest.empty.Load() {
			oldest = b
		}
	}
	oldest.key.Store(key)
	oldest.empty.Store(min(oldest.empty.Load(), now))
	return oldest
}

// limiterState is what one worker remembers of limiting.
type limiterState struct{ beyond int }

// slip says whether this response beyond the limit is one of those that are sent.
func (s *limiterState) slip(every int) bool {
	if every <= 0 {
		return false
	}
	s.beyond++
	if s.beyond < every {
		return false
	}
	s.beyond = 0
	return true
}
