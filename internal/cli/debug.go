package cli

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/endpointd/endpointd/internal/app"
)

func newDebug(streams IO) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "debug",
		Short: "Ask a node agent what it knows and does",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var applied bool
	snapshot := &cobra.Command{
		Use:   "snapshot",
		Short: "Print all Services as this node sees them, with the endpoints that they lead to from here",
		Long: `Print all Services as this node sees them: their addresses, the endpoints that these lead to from here, and of each other endpoint the
reason why not. It is the newest that the agent knows; --applied prints what is in force.`,
		Example: "  endpointd debug snapshot --node node-1",
		Args:    cobra.NoArgs,
	}
	snapshot.Flags().BoolVar(&applied, "applied", false, "what is in force")
	debugRun(snapshot, streams, func() string {
		if applied {
			return "snapshot?applied"
		}
		return "snapshot"
	})
	status := &cobra.Command{
		Use:   "status",
		Short: "Print how the data plane of this node is, as JSON",
		Args:  cobra.NoArgs,
	}
	debugRun(status, streams, func() string { return "status" })
	cmd.AddCommand(snapshot, status)
	return cmd
}

// debugRun has the command ask an agent.
func debugRun(cmd *cobra.Command, streams IO, what func() string) {
	var folder, node string
	cmd.Flags().StringVar(&folder, "data-dir", dataDir(), "folder of endpointd up, or of endpointd node")
	cmd.Flags().StringVar(&node, "node", "", "`name` of a node of endpointd up; not needed if there is one")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		dir, err := filepath.Abs(folder)
		if err != nil {
			return err
		}
		ctx, stop := signalContext(cmd)
		defer stop()
		return app.Debug(ctx, app.DebugOptions{DataDir: dir, Node: node, What: what()}, streams.Out)
	}
}
