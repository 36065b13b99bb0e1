// Package prober asks containers how they are: HTTP, TCP, gRPC and exec probes with the meaning that the kubelet gives them.
//
// In go a container's probes ([FromSpec] and [NewSpec] read them from core/v1) with the time at which the container started.
// Out come verdicts: a [Prober] calls Spec.OnResult when the verdict on a container changes, and Spec.OnFailure for each
// probe that failed, with the text of the event that the kubelet would write.
//
// Invariants:
//   - A probe never overlaps with itself, and its callbacks never run concurrently, also across Add with the same Key.
//   - A target that hangs delays nobody: each probe has its own timer and its own goroutine while it is under way, and none otherwise.
//   - Readiness and liveness wait until the startup probe of the same container has succeeded once.
//   - A container that failed its liveness or startup probe, or passed its startup probe, is left alone until it is added anew.
//   - A probe opens a new connection. The server reads a clean end of file, and no socket stays in TIME_WAIT, unless both sides
//     close at the very same moment.
//
// Where it differs from Kubernetes 1.37 on purpose: the first readiness and startup probes are made when the initial delay ends, not at the
// next multiple of the period, and are repeated quickly within the first period without being counted (Spec.Quick); a body that breaks off or does not end in time is a failure (the kubelet throws the result away);
// a gRPC port that refuses the connection fails at once instead of after the timeout; only containers that are
// older than the Prober are probed for the first time at a random moment within their period.
//
// It refuses to decide what follows from a verdict: endpoints, restarts and events are the caller's.
//
// To test a user of it, put a func in Spec.Probe, inside a testing/synctest bubble.
package prober
