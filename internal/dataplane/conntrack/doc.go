// Package conntrack compares the flows that the kernel remembers with what a [model.Snapshot] says, and has it forget those that lead elsewhere.
//
// What it is: only the first packet of a flow meets the rules of nftables; the kernel remembers what they said and does the same with all that follow. A
// UDP client that goes on sending from one port keeps such an entry alive for ever, also when its endpoint is gone. The [Tracker] finds
// these entries and deletes them, so that the next packet meets the rules that are in force.
//
// In: Snapshots that the data plane has in force ([Tracker.Applied]), and at start what an earlier run had there ([Tracker.Inherit]). Out:
// ctnetlink: dumps that the kernel filters, and deletions of single entries by tuple, zone and ID.
//
// Which flows are ours is said by their original destination alone, so nftables has to mark nothing: it is a frontend of the Snapshot; or one that lately was,
// and the flow leads to one of the endpoints that it then had; or an address in the ServiceCIDRs that no Service has any more, and somebody
// translated it. An endpoint may keep its flows as long as it serves, whatever policy or hints say of new ones, as in kube-proxy: a Service's change
// is no reason to break what works.
//
//   - UDP: deleted if its endpoint does not serve or is gone, or was never translated, or if its source may not come any more.
//   - SCTP: the same; but an association that was answered stays while the Service lists its endpoint, ready or not. One whose endpoint is gone
//     cannot be finished, and its entry would catch the next INIT of a client with a fixed port.
//   - TCP: what was answered is never touched. A SYN that nobody answered, at an endpoint that does not serve, is deleted: sent once more,
//     it finds another endpoint after a second, where it would run against a dead one for two minutes.
//
// Invariants: nothing is deleted that leads where the Snapshot says, nor anything that is not ours: direct flows to pods, host ports, other people's NAT.
// Never is a table flushed. plan.go and diff.go decide and are pure; observe.go streams a dump, apply.go deletes. Memory does not grow with the table.
//
// Why it converges: the rules are in force before [Tracker.Applied] is called, so an entry that is made after a deletion is right. One exception is a packet that had
// passed the rules, and was not remembered yet, when they changed: a sweep finds it, at the latest a period later; frontends that are gone are
// remembered until a whole sweep after that.
//
// It refuses to count, log or change flows, and to know policy.
//
// How to test: go test ./internal/dataplane/conntrack makes network namespaces of its own, and real flows there.
package conntrack
