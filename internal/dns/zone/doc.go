// Package zone answers for the cluster's own names: the Kubernetes DNS specification 1.1.0, and the reverse names of the cluster's addresses.
//
// What it is: a [Zone], an immutable index of one Snapshot, from which [Zone.Answer] writes a response without locks, waiting or allocation.
//
// In: Snapshots of package model, one after the other ([Zone.Next]), and questions as package wire reads them. Out: whole responses, or the
// [Outcome] that somebody else has to do the rest: forward, or ask the API for a pod.
//
// Invariants:
//   - An answer depends on the Snapshot, the question and the random number only. What a Snapshot says is in the first answer after Next.
//   - Next costs in proportion to what the Services that changed say, not to how many there are; it gives what a new Zone would.
//   - NXDOMAIN means that there is nothing at the name or below it (RFC 8020); everything else that has no records is NODATA. Both have the
//     SOA (RFC 2308). A Zone without a Snapshot knows neither, and answers SERVFAIL.
//   - Whatever a record leads to inside the zone is there: targets of SRV, PTR, NS and the MNAME of the SOA.
//   - What the API would refuse, such as a Service whose name is no label, has no records.
//
// What exists, below the domain:
//
//	(the domain itself)              SOA, NS with glue
//	dns-version                      TXT
//	ns.dns                           A, AAAA: Options.Servers
//	<service>.<ns>.svc               ClusterIP: A, AAAA, SRV; exists while it has an address.
//	                                 Headless: A, AAAA, SRV of its endpoints that are ready; exists while there is one.
//	                                 ExternalName: CNAME, for every type.
//	_<port>._<proto>.<service>…      SRV, for ports that have a name
//	<endpoint>.<service>…            Headless: A, AAAA. An endpoint is named by its hostname, or else by its address with dashes.
//	<address>.<ns>.pod               A or AAAA, if there is such a pod in the namespace
//
// In between, svc, pod, dns and <ns>.pod always exist; <ns>.svc does while a Service in it does; _<proto>.<service>… while a port does.
// Of namespaces the Snapshot says nothing, so one without Services has no name; and since <ns>.pod might have pods, it is never NXDOMAIN.
//
// Reverse names are ours inside the ServiceCIDRs and ClusterCIDRs, whose zones begin at the next octet or nibble. Outside of them, an address
// that some record of ours has is answered, as a zone of that one name, and others are not ours. A range that is smaller than the last octet or
// nibble is made of such zones too, so that there everything is NODATA: no SOA above the name is ours. Before the first Snapshot, every
// reverse name might be.
//
// A transfer ([Zone.Transfer]) has all of the domain but pods, of which no Snapshot knows all. Reverse zones are not transferred.
//
// It refuses to know sockets, time and the API, to forward, to decide who may ask, and to answer classes other than IN.
//
// How to test: go test ./internal/dns/zone. testdata holds a .txtar for each behaviour: objects and questions, and the answers as dig prints them;
// -update writes these. The walk compares Next with a new Zone, and answers with those of a simpler program, over random Services. FuzzAnswer
// puts any packet to it. -bench . says what an answer and a change cost.
package zone
