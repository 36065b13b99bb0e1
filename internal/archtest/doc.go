// Package archtest holds the rules of the whole repository as tests.
//
// What it is: a list of rules (which package may import which, one package comment each, every package
// on the map in docs/architecture.md, no sleeping tests …), each with the reason it exists and what to do instead.
//
// In and out: [Load] parses a source tree once, without type checking and without following imports out of
// it; each [Rule] turns the [Tree] into findings, and a finding is one line that a person can act on.
//
// Invariants: a rule applies to a package from the day the package appears; no list of packages is kept
// here by hand. Every rule has a fixture under testdata that breaks it, and the test fails for a rule
// without one: a check that cannot fail is no check. The whole run stays under five seconds.
//
// What it refuses: opinions about code that a linter already has (see .golangci.yaml), and anything that needs types.
//
// How to test: go test ./internal/archtest. To see a rule fail, break it in the tree; the message says the way out.
package archtest
