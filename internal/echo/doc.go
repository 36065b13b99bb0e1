// Package echo is the built-in image endpointd/echo: a small server that says which pod answered, and that can be told to fail, to be
// slow and to drain. It is what examples, benchmarks and tests of Services talk to.
//
// In go flags, each also to be had from an environment variable (--fail-after is ECHO_FAIL_AFTER), and the pod's own names from
// POD_NAME (else the host name), POD_NAMESPACE, NODE_NAME and POD_IP. Out come three servers:
//
//   - HTTP/1.1 and HTTP/2 without TLS on PORT (8080): any path answers the pod's name in the first line, then what is known of the pod and
//     the request, or all of it as JSON if Accept asks for that. /healthz and /readyz answer 200 or 503. On the same port, gRPC's
//     grpc.health.v1.Health: service "" and "readiness" follow /readyz, "liveness" follows /healthz.
//   - TCP on TCP_PORT (PORT + 1): says nothing first; each line is answered by "<pod> <line>", also one without
//     its end of line when the client has closed its side. A line longer than 4 KiB is answered in pieces.
//   - UDP on the same addresses as TCP: each datagram is answered by "<pod> <datagram>", from the address that it was sent to.
//
// Orders, by any method:
//
//	/control?ready=false&healthy=true&delay=200ms&status=500   what is not named stays
//	/fail?for=10s     neither healthy nor ready, for a time or (without for) until /control
//	/slow?d=1s        this answer comes later
//	/exit?code=3      the process ends with this code
//	/drain            not ready any more; answers when no other request is open
//
// SIGTERM and SIGINT: not ready any more, connections are not kept; when a quarter of a second has passed and no request is open or, for a second,
// on its way over a connection that was made for it, or --drain is over, all listeners close and Run returns.
//
// Invariants: memory is bounded whatever clients send, by limits on connections, headers, bodies, lines and streams; what is sent
// beyond them waits or is refused. It depends on the standard library alone (a test holds that), since it takes over
// while the packages of the rest of the program are being initialised, see package reexec/late.
//
// It refuses TLS, and to be configured by files. Test it through [Run] with addresses on port 0.
package echo
