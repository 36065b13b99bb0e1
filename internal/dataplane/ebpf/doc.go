// Package ebpf lets clients on this node dial Services without NAT: the kernel replaces a Service's address in connect() and sendmsg(), before
// there is a packet.
//
// What it is: a dataplane.Proxier. Programs at the node's cgroups (folder bpf, in C) read the same slots that package slots gives every data plane,
// from hash maps; a socket remembers what it was told, so getpeername() and recvmsg() show the Service's address again.
//
// In: Snapshots. Out: maps, programs and links, pinned in a folder of a bpffs, so that they work on while no agent runs and the next agent
// finds them. Sockets whose endpoint is gone are closed, see [Options.Namespaces]; they are looked for only if the programs noted that some client
// was led to it, which no other endpoint's coming and going has to pay for.
//
// Invariants: only frontends of TCP and UDP that have an endpoint and no source ranges are translated. Everything else passes untouched, and is
// for nftables to forward, reject or drop. A call that meets the maps half written gets an endpoint that was right before or is right after, or
// is not translated. No call ever fails because of a program. A second Sync writes nothing.
//
// It refuses to choose endpoints by any rule of its own, to touch others' programs, and to run where BPF is not allowed: see [Supported].
//
// How to test: go test ./internal/dataplane/ebpf, as root; it works in a cgroup and namespaces of its own. After a change in folder bpf run
// build.sh, which needs clang-16.
package ebpf
