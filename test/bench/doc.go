// Command bench measures endpointd against what it replaces: the endpoint and endpointslice controllers of Kubernetes,
// imported as libraries, on the same API, on the same data, in the same run. `make bench` runs it; it prints tables and
// writes JSON.
//
// In: bin/endpointd, a stock kubectl, flags. Out: a [Report]. What it measures:
//
//	startup   exec → ready line → first answer of kubectl; resident memory when idle
//	flips     readiness PATCH sent → EndpointSlice and Endpoints seen by another client's watch, at some Services × 10 pods
//	memory    the server's resident memory with the largest of these loads, and after a restart
//	big       the same flips in one Service of all these pods; writes, bytes and CPU of each
//	replace   all these pods replaced by new ones: seconds, writes, bytes, CPU and memory of the controllers
//	up        endpointd up with three nodes: exec → all ready, on a new folder and again; down
//	probes    CPU of 1,000 HTTP probes a second, ours and made as the kubelet makes them
//	pods      a Deployment of 300 echo servers on three nodes: created → Ready, → in slices; CPU and memory at rest
//	kills     kill -9 of containers and of whole pods, and DELETE: → left the slice, → back in it
//	silent    SIGSTOP of an agent: → its endpoints left, → replaced
//
//	traffic      requests a second and how long they take, through a Service and directly, at some numbers of Services
//	programming  a slice written → the first new connection reaches the new endpoint, and the kernel's part of it
//	coldstart    a proxy started → the last Service works; memory and CPU
//	footprint    a proxy's memory at rest
//	ready        endpointd up with two nodes: a pod seen Ready → the first connection, on its node and on the other
//
// How: a real `endpointd server` (embedded etcd, fsync on) without its own endpoints controllers, and the contenders one
// after the other as child processes of this program, so that CPU time and memory are told apart by the kernel. They get
// the same client (protobuf, TLS, client certificate, no compression), the same informers without managedFields, and take over each
// other's slices. The rounds alternate: ours, upstream, inside, ours, upstream, inside … The contenders:
//
//	ours            internal/controller/endpoints and mirror, no rate limit
//	upstream        both controllers with kube-controller-manager's defaults (5 workers each, no batching, 100 endpoints a
//	                slice), but no rate limit: this is the peer of every ratio
//	upstream 20/s   the same with kube-controller-manager's default rate limit, 20 requests a second and 30 at once for
//	                each controller; once, for reference
//	ours inside     endpointd as it is shipped: the controllers in the server's process; latency only
//
// Flips are sequential: the next one is sent when the slice and the Endpoints were seen and the contender's process has
// been idle for 10 ms, so what a contender does after its write never burdens its next sample; the part big also has them
// back to back. Writes are events of a watch on EndpointSlices and Endpoints, bytes are the protobuf sizes of the objects
// in them. CPU is the process's CPU clock. A figure is the median over the runs, p99 is that of all samples together, and
// the spread over the runs says how noisy the machine was.
//
// The five after these need what endpointd up needs. Processes are found below the agents in /proc; times are from just before the signal is
// sent until the event is there on this program's watches. Upstream has no part in them: what peers publish of themselves is printed
// below the table, each with where.
//
// Then come the traffic parts. They need root, for eBPF, and a kube-proxy 1.37 (-kube-proxy), nft, and HAProxy for their columns; what is missing is
// noted. Every contender has a node of its own, which is a network namespace with a client and a server as pods behind it, and a cgroup for the client;
// the API server is in another namespace. All contenders of a size are there together and take turns, the proxies of the others stopped. The other
// Services have two endpoints each, and all of them work, for the server's pod has all their addresses. For each rate the pods are new and
// conntrack is empty, so no TIME_WAIT is left from before; what that would do is looked for where one client takes both ways in turn.
//
// The load is our own: one thread on epoll for the client and one for the server, as wrk would do it, which leaves the two cores to the
// kernel; and it can alternate, tells failed from slow, and needs nothing installed. So rates are bounded by the CPU of both together, and a
// ratio says what a way costs. A new connection is seen by dialling each 0.4 ms, which is how late a figure of programming and ready may
// be. The kernel's part is the time that the system call with the batch takes, seen by a program at raw tracepoints.
//
// Invariants: loads are bounded and end by themselves; children die with this program; everything is on loopback or in
// network namespaces of its own, and in one temporary folder.
//
// It refuses to go on when a contender does not bring the slices to what they should be: a wrong answer has no speed.
//
// To test it: go test ./test/bench runs all parts at tiny sizes and wants a complete and plausible report.
package main
