// Command endpointd is Kubernetes Services and Endpoints as one small program.
package main

import (
	"os"

	"github.com/endpointd/endpointd/internal/cli"
	_ "github.com/endpointd/endpointd/internal/reexec" // pods' processes are this program under other names
	_ "github.com/endpointd/endpointd/internal/reexec/late"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
