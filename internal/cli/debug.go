package cli

import (
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"github.com/miekg/dns"
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
	debugRun(snapshot, streams, func() app.DebugOptions {
		if applied {
			return app.DebugOptions{What: "snapshot?applied"}
		}
		return app.DebugOptions{What: "snapshot"}
	})
	status := &cobra.Command{
		Use:   "status",
		Short: "Print how the data plane and the DNS server of this node are, as JSON",
		Args:  cobra.NoArgs,
	}
	debugRun(status, streams, func() app.DebugOptions { return app.DebugOptions{What: "status"} })
	cmd.AddCommand(snapshot, status, newDebugQueries(streams))
	return cmd
}

func newDebugQueries(streams IO) *cobra.Command {
	var (
		name    string
		clients []string
		rate    int
		length  time.Duration
		ranges  []netip.Prefix // of clients
	)
	cmd := &cobra.Command{
		Use:   "queries",
		Short: "Follow what is asked of this node's DNS server, and what it answers",
		Long: `Follow what is asked of this node's DNS server: a line for each question and its answer, until Ctrl-C. Answers are not slower for it: lines that are
too many, or come faster than they are read, are left out, and their number is said.`,
		Example: "  endpointd debug queries --node node-1 --name default.svc.cluster.local --for 30s",
		Args:    cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error {
			if _, ok := dns.IsDomainName(name); !ok && name != "" {
				return flagError("name", "%q is no domain name, like default.svc.cluster.local", name)
			}
			if rate < 1 {
				return flagError("rate", "%d lines a second are none", rate)
			}
			if length < 0 {
				return flagError("for", "must not be negative")
			}
			var err error
			ranges, err = parseClients("client", clients)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "`suffix` of the names to show, label by label (default: all)")
	flags.StringSliceVar(&clients, "client", nil, "`addresses` or ranges of the clients to show (default: all)")
	flags.IntVar(&rate, "rate", 100, "lines a second at the most")
	flags.DurationVar(&length, "for", 0, "how long; 0 is until Ctrl-C")
	debugRun(cmd, streams, func() app.DebugOptions {
		q := url.Values{"rate": {strconv.Itoa(rate)}, "for": {length.String()}}
		for _, r := range ranges {
			q.Add("client", r.String())
		}
		if name != "" {
			q.Set("name", name)
		}
		return app.DebugOptions{What: "queries?" + q.Encode(), Follow: true}
	})
	return cmd
}

// debugRun has the command ask an agent what the options say, whose agent is the flags'.
func debugRun(cmd *cobra.Command, streams IO, options func() app.DebugOptions) {
	var folder, node string
	cmd.Flags().StringVar(&folder, "data-dir", dataDir(), "folder of endpointd up, or of endpointd node")
	cmd.Flags().StringVar(&node, "node", "", "`name` of a node of endpointd up; not needed if there is one")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o := options()
		o.Node = node
		var err error
		if o.DataDir, err = filepath.Abs(folder); err != nil {
			return err
		}
		ctx, stop := signalContext(cmd)
		defer stop()
		return app.Debug(ctx, o, streams.Out)
	}
}
