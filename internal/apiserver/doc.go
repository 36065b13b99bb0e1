// Package apiserver is the Kubernetes API of endpointd: the upstream registries (storage strategies,
// validation, defaulting, allocators, table printers) composed on k8s.io/apiserver, with only the kinds this
// system needs.
//
// In: a bound listener, etcd, key material and the Service ranges (Options). Out: the Kubernetes API over TLS,
// and a privileged client configuration for the controllers of the same process (Server.LoopbackConfig).
//
// Kinds: see served in kinds.go. CustomResourceDefinitions are served by the upstream apiextensions server, which
// the main server delegates to; there is no aggregator, so CRD groups are added to discovery here (crd.go), and metrics.k8s.io
// is served here, too (metrics.go and package top): it stores nothing and asks the nodes' agents.
//
// Invariants:
//   - Nothing is written to etcd past the registries, except the leases under masterleases/ and the node port
//     range, both through their upstream writers.
//   - Every answer of /readyz with 200 means: allocators checked, informers synced, CRDs served, default
//     ServiceCIDR and the namespace of node leases present. Default RBAC roles and the other system namespaces follow
//     without gating it.
//   - Anonymous requests reach /livez, /readyz and /healthz and nothing else; the rest is 401 before authorization.
//   - Authorization is system:masters, the rights of nodes (nodes.go), then RBAC.
//   - A role that a user edits keeps additions; missing upstream rules are put back at the next start.
//
// Admission is what the served kinds need to be right, in upstream's order: NamespaceLifecycle (no objects in
// missing or terminating namespaces, default and kube-* cannot be deleted), ServiceAccount (default account and
// token volume of pods), DefaultIngressClass, and our own for what a node may write (nodeadmission.go). Left out:
// plugins of kinds not served (LimitRanger, ResourceQuota, Priority, RuntimeClass, StorageClass, webhooks, admission
// policies), those that belong to a scheduler (TaintNodesByCondition, DefaultTolerationSeconds), and PodSecurity,
// whose library is not linked.
//
// It refuses: kinds outside the list, PodDisruptionBudgets (an eviction finds none, so it always succeeds),
// aggregated API servers, admission webhooks, static tokens, audit logs.
//
// The upstream libraries log through klog, a process-wide logger: New routes it to Options.Logger, warnings and
// errors only.
//
// The version served at /version is the one of the linked k8s.io/kubernetes module, or what a build sets with
// -ldflags "-X k8s.io/component-base/version.gitVersion=v1.37.2".
//
// Tests: go test ./internal/apiserver starts one server on an embedded etcd and runs the cases against it in
// parallel. They link k8s.io/kubernetes; the first build takes minutes, the run well under one.
package apiserver
