// Package podspec turns pod specs into what a container runtime starts: container.Sandbox and container.Container.
//
// In go a pod as the API has it, the image table, and what the pod refers to: ConfigMaps, Secrets, Services and tokens,
// through [Source]. Out come the two nouns of package container, and files: the pod's volumes in Dir/<uid>/<volume>, and in
// Dir/<uid>/.etc and .termination what every container gets (hosts, hostname, resolv.conf, termination log).
//
// The agent calls, in this order: Prepare (until it succeeds, before StartPod: a volume in memory is a mount, which the
// pod's namespaces must see), Sandbox, Container for each start, Refresh from time to time while the pod lives,
// TerminationMessage when a container has ended, and Remove when the runtime has removed the pod.
// Calls for one pod come one after the other; those for different pods may be concurrent.
//
// What holds:
//   - Pods and what Source returns are never modified.
//   - What a volume shows changes atomically: a reader sees all of the old keys or all of the new ones. An object or an API that cannot
//     be had leaves what is there.
//   - A mount's source is a resolved path: no component of it is a symbolic link when Container returns, so a
//     runtime that opens it with RESOLVE_NO_SYMLINKS cannot be led elsewhere by another container of the pod.
//   - Nothing outside Dir is written, but for hostPath volumes of types that ask for it and sub-paths in hostPath volumes.
//   - Values of Secrets and tokens are in no error and no log line.
//   - Every refusal is an [*Error] with the kubelet's reason, and names the object and the next step.
//
// It refuses volumes that need a driver or a controller (claims, CSI, NFS), Localhost profiles of seccomp and AppArmor, user
// namespaces for single pods and Windows; it starts nothing, pulls nothing and decides nothing about restarts.
//
// Test it with the golden files in testdata (a pod in, a container out); mounts are tested in a namespace of the test's own.
package podspec
