// Package nftables leads new connections to Services' endpoints, for every packet that passes this node.
//
// What it is: a [dataplane.Proxier] that keeps one table, inet endpointd-services, over netlink. The table's chains and rules are static, see
// testdata/shape.golden; Services are elements of maps. The kernel validates a whole table when a rule or a verdict is added, which takes the longer the
// more there is; a plain element it just adds. So a change takes as long with 30,000 Services as with one.
//
// In: Snapshots. Out: elements, in one atomic batch for each change (several for very large ones, in an order that is safe in between).
//
// The way of the first packet of a connection; all others are conntrack's, and pay for three looks at conntrack's state at most:
//
//	filter prerouting (-300)        connections between pods that nobody translates pass conntrack by, and so all below that is about its state, if
//	                                Options.Untracked says so and nobody else has rules here; see untracked.go.
//	nat prerouting, output (-105)   address . protocol . port → frontends: a class, the number of endpoints. A map leads from there to the static chain for
//	                                that number, which draws, looks up the pool's slot, and translates. Frontends that do not treat all clients alike go
//	                                through "special" first: source ranges (drop), who is internal, session affinity.
//	filter prerouting, output (-90) what goes to a frontend and was not translated: refused. So are other ports of ClusterIPs; other addresses in
//	                                the range of ClusterIPs are dropped.
//	nat postrouting, input (95)     what was translated by a frontend: session affinity is remembered; masqueraded unless its answer comes back
//	                                through this node anyway: then TCP has a source port on the server's side of 32768, by which it is told from what
//	                                nobody translated. No mark is used.
//	filter forward, input (0)       what conntrack takes for invalid is dropped, in input only if no socket is there for it, in forward but for ICMP.
//
// A rule's registers do not outlive it, so each looks the frontend up again. Pools of up to 64 endpoints have a chain that draws below their very number;
// above there is one for each power of two, which draws until it hits: each endpoint has the same chance, but for 1 in 65,536 at worst.
//
// Invariants: the table keeps forwarding when this process ends, and the next takes it over: a table of the same shape is read and only what differs is
// written. One of another shape, or a damaged one, is replaced: the next is built without hooks, under the other of two names, and put in force by one batch,
// after which the old is deleted. Whether anybody else has changed the table is known by the generation that the kernel counts, and by what it tells of
// changes: others' tables cost no more than a look at their names.
//
// It refuses to touch other tables, and to judge connections that were translated by others.
//
// How to test: go test ./internal/dataplane/nftables, in namespaces of its own, without root.
package nftables
