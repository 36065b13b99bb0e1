package server

import (
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// counters are what one goroutine, or all the slow ones, counted. Nobody else writes to them, so the additions meet in no cache line.
type counters struct {
	replies   [2][typeSlots][rcodeSlots]atomic.Uint64
	truncated atomic.Uint64

	malformed  atomic.Uint64 // no request, or one that is too long
	refused    atomic.Uint64 // from who may not ask
	limited    atomic.Uint64 // beyond the rate limit
	overloaded atomic.Uint64 // answered without waiting, as too many waited
	unresolved atomic.Uint64 // upstreams or the API failed
	unsent     atomic.Uint64 // responses that the kernel or the peer did not take
	completed  atomic.Uint64 // names of a search path
	loops      atomic.Uint64
	closed     atomic.Uint64 // connections that were too many

	atOnce, waited histogram
}

const (
	typeSlots  = 12
	rcodeSlots = 8
)

func (c *counters) reply(tcp bool, qtype uint16, rcode int, truncated bool) {
	c.replies[transportOf(tcp)][typeSlot(qtype)][rcodeSlot(rcode)].Add(1)
	if truncated {
		c.truncated.Add(1)
	}
}

func transportOf(tcp bool) int {
	if tcp {
		return 1
	}
	return 0
}

func transportNames() [2]string { return [2]string{"udp", "tcp"} }

// typeSlot is where a type is counted: those that a client can make up as he likes are one.
func typeSlot(t uint16) int {
	switch t {
	case dns.TypeA:
		return 0
	case dns.TypeAAAA:
		return 1
	case dns.TypeSRV:
		return 2
	case dns.TypePTR:
		return 3
	case dns.TypeCNAME:
		return 4
	case dns.TypeTXT:
		return 5
	case dns.TypeSOA:
		return 6
	case dns.TypeNS:
		return 7
	case dns.TypeMX:
		return 8
	case dns.TypeHTTPS:
		return 9
	case dns.TypeANY:
		return 10
	default:
		return 11
	}
}

func typeNames() [typeSlots]string {
	return [...]string{"A", "AAAA", "SRV", "PTR", "CNAME", "TXT", "SOA", "NS", "MX", "HTTPS", "ANY", "other"}
}

func rcodeSlot(rcode int) int {
	switch {
	case rcode <= dns.RcodeRefused:
		return rcode
	case rcode == dns.RcodeBadVers:
		return 6
	default:
		return 7
	}
}

func rcodeNames() [rcodeSlots]string {
	return [...]string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "BADVERS", "other"}
}

// histogramBounds are the upper bounds of the buckets, in microseconds. Those above 5 s are for changes that came when the API did.
func histogramBounds() [histogramSlots]int64 {
	return [...]int64{
		50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
		10_000_000, 30_000_000, 60_000_000, 300_000_000,
	}
}

const histogramSlots = 20

// A histogram counts durations.
type histogram struct {
	slots [histogramSlots + 1]atomic.Uint64 // the last for what is longer
	sum   atomic.Int64                      // nanoseconds
}

// observe counts n durations of d. What went backwards, as clocks do, is 0.
func (h *histogram) observe(d time.Duration, n int) {
	d = max(d, 0)
	slot := 0
	for _, bound := range histogramBounds() {
		if d.Microseconds() <= bound {
			break
		}
		slot++
	}
	h.slots[slot].Add(uint64(n))
	h.sum.Add(int64(d) * int64(n))
}
