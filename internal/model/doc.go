// Package model is the only translator from API objects to what data planes and DNS need.
//
// What it is: an [Input], a persistent value of all that one node knows, and [Build], which makes a [Snapshot] of it: every Service with its
// frontends, the endpoints that each leads to from this node, and for every other endpoint the [Reason] why not. Traffic policies,
// readiness, termination, hints, address families and who owns a frontend are decided here and nowhere else.
//
// In: Services and EndpointSlices as the API has them, the [Network] of the node, and what the node knows before the API does
// ([Input.WithDown]). Out: a Snapshot, and which Services differ from an earlier one ([Snapshot.Changed]).
//
// Invariants:
//   - Build is pure: the same Input gives the same Snapshot, whatever was before; the earlier Snapshot only spares work. A change
//     costs in proportion to the Services that it touches, not to those that there are.
//   - A Service that did not change is the same pointer in the next Snapshot; if none did, the Snapshot is the same.
//   - No two Frontends have one key: the one whose ClusterIP it is, else the oldest, by creationTimestamp and then by key.
//   - An endpoint of a slice that is the same is mostly the same pointer, but who compares endpoints compares what they say.
//   - Every endpoint in a Pool is one that its traffic policy allows; a Pool is sorted, of one family, without repetitions.
//   - What cannot be used becomes a [Problem] and hurts nothing else. An object without a namespace or a name is none, and a slice without
//     the label kubernetes.io/service-name belongs to nobody.
//   - API objects are not modified and not kept. Inputs and Snapshots are immutable.
//
// It refuses to watch, to write, to wait, to log, and to import more of Kubernetes than its types.
//
// How to test: go test ./internal/model. testdata holds one .txtar for each behaviour: objects, and the text of the Snapshot after each
// step; -update writes the texts. The walk compares every incremental Build with one from nothing, and FuzzBuild walks where a fuzzer leads it
// (-fuzz FuzzBuild -fuzzminimizetime 10x: making its finds smaller is not worth a minute each). -bench . says what a change costs.
package model
