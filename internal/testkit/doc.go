// Package testkit holds what tests of several packages share.
//
// What it is: golden files ([Golden]), waiting without sleeping ([Await]), leaks of goroutines and file
// descriptors ([Main]), skips that have to be earned ([Need]), and the real program as a child process
// ([Binary], [Server], [Up], [Kubectl]).
//
// In and out: a testing.TB goes in; everything that a function started ends with the test, by process id.
//
// Invariants: no test waits longer than it must, and none touches the machine: servers listen on a free
// port of 127.0.0.1, and their data, home folder and kubeconfig lie in the test's own temporary folder.
//
// What it refuses: imports of k8s.io, so that the fast half of the tree stays fast; fakes of our own
// packages, which live beside what they fake.
//
// How to test: go test ./internal/testkit. The test binary plays the part of endpointd, so nothing is built.
package testkit
