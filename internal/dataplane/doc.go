// Package dataplane makes the kernel do what a [model.Snapshot] says.
//
// What it is: the contract of a [Proxier], and the [Runner] that brings the newest Snapshot to one. The proxiers are packages of their own:
// nftables (all of a Service's semantics, for every packet that passes this node) and ebpf (clients on this node, without NAT). What both keep
// in the kernel has the same shape, decided in package slots.
//
// In: Snapshots, in any number; the latest wins. Out: system calls, and which Revision is in force.
//
// Invariants: no policy is decided here or below (law 2). A Sync that fails leaves what was in force, and is tried again with the newest
// Snapshot. The kernel forwards on when this process ends.
//
// It refuses to touch what is not its own: other tables, other programs, other proxies' rules.
//
// How to test: package dptest runs one suite in real packets against every proxier.
package dataplane
