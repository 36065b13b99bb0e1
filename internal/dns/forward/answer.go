package forward

import (
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// staleTTL is what records of a stale answer say (RFC 8767, section 4).
const staleTTL = 30

// An Answer is what an upstream said to a question. Its records are kept as the bytes that go into a response. It is not changed but for counters, and
// may be used for as long as one likes.
type Answer struct {
	question question
	// data is the records of the answer section, then those of the authority section. Names in it are compressed with pointers to the asked name,
	// and to others in data.
	data []byte
	// fixes are the places in data that a response needs changed, in their order.
	fixes  []fix
	counts [3]int // records by section

	rcode         int
	authenticData bool
	failed        bool          // no upstream had an answer
	kept          bool          // it went into the cache, so that it can get old
	at            time.Time     // when it came
	ttl           time.Duration // the shortest of its records

	// hits is how often it was found, up to hitsEnough and halved by the cache's hand.
	hits atomic.Uint32
	// refreshing is set by who asks again before it gets old.
	refreshing atomic.Bool
	// excused is the age until which it is given although it is stale, as asking again just failed, in nanoseconds.
	excused atomic.Int64

	// What the cache needs: the hash of the question, the next of that bucket, and, guarded by the cache's mutex, where the hand finds it.
	hash uint64
	next atomic.Pointer[Answer]
	slot int
}

// RCode is what to answer with: NOERROR, NXDOMAIN, or SERVFAIL and REFUSED, which have no records.
func (a *Answer) RCode() int { return a.rcode }

// AuthenticData says whether the upstream vouches for it by AD. A client is told if it set DO or AD (RFC 6840, section 5.8).
func (a *Answer) AuthenticData() bool { return a.authenticData }

// Failed says that no upstream had an answer.
func (a *Answer) Failed() bool { return a.failed }

// Stale says whether it is older than its records allow.
func (a *Answer) Stale(now time.Time) bool { return a.kept && now.Sub(a.at) >= a.ttl }

// A fix is a place in an Answer's data, what is there, and what it points to: 16, 2 and 14 bits.
type fix uint32

type fixKind uint32

const (
	fixTTL   fixKind = iota // four octets that get less with time
	fixAsked                // a pointer into the asked name: to what is so far behind its beginning
	fixOwn                  // a pointer to what is so far behind the beginning of data
)

func newFix(at int, kind fixKind, target int) fix { return fix(at<<16 | int(kind)<<14 | target) }

func (f fix) at() int { return int(f >> 16) }

func (f fix) kind() fixKind { return fixKind(f >> 14 & 3) }

func (f fix) target() int { return int(f & maxPointer) }

const (
	// maxPointer is the farthest that compression can point (RFC 1035, section 4.1.4).
	maxPointer = 1<<14 - 1
	// maxBase is how long a response may be before an Answer is appended: header, question, and a few CNAMEs of ours.
	maxBase = 2048
	// maxTarget is the farthest in data that is pointed to, so that it can be done from any base.
	maxTarget = maxPointer - maxBase
)

// Append appends the records to a response that has begun and has no authority or additional records yet. The asked name is at offset at of the
// response, without compression: [wire.QuestionAt], or where a CNAME's target is that was asked for instead. It reports false, with TC set and nothing
// appended, if there is no room. It does not set the RCODE. It allocates nothing if the response's array is long enough.
func (a *Answer) Append(r *wire.Response, at int, now time.Time) bool {
	base := r.Len()
	if len(a.data) > r.Room() || base > maxBase || at > maxBase {
		r.SetTruncated()
		return false
	}
	age := max(now.Sub(a.at), 0)
	stale := a.kept && age >= a.ttl
	seconds := uint32(min(age/time.Second, 1<<31))
	return r.Raw(func(message []byte) ([]byte, [3]int) {
		message = append(message, a.data...)
		records := message[base:]
		for _, f := range a.fixes {
			place := records[f.at():]
			switch f.kind() {
			case fixTTL:
				ttl := binary.BigEndian.Uint32(place)
				if stale {
					ttl = staleTTL
				} else {
					ttl -= min(ttl, seconds)
				}
				binary.BigEndian.PutUint32(place, ttl)
			case fixAsked:
				binary.BigEndian.PutUint16(place, 0xc000|uint16(at+f.target()))
			case fixOwn:
				binary.BigEndian.PutUint16(place, 0xc000|uint16(base+f.target()))
			}
		}
		return message, a.counts
	})
}

// size is about how many octets of memory it takes in the cache.
func (a *Answer) size() int64 {
	const fixed = 256 // the struct, its place in the ring, the allocator's rounding
	return int64(fixed + len(a.question) + len(a.data) + 4*len(a.fixes))
}
