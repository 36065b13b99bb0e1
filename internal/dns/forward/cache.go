package forward

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

// hitsEnough is how often an Answer is counted as found: then it survives the cache's hand twice.
const hitsEnough = 3

// A cache finds Answers by their question. Readers take no lock: they follow pointers that are set atomically, and an Answer that was just taken out
// still leads them on; they may overlook one at the moment when it is replaced. It holds at most so many entries and octets; what is not asked for goes first (CLOCK).
type cache struct {
	seed    maphash.Seed
	buckets []atomic.Pointer[Answer] // by the hash of the question; their number is a power of 2

	mu         sync.Mutex // guards what is below, and every change of buckets and of next
	ring       []*Answer  // what the hand passes, nil where nothing is
	free       []int      // places in ring that are nil
	hand       int
	maxEntries int
	maxBytes   int64

	entries, bytes atomic.Int64
	evictions      *atomic.Uint64
}

func newCache(maxEntries int, maxBytes int64, evictions *atomic.Uint64) *cache {
	n := 1
	for n < maxEntries {
		n *= 2
	}
	return &cache{
		seed: maphash.MakeSeed(), buckets: make([]atomic.Pointer[Answer], n),
		maxEntries: maxEntries, maxBytes: maxBytes, evictions: evictions,
	}
}

func (c *cache) bucket(hash uint64) *atomic.Pointer[Answer] {
	return &c.buckets[hash&uint64(len(c.buckets)-1)]
}

// find returns the Answer to a question, nil if there is none.
func (c *cache) find(q []byte) *Answer {
	hash := maphash.Bytes(c.seed, q)
	for a := c.bucket(hash).Load(); a != nil; a = a.next.Load() {
		if a.hash == hash && string(a.question) == string(q) {
			return a
		}
	}
	return nil
}

// put keeps an Answer instead of what there was to its question. It reports false if it is too long to be kept.
func (c *cache) put(a *Answer) bool {
	const part = 4 // one Answer takes at most a fourth of the whole
	size := a.size()
	if size > c.maxBytes/part {
		return false
	}
	a.hash = maphash.String(c.seed, string(a.question))
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.find([]byte(a.question))
	head := c.bucket(a.hash)
	a.next.Store(head.Load())
	head.Store(a)
	if was != nil {
		a.hits.Store(was.hits.Load())
		c.take(was)
	}
	if n := len(c.free); n > 0 {
		a.slot, c.free = c.free[n-1], c.free[:n-1]
		c.ring[a.slot] = a
	} else {
		a.slot = len(c.ring)
		c.ring = append(c.ring, a)
	}
	c.entries.Add(1)
	c.bytes.Add(size)
	for c.entries.Load() > int64(c.maxEntries) || c.bytes.Load() > c.maxBytes {
		c.evict(a)
	}
	return true
}

// remove forgets what there is to a question.
func (c *cache) remove(q question) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.find([]byte(q)); a != nil {
		c.take(a)
	}
}

// evict moves the hand until it took something out, which is not spared.
func (c *cache) evict(spared *Answer) {
	for {
		c.hand = (c.hand + 1) % len(c.ring)
		a := c.ring[c.hand]
		if a == nil || a == spared {
			continue
		}
		if n := a.hits.Load(); n > 0 {
			a.hits.Store(n / 2)
			continue
		}
		c.take(a)
		c.evictions.Add(1)
		return
	}
}

// take takes one out.
func (c *cache) take(a *Answer) {
	place := c.bucket(a.hash)
	for p := place.Load(); p != nil && p != a; p = place.Load() {
		place = &p.next
	}
	place.Store(a.next.Load())
	c.ring[a.slot] = nil
	c.free = append(c.free, a.slot)
	c.entries.Add(-1)
	c.bytes.Add(-a.size())
}
