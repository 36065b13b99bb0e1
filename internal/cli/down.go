package cli

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/endpointd/endpointd/internal/app"
	"github.com/endpointd/endpointd/internal/sandbox"
)

func newDown(streams IO) *cobra.Command {
	var folder string
	var purge bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "End endpointd up, and remove what one that was killed left",
		Long: `End endpointd up with all nodes and pods, and return when everything is gone. Where none runs, remove what one that was
killed left: cgroups and sockets. The state stays in the data folder, for the next endpointd up, unless --purge.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := filepath.Abs(folder)
			if err != nil {
				return err
			}
			ctx, stop := signalContext(cmd)
			defer stop()
			ran, err := sandbox.Down(ctx, dir)
			if err != nil {
				return err
			}
			said := "nothing ran"
			if ran {
				said = "ended"
			}
			if purge {
				if err := purgeFolder(dir); err != nil {
					return err
				}
				said += ", data folder removed"
			}
			_, err = fmt.Fprintf(streams.Out, "endpointd: %s: %s\n", dir, said)
			return err
		},
	}
	cmd.Flags().StringVar(&folder, "data-dir", dataDir(), "folder of endpointd up")
	cmd.Flags().BoolVar(&purge, "purge", false, "remove the data folder, too")
	return cmd
}

// purgeFolder removes only what looks like ours: a wrong --data-dir must not cost a home.
func purgeFolder(dir string) error {
	if _, err := os.Stat(dir); os.IsNotExist(err) {
		return nil
	}
	if _, err := os.Stat(app.Kubeconfig(dir)); err != nil {
		return fmt.Errorf("data folder %s: not removed, because it does not look like one: %w", dir, err)
	}
	return os.RemoveAll(dir)
}
