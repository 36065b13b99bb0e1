// Package traffic watches what the API says of Services and has it brought to the data plane of this node.
//
// What it is: watches of Services, EndpointSlices, Nodes and ServiceCIDRs, and one goroutine that makes a [model.Snapshot] of all that was seen
// and gives it to a data plane ([Traffic.Run]). What this node knows better than the API about its own pods goes in, too, without a way through the
// API ([Traffic.Down], [Traffic.Up]).
//
// In: objects of the API and facts of this node. Out: Snapshots, each newer than the one before; and answers to the question from which
// resourceVersion of EndpointSlices on the data plane has all in force ([Traffic.Acknowledged]), on which [Traffic.Drain] rests.
//
// Invariants: objects are converted when they are seen, and not kept. What waits is folded into one Snapshot; nothing waits for more to come. The first
// Snapshot is made when everything was listed, for an empty one would end what an earlier run has left in force. While a list is compared with what is
// known there is no Snapshot of half of it. An API that is away changes nothing.
//
// It refuses to know policy, which is in package model, and mechanisms, which are below package dataplane.
//
// How to test: go test -race ./internal/node/traffic, with an API in memory that goes away, in fake time.
package traffic
