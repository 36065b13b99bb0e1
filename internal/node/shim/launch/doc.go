// Package launch turns a fresh process into a container: it is what "endpointd-launch" runs between clone and exec.
//
// In: a [Spec] on descriptor 4, in a process that has the namespaces of the container already (or, with Spec.Join, a
// descriptor of a process to join). Out: [Message]s on descriptor 3, and then the program of the container in place of this
// process. When descriptor 3 closes after a message with Exec and without an Error, the program runs.
//
// Invariants: mounts are made in the container's own mount namespace, below its root, and never reach the machine: sources
// are opened as detached trees while the machine's root is still there, then the root is changed, and everything after
// is resolved by the kernel within the new root. A mount point that is missing is provided on a file system in memory. What
// must not be inherited (descriptors, ignored signals, capabilities) is not.
//
// What it refuses: a mount source that does not exist, a user that the namespace does not know, a program that cannot be
// executed; each with a [Failure] that says what to do. It decides no policy: capabilities, users and mounts are given.
//
// How to test: through package process, whose tests start real containers; command look-up has its own tests here.
package launch
