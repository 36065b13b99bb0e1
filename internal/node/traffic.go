package node

import "context"

// A Fact is what this node knows of a pod that could serve a moment ago.
type Fact uint8

// The Facts. What is said later replaces what was said before.
const (
	Dead     Fact = iota + 1 // a process that it needs has ended, or all of it
	NotReady                 // it runs, and a probe found that it cannot serve
	Draining                 // it can serve, and is about to be told to stop
)

func (f Fact) String() string { return [...]string{"serving", "dead", "not ready", "draining"}[f] }

// Traffic is who leads connections to pods. Pods are named by the UID of the API's object, as endpoints name them: that of a static pod is
// its mirror's.
//
// Down, Up and Forget are called from several goroutines, for one pod one after the other and in the order in which things
// happened. They must return at once and must not call the Agent. Drain may take its time; it is called concurrently, also with
// the others.
type Traffic interface {
	// Down tells that no connection is to be led to the pod, whatever the API says: from the goroutine that noticed, before
	// the API is told. With Draining it may still be led there if there is nothing better (a terminating endpoint). Pods that the API
	// never saw ready are not told of.
	Down(uid string, why Fact)
	// Up takes a Down back: the API says that the pod is ready, and was asked after the Down.
	Up(uid string)
	// Forget tells that the UID never comes again. If it was Down it must stay so while a slice still names it.
	Forget(uid string)
	// Drain returns when new connections are led there no more, from any node, or when ctx ends. A Down came before.
	Drain(ctx context.Context, uid string)
}
