// Package sandbox is a machine-wide nothing-touched cluster on one machine: an outer network namespace with a bridge, a network
// namespace for each node on it, and the processes that run in them.
//
// Two processes make it. The host side (Start) has the caller's rights and network and does little: it starts the inside and
// opens listeners on the machine's loopback when the inside asks for them. The inside (Run) is PID 1 of namespaces of its own
// (network, PID, mount, and user when the caller is not root): it makes the network, starts and restarts `endpointd server` and
// one `endpointd node` a node, runs commands for `endpointd exec` and says how things are for `endpointd status`.
//
// In: a Spec. Out: running processes, events for whoever shows progress, a control socket in the data folder.
//
// Invariants: nothing outlives the host side, whatever kills it: the kernel ends the inside with it, and with PID 1 everything
// else, with the sockets that agents keep over their restarts (package fdstore); what is left are files, and cgroups that the next
// start or Clean removes. The machine's own network is only looked at through listeners on loopback. All processes inside are
// children of one reaper. A thread that joined a namespace ends there.
//
// It refuses to know Kubernetes: what the processes are told is in their arguments, which internal/app composes.
//
// To test it: go test -race ./internal/sandbox. Tests need user namespaces; nobody needs to be root.
package sandbox
