// Package reexec makes the small processes of endpointd out of the one big binary.
//
// In: os.Args[0], or for the echo server os.Args[1]. Out: for a name that it knows, that process's main function is run instead of package main's, and the process
// ends with its exit code. For any other name nothing happens.
//
// Invariants: it takes over while packages initialise, before those of Kubernetes do, which cost 60 ms of CPU and tens of megabytes.
// Go initialises the package with the lexically smallest path of those whose imports are ready, so what this package imports
// is the standard library and golang.org/x/sys/unix alone; a test holds that. Package net is not among it: what it imports below
// "vendor/" sorts last of all, so it is ready after most of Kubernetes. Processes that need it are in package late.
//
// What it refuses: anything that needs flags, files or a logger to decide. How to test: go test ./internal/reexec.
package reexec

import (
	"os"
	"path"

	"github.com/endpointd/endpointd/internal/node/shim"
	"github.com/endpointd/endpointd/internal/node/shim/launch"
)

// Names of the processes, as argv[0].
const (
	Pod    = "endpointd-pod"
	Launch = "endpointd-launch"
)

// init must run here: main() runs after every package of Kubernetes has initialised.
func init() {
	if len(os.Args) == 0 {
		return
	}
	switch path.Base(os.Args[0]) {
	case Pod:
		os.Exit(shim.Main())
	case Launch:
		os.Exit(launch.Main())
	}
}
