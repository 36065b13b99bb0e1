// Package app puts the parts together: one composition root a subcommand, plain constructor calls that are started
// top to bottom and stopped in reverse.
//
// In: options and a context. Out: a running server, until the context ends.
//
// Invariants: one server at a time uses a data folder; a part starts when what it needs is ready and stops after what
// needs it; every error that reaches the user is one line that names the object and the next step.
//
// It refuses to hold logic of its own: that belongs to the parts.
//
// To test it: go test ./internal/app. It links k8s.io/kubernetes, so the first build takes minutes.
package app
