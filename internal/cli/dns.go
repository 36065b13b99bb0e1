package cli

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/endpointd/endpointd/internal/app"
)

func newDNS(streams IO) *cobra.Command {
	var (
		names                       namesFlags
		kubeconfig, domain, healthz string
		listen                      []string
		logLevel, logFormat         string
	)
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Answer DNS for any Kubernetes cluster",
		Long: `Answer DNS questions for the Services, endpoints and pods of any Kubernetes cluster, in the place of CoreDNS or beside it. A change is in the
next answer. Other names are asked of the upstreams. It only reads: Services, EndpointSlices, Nodes, ServiceCIDRs and pods.

Who may ask are the cluster's pods and nodes, this machine, and --dns-allow. The zone is transferred to those of --dns-transfer alone.

When it has read everything, one line on standard output says so:

  endpointd dns is ready: ADDRESS`,
		Example: "  endpointd dns --kubeconfig admin.kubeconfig --listen 127.0.0.1:5353\n  dig @127.0.0.1 -p 5353 kubernetes.default.svc.cluster.local",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := app.DNSOptions{Kubeconfig: kubeconfig, Healthz: healthz}
			var err error
			if o.NamesOptions, err = names.options(); err != nil {
				return err
			}
			o.Domain = domain
			for _, text := range listen {
				addr, err := netip.ParseAddrPort(text)
				if err != nil {
					return flagError("listen", "%q is not ADDRESS:PORT, like 127.0.0.1:5353 or [::]:53", text)
				}
				o.Listen = append(o.Listen, addr)
			}
			if _, _, err := net.SplitHostPort(healthz); healthz != "" && err != nil {
				return flagError("healthz-bind-address", "%q is not HOST:PORT or :PORT, like :8080", healthz)
			}
			if o.Logger, err = newLogger(streams.Err, logLevel, logFormat); err != nil {
				return err
			}
			o.Ready = func(listen []netip.AddrPort) {
				fmt.Fprintf(streams.Out, "endpointd dns is ready: %s\n", joined(listen))
			}
			ctx, stop := signalContext(cmd)
			defer stop()
			return app.RunDNS(ctx, o)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&kubeconfig, "kubeconfig", "", "`file` that says how to reach the API, and as whom (default: the service account of the pod that this runs in)")
	flags.StringSliceVar(&listen, "listen", []string{"127.0.0.1:5353"}, "`ADDRESS:PORT` for UDP and TCP; more than one with commas in between")
	flags.StringVar(&domain, "cluster-domain", "cluster.local", "what the names of Services end in")
	names.register(flags)
	flags.StringVar(&healthz, "healthz-bind-address", "", "`address` and port of /healthz, /readyz and /metrics; empty for none")
	flags.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&logFormat, "log-format", "text", "text or json, on standard error")
	return cmd
}
