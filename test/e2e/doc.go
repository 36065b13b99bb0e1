// Package e2e tests the program as users have it: `endpointd server` as a child process, the stock kubectl of PATH
// and the built-in `endpointd kubectl` against it.
//
// In: bin/endpointd, kubectl, examples/. Out: what kubectl prints, what objects are in the API, what the process prints
// and how it ends. There is nothing in it but tests.
//
// Invariants: every server listens on a free port of 127.0.0.1 with its data in the test's own folder, and ends with its test;
// cases that can share a server do, each in a namespace of its own; nothing waits longer than it must, and there are no sleeps.
// Where a test plays a node's agent, it says so.
//
// It refuses to look inside: what needs a fake clock, a fake API or the count of writes is tested beside its package.
//
// To run it: make e2e, or `go test ./test/e2e -run TestServer/seed` for a part. Less than three minutes on two cores.
package e2e
