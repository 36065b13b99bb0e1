// Package node is the node agent: it makes pods real. In flow the pods that the API binds to its node and those of a
// manifest folder; out flow processes (package process), addresses (package podnet) and the pods' status, as a kubelet
// writes it; and, before the API hears of it, which pods can serve no more (Traffic).
//
// Each pod has a goroutine of its own, the worker, that owns all that is known of the pod. What happens (an edit, an exit, a
// probe's verdict, a timer) is put into its inbox; then it looks at the whole and does the next thing that is missing. So it does not
// matter in which order things happen, or whether the agent was there when they did. What to do next is decided in plan.go,
// what the API shows in status.go; both are pure. worker.go, start.go and stop.go do it.
//
// Invariants: the agent acts before it reports; a pod that is down here comes up only when the API has agreed since (standing.go); a pod
// runs on while the API, or the agent, is away; nothing of a pod is left when its object goes. The agent refuses to run containers' images
// (there is no registry client): a table says what an image runs.
//
// Test with a runtime and an API in memory, in testing/synctest; the real ones are in the tests of the packages below and in
// test/e2e.
package node
