// Package dptest is one suite for every data plane, in real packets.
//
// What it is: a [World] of network namespaces (this node with pods, another node with pods, a client outside) and cases that dial in it. The
// same cases run against every [dataplane.Proxier], alone or composed, see [Run].
//
// In: a function that makes the proxiers for a World. Cases say what Services there are in the API's words, package model makes the Snapshot,
// and the cases expect who answers, with which source address, or that a client is refused or gets no answer. Out: failures, each with the
// client, the frontend and what came instead.
//
// Invariants: everything is in namespaces of the test binary's own, see [Main]. A case has its own Services, addresses and ports, so cases run
// at the same time in one World, and every change of one goes through all that the others have. Every expectation is tried for IPv4 and IPv6,
// TCP and UDP. A right proxier never fails for being slow.
//
// It refuses to know how a proxier does it: rules and maps are for the proxiers' own tests.
//
// How to test: go test ./internal/dataplane/dptest runs it against a small proxier of its own, and against wrong ones, which must fail.
package dptest
