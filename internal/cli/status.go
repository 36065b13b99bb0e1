package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/endpointd/endpointd/internal/app"
)

func newStatus(streams IO) *cobra.Command {
	var folder, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how endpointd up is",
		Long: `Show how endpointd up is: the server and the nodes.

The exit code is 0 when it runs, ready or not, and 1 when it does not.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return flagError("output", "%q is not json", output)
			}
			dir, err := filepath.Abs(folder)
			if err != nil {
				return err
			}
			ctx, stop := signalContext(cmd)
			defer stop()
			status, err := app.Status(ctx, dir)
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(streams.Out)
				e.SetIndent("", "  ")
				return e.Encode(status)
			}
			return showStatus(streams.Out, status, time.Now())
		},
	}
	cmd.Flags().StringVar(&folder, "data-dir", dataDir(), "folder of endpointd up")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json; without it, a table")
	return cmd
}

func showStatus(w io.Writer, s app.UpStatus, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }
	row("NAME", "READY", "PID", "RESTARTS", "AGE", "PODS", "ADDRESS")
	ready := "True"
	if !s.Server.Ready {
		ready = "False"
	}
	process := func(p app.UpProcess) []string {
		if p.PID == 0 {
			return []string{"-", strconv.Itoa(p.Restarts), "-"}
		}
		return []string{strconv.Itoa(p.PID), strconv.Itoa(p.Restarts), now.Sub(p.Since).Round(time.Second).String()}
	}
	row(append(append([]string{"server", ready}, process(s.Server.UpProcess)...), "-", s.Server.URL)...)
	for _, n := range s.Nodes {
		row(append(append([]string{n.Name, cmp.Or(n.Ready, "Unknown")}, process(n.UpProcess)...), strconv.Itoa(n.Pods), cmp.Or(strings.Join(n.Addresses, ","), "-"))...)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if s.Server.Problem != "" {
		_, err := fmt.Fprintf(w, "server: %s\n", s.Server.Problem)
		return err
	}
	return nil
}
