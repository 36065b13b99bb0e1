package cli

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/endpointd/endpointd/internal/sandbox"
)

func newExec(streams IO) *cobra.Command {
	var folder, node string
	cmd := &cobra.Command{
		Use:   "exec [--node NAME] -- COMMAND [ARGUMENT…]",
		Short: "Run a command in the network of endpointd up",
		Long: `Run a command in the network of endpointd up: beside the server, or with --node on that node, with its resolv.conf.

The command sees this machine's files and has KUBECONFIG for the API. Its exit code is that of this program; 127 when it
was not found, 126 when it can not be executed, as in a shell.`,
		Example: "  endpointd exec -- endpointd kubectl get pods -o wide\n  endpointd exec --node node-2 -- curl http://10.244.1.2:8080",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := filepath.Abs(folder)
			if err != nil {
				return err
			}
			files, err := standardStreams(streams)
			if err != nil {
				return err
			}
			client, err := sandbox.Dial(dir)
			if err != nil {
				return err
			}
			defer client.Close() //nolint:errcheck // all is said
			wd, _ := os.Getwd()  // without one it is /
			command := sandbox.Command{Node: node, Args: args, Env: insideEnv(os.Environ(), sandbox.InsideKubeconfig(dir)), Dir: wd}
			ctx := cmd.Context()
			code, err := client.Exec(ctx, command, files)
			return exitError{code, err}.orNil()
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows the command is its own
	cmd.Flags().StringVar(&folder, "data-dir", dataDir(), "folder of endpointd up")
	cmd.Flags().StringVar(&node, "node", "", "`name` of a node; without it, where the server runs")
	return cmd
}
