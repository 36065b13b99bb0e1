// Package wire reads DNS requests and writes responses as the bytes that they are, without allocating: RFC 1035 (messages), 6891 (EDNS), 7873
// (cookies), 9619 (one question).
//
// In: a packet, which [Query.Parse] refers to and does not keep beyond the next one. Out: [Response], which appends records to a buffer that its
// caller reuses.
//
// Invariants:
//   - Whatever the bytes are, parsing ends, allocates nothing and reads nothing beyond them; work is in proportion to their length.
//   - A response repeats ID, opcode, RD, CD and the question as they came, letter case too, and is never longer than its limit; what does not fit
//     of the answer sets TC, and what does not fit of the additional section is left out.
//   - Names are in wire form: labels with their lengths, ending in the root's 0, without compression, at most 255 octets.
//
// It refuses to know zones, sockets and time. What is not on the way of every answer (forwarding, zone files, TLS) uses github.com/miekg/dns.
//
// How to test: go test ./internal/dns/wire; the tests compare with github.com/miekg/dns, and FuzzParse does so where a fuzzer leads it.
package wire
