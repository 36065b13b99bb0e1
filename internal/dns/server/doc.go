// Package server answers DNS requests on addresses of the node: the cluster's names from a [Zone], all others from a [Forwarder].
//
// In: packets over UDP and TCP; a Zone, which is replaced as a whole when the cluster changes; a Forwarder with upstreams and their cache. Out:
// responses, metrics, and a log of queries if somebody asked for one.
//
// What flows how: each UDP socket has one goroutine, which reads up to 64 packets by one system call, answers all that can be answered at once,
// and sends the answers by one more (where packets come one at a time, by system calls for one, which cost less); what has to wait for an upstream
// or the API goes to a bounded pool with a copy of its packet. A TCP connection has one goroutine, and its requests that wait use the same pool.
//
// Names of the zone come from the zone and nothing is kept of them. localhost, invalid and onion are answered here; private reverse zones are
// forwarded if they are not the cluster's. Other classes than IN (version.bind) are refused, and so are transfers of the zone, but for who may: the
// records of one Zone go over TCP in messages of 16 KiB, made as the client takes them.
//
// Invariants:
//   - What is answered at once is answered without allocating and without a lock, but for names of pods that the API was asked for.
//   - No client holds up another one, over UDP or TCP: nothing waits for a client but its own connection, and that for a bounded time.
//   - Memory is bounded whatever comes: sockets × batch, waiting requests and connections (of one client, too), buckets of the rate limit, pods.
//   - A response leaves from the address that its request came to, is no longer than the client takes, and goes to nobody who may not ask.
//   - If something cannot be waited for, the response says what is certain: a CNAME without its target, that a name is not in the zone, or SERVFAIL.
//   - What Run started has ended when it returns. Sockets that somebody keeps open collect requests on, and the next Server reads them.
//
// It refuses to know Kubernetes, to keep answers, to choose upstreams, and to decide whose addresses are whose.
//
// How to test: go test ./internal/dns/server, with sockets on loopback; -bench . says what a query costs through a socket, in CPU time, with
// batches and one by one. FuzzAnswer leads packets through everything but the sockets.
package server
