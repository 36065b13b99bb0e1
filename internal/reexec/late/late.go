// Package late makes those small processes out of the one big binary that need package net: the echo server.
//
// In: os.Args[0]. Out: as of package reexec.
//
// Invariants: it takes over as soon as package net/http is ready, which is in the middle of the initialisation of Kubernetes (see package reexec
// for the order), so it costs such a process some milliseconds and some memory, and no other process anything.
//
// What it refuses: anything that needs flags, files or a logger to decide. How to test: go test ./internal/reexec/...
package late

import (
	"os"
	"path/filepath"

	"github.com/endpointd/endpointd/internal/echo"
)

// Echo is argv[0] of the echo server.
const Echo = "endpointd-echo"

// init must run here: main() runs after every package of Kubernetes has initialised.
func init() {
	if len(os.Args) > 1 && os.Args[1] == Echo { // as the image table has it, because a path is what a runtime executes
		os.Args = os.Args[1:]
	}
	if len(os.Args) > 0 && filepath.Base(os.Args[0]) == Echo {
		os.Exit(echo.Main())
	}
}
