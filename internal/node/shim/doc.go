// Package shim is the process that stands for a pod: "endpointd-pod".
//
// In: the [Bundle] in its working directory, which is the pod's folder, and requests on the unix socket there (a line of JSON; see
// [Request]). Out: containers, their logs, a file for each container with its state, and a stream of changes.
//
// It is PID 1 of the pod's process namespace and holds the pod's other namespaces, so that when it ends the kernel ends the
// pod and nothing remains to be cleaned up but files. It outlives the agent.
//
// Invariants: every child is reaped by one loop, under the lock under which it was started, so an exit is never missed or taken
// for another's. A change of a container is in its file before it is on the stream. A client that is slow or gone
// never blocks a container for longer than clientPatience. It stays small: it keeps no output, and no container but the last of a name.
//
// What it refuses: package net, which would have it start after all of Kubernetes; a second container of a name while the first runs, and sysctls that would change the machine rather than the pod.
// Restarts, probes and clean-up are the agent's.
//
// How to test: through package process, which starts it in its own namespaces; logs, frames and sysctls have tests here.
package shim
