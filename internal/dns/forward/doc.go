// Package forward asks upstreams for the names that are not the cluster's, and keeps what they said: RFC 1035, 2308 (negative answers), 5452
// (answers that are not theirs), 6891 (EDNS), 7766 (TCP), 7858 (TLS), 8767 (stale answers), 9520 (failures).
//
// In: a [wire.Query]. Out: an [Answer], from the cache by [Forwarder.Lookup], which does not wait, or from an upstream by [Forwarder.Resolve], which
// does; [Answer.Append] copies its records into a response. The path of a question is
//
//	Lookup → Resolve → one flight per question → the zone's upstreams, one after another → UDP, TCP when truncated, or TLS
//
// and each flight is a goroutine that [Forwarder.Run] waits for when it ends, as it does for the readers of connections.
//
// Invariants:
//   - A hit allocates nothing and takes no lock: an Answer is never changed, but for counters.
//   - What is kept of an upstream's message is what belongs to the asked name or to what its CNAMEs lead to, and of the authority section what says
//     that something does not exist. Nothing else can get into the cache.
//   - Memory is bounded by Options: entries and bytes of the cache, questions in flight, connections of an upstream. Time is: every question ends.
//   - An upstream that leads back here, or is one of our own addresses, is not asked.
//
// It refuses to validate DNSSEC (it passes DO, CD, AD and signatures on), to send a client's subnet anywhere, and to decide who may ask: the server does.
//
// How to test: go test ./internal/dns/forward; upstreams are servers of github.com/miekg/dns on loopback, and FuzzUpstream is one that says anything.
package forward
