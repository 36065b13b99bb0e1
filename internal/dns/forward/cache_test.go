package forward

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

func entry(name string, size int) *Answer {
	q := newQuestion([]byte(fmt.Sprintf("%c%s\x00", len(name), name)), dns.TypeA)
	return &Answer{question: q, data: make([]byte, size), ttl: time.Minute, kept: true}
}

func TestTheCacheIsBounded(t *testing.T) {
	for _, c := range []struct {
		name       string
		maxEntries int
		maxBytes   int64
		size       int
	}{{"entries", 100, 1 << 30, 10}, {"bytes", 1 << 20, 100_000, 1000}} {
		t.Run(c.name, func(t *testing.T) {
			var evictions atomic.Uint64
			cache := newCache(c.maxEntries, c.maxBytes, &evictions)
			popular := entry("popular", c.size)
			cache.put(popular)
			for i := range 5000 {
				a := entry(fmt.Sprintf("n%d", i), c.size)
				if !cache.put(a) || cache.find([]byte(a.question)) != a {
					t.Fatalf("entry %d is not found", i)
				}
				if cache.entries.Load() > int64(c.maxEntries) || cache.bytes.Load() > c.maxBytes {
					t.Fatalf("%d entries of %d bytes", cache.entries.Load(), cache.bytes.Load())
				}
				popular.hits.Store(hitsEnough)
			}
			if cache.find([]byte(popular.question)) == nil {
				t.Error("what is asked for all the time was evicted")
			}
			if n := evictions.Load() + uint64(cache.entries.Load()); n != 5001 {
				t.Errorf("%d entries are left or evicted, want 5001", n)
			}
			left, bytes := 0, int64(0)
			for i := range cache.buckets {
				for a := cache.buckets[i].Load(); a != nil; a = a.next.Load() {
					left++
					bytes += a.size()
				}
			}
			if left != int(cache.entries.Load()) || bytes != cache.bytes.Load() {
				t.Errorf("%d entries of %d bytes are found, %d of %d are counted", left, bytes, cache.entries.Load(), cache.bytes.Load())
			}
		})
	}
}

func TestAnEntryIsReplaced(t *testing.T) {
	cache := newCache(10, 1<<20, new(atomic.Uint64))
	for i := range 100 {
		a := entry("same", i)
		cache.put(a)
		if cache.find([]byte(a.question)) != a || cache.entries.Load() != 1 || cache.bytes.Load() != a.size() || len(cache.ring) > 2 {
			t.Fatalf("%d entries of %d bytes, ring of %d", cache.entries.Load(), cache.bytes.Load(), len(cache.ring))
		}
	}
	if huge := entry("huge", 1<<19); cache.put(huge) || cache.find([]byte(huge.question)) != nil {
		t.Error("one entry takes half of the cache")
	}
	cache.remove(entry("same", 0).question)
	if cache.entries.Load() != 0 || cache.bytes.Load() != 0 {
		t.Errorf("%d entries of %d bytes are left", cache.entries.Load(), cache.bytes.Load())
	}
}

// TestReadersNeedNoLock is for the race detector, and for chains that change under who follows them.
func TestReadersNeedNoLock(t *testing.T) {
	cache := newCache(8, 1<<30, new(atomic.Uint64))
	cache.maxEntries = 100 // nothing is evicted, and chains are long
	fixed := []byte(entry("fixed", 10).question)
	var stop atomic.Bool
	var wg sync.WaitGroup
	cache.put(entry("fixed", 10))
	for range 4 {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				looks := 0
				for ; looks < 1000 && cache.find(fixed) == nil; looks++ { // it may be overlooked while it is replaced
				}
				if looks == 1000 {
					t.Error("what is there is not found")
					return
				}
				other := entry(fmt.Sprintf("n%d", i%20), 1).question
				if a := cache.find([]byte(other)); a != nil && a.question != other {
					t.Error("something else is found")
					return
				}
			}
		})
	}
	for i := range 20_000 {
		other := entry(fmt.Sprintf("n%d", i%20), 1)
		cache.put(other)
		if i%3 == 0 {
			cache.remove(other.question)
		}
		if i%100 == 0 {
			cache.put(entry("fixed", 10))
		}
	}
	stop.Store(true)
	wg.Wait()
}

// hit is a Forwarder that knows the answer to q: so many addresses behind a CNAME.
func hit(t testing.TB, addresses int) (*Forwarder, *wire.Query) {
	t.Helper()
	f := start(t, Options{}, Upstream{Addr: netip.MustParseAddrPort("192.0.2.1:53")}) // nobody is there, and nobody is asked
	m := new(dns.Msg)
	m.Answer = append(m.Answer, record(t, "www.example.org. 300 IN CNAME www.cdn.example.net."))
	for i := range addresses {
		m.Answer = append(m.Answer, record(t, fmt.Sprintf("www.cdn.example.net. 300 IN A 10.0.%d.%d", i/256, i%256)))
	}
	a := accept(t, "www.example.org.", dns.TypeA, false, m)
	f.keep(a)
	return f, ask(t, "www.example.org.", dns.TypeA)
}

func answerHit(f *Forwarder, q *wire.Query, r *wire.Response, buf []byte, now time.Time) []byte {
	a, ok := f.Lookup(q, now)
	if !ok {
		return nil
	}
	r.Begin(buf, q, 1232, 1232)
	r.SetRecursionAvailable()
	r.SetRCode(a.RCode())
	a.Append(r, wire.QuestionAt, now)
	return r.Finish()
}

func TestAHitAllocatesNothing(t *testing.T) {
	f, q := hit(t, 8)
	var r wire.Response
	buf := make([]byte, 1232)
	now := time.Now()
	if m := unpack(t, answerHit(f, q, &r, buf, now)); len(m.Answer) != 9 {
		t.Fatalf("%d records, want 9", len(m.Answer))
	}
	if n := testing.AllocsPerRun(1000, func() { answerHit(f, q, &r, buf, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	miss := ask(t, strings.Repeat("miss.", 20)+"example.org.", dns.TypeA)
	if n := testing.AllocsPerRun(1000, func() { f.Lookup(miss, now) }); n != 0 {
		t.Errorf("%v allocations where nothing is found", n)
	}
}

func BenchmarkHit(b *testing.B) {
	for _, n := range []int{1, 8, 50} {
		f, q := hit(b, n)
		now := time.Now()
		b.Run(fmt.Sprintf("addresses=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			var r wire.Response
			buf := make([]byte, 1232)
			for b.Loop() {
				answerHit(f, q, &r, buf, now)
			}
		})
		b.Run(fmt.Sprintf("parallel/addresses=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				var r wire.Response
				buf := make([]byte, 1232)
				for pb.Next() {
					answerHit(f, q, &r, buf, now)
				}
			})
		})
	}
}

func BenchmarkMiss(b *testing.B) {
	up := newFake(b, func(r *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: []byte{10, 0, 0, 1}}}
		return m
	})
	f := start(b, Options{}, up.upstream())
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		resolve(b, f, ask(b, fmt.Sprintf("n%d.example.", n), dns.TypeA))
	}
}
