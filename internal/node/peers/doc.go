// Package peers lets an agent know that the other nodes have heard: before a pod is told to stop, no node may lead new connections to
// it any more, and only the node itself knows what its data planes have applied.
//
// In: the resourceVersion of an EndpointSlice that was written, and the nodes to ask. Out: for each node whether its data planes have
// applied everything up to that version. A node asks the others' HTTPS API (port 10250, package stream) with its own certificate; the
// question waits there until the answer is yes, so that it costs one round trip on a connection that stays open from one time to the next.
//
// Invariants: only nodes may ask, by a certificate of the cluster's CA in the group system:nodes, and all that they learn is this; a server
// answers within a few seconds and has a bounded number of questions waiting; a client asks nobody whose certificate of that CA is not
// of the very node, and returns within its time whoever does not answer. What the answers mean is the caller's to decide.
//
// What it refuses: to tell anything else, and to be sure. A node that does not answer, or is none of ours, is named in the result.
//
// How to test: go test -race ./internal/node/peers, over TLS on loopback, through package stream's server.
package peers
