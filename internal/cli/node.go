package cli

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/endpointd/endpointd/internal/app"
	"github.com/endpointd/endpointd/internal/node/traffic"
)

// nodeFlags are as given on the command line.
type nodeFlags struct {
	kubeconfig, name, dataDir string
	addrs, podCIDRs, dns      []string
	dnsPort                   uint16
	names                     namesFlags
	labels                    map[string]string
	domain, manifests, images string
	listen, cgroup            string
	proxyOnly                 bool
	nodePorts, clusterCIDRs   []string
	dataPlane, healthz        string
	drain                     time.Duration
	logLevel, logFormat       string
}

func newNode(streams IO) *cobra.Command {
	var f nodeFlags
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run and watch the pods of this machine",
		Long: `Run the node agent: this machine joins a server as a node, and runs and watches the pods that are given to it. Ends with
SIGTERM or SIGINT; its pods run on, and the next agent takes them over.

A pod is a process of this machine in a network namespace of its own; what an image means is said in a table (--images). Pods with
runtimeClassName: external run elsewhere, at the address in their annotation endpointd.io/address, and are only probed.

The kubeconfig comes from the server's machine:

  endpointd kubeconfig --node NAME --address ADDRESS --server https://SERVER:6443 --out node.kubeconfig

Services are reachable from this machine and its pods: nftables leads connections to endpoints that are up, and where the kernel
allows it, eBPF does so for clients on this machine without NAT. What was led is led on while no agent runs. What its DNS server
is asked meanwhile is answered by the next one, if systemd or endpointd up started it.

When the node is registered, its pods are known and Services are led, one line on standard output says so:

  endpointd node NAME is ready: ADDRESS, pods CIDR

With --proxy-only it stands in for kube-proxy on a node of any Kubernetes cluster: a kubelet keeps the Node and its pods, and this
program only reads Services, EndpointSlices and Nodes, and posts Events. Without --kubeconfig it uses the service account of its pod.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := f.options(streams)
			if err != nil {
				return err
			}
			ctx, stop := signalContext(cmd)
			defer stop()
			return app.RunNode(ctx, o)
		},
	}
	f.register(cmd)
	return cmd
}

func (f *nodeFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "`file` that says how to reach the API, and as whom")
	flags.StringVar(&f.name, "name", "", "name of the node (default: the one in the kubeconfig's certificate, else the machine's)")
	flags.StringVar(&f.dataDir, "data-dir", filepath.Join(dataDir(), "node"), "folder of pods, volumes and logs")
	flags.StringSliceVar(&f.addrs, "node-ip", nil, "`address` of this node; two, one of each family, for dual stack (default: the one of the default route)")
	flags.StringSliceVar(&f.podCIDRs, "pod-cidr", nil, "address range of this node's pods; two, one of each family, for dual stack (default: the server gives one)")
	flags.StringSliceVar(&f.dns, "cluster-dns", nil, "`addresses` of DNS servers for pods (default: this node's own, see --dns-port)")
	flags.StringVar(&f.domain, "cluster-domain", "cluster.local", "what the names of Services end in")
	flags.Uint16Var(&f.dnsPort, "dns-port", 53, "port of the DNS server on this node's addresses, which pods ask for names of Services; 0 for none")
	f.names.register(flags)
	flags.StringVar(&f.manifests, "manifests", "", "`folder` of static pods")
	flags.StringVar(&f.images, "images", "", "`file` that says what images mean: nothing is pulled")
	flags.StringToStringVar(&f.labels, "node-labels", nil, "`labels` of the node, such as topology.kubernetes.io/zone=a")
	flags.StringVar(&f.listen, "listen", ":10250", "`address` and port for logs, exec and port-forward (default: the node's address)")
	flags.StringVar(&f.cgroup, "cgroup", "", "cgroup v2 `folder` for the pods, whose connections alone eBPF leads then (default: one of the node's name, and all of this machine), or none")
	flags.DurationVar(&f.drain, "drain-grace", 2*time.Second, "how long, at the most, a ready pod that is to end goes on before it is told, until no node leads anybody there any more")
	flags.BoolVar(&f.proxyOnly, "proxy-only", false, "lead connections to Services and nothing else: a kubelet keeps the node")
	registerDataPlane(flags, &f.dataPlane)
	flags.StringSliceVar(&f.nodePorts, "nodeport-addresses", []string{"primary"}, "`addresses` on which node ports answer: ranges of this machine's, or primary, all, localhost")
	flags.StringSliceVar(&f.clusterCIDRs, "cluster-cidr", nil, "address range of all nodes' pods; two for dual stack (default: those of all Nodes)")
	flags.StringVar(&f.healthz, "healthz-bind-address", ":10256", "`address` and port of health checks for load balancers, and of metrics; empty for none")
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&f.logFormat, "log-format", "text", "text or json, on standard error")
}

// options checks everything that can be checked without touching anything.
func (f *nodeFlags) options(streams IO) (app.NodeOptions, error) {
	o := app.NodeOptions{
		Kubeconfig: f.kubeconfig, DataDir: f.dataDir, Name: f.name, Manifests: f.manifests, Images: f.images, Domain: f.domain,
		Labels: f.labels, Cgroup: f.cgroup, Listen: f.listen, DrainGrace: f.drain, Version: version,
		ProxyOnly: f.proxyOnly, Healthz: f.healthz, DNSPort: f.dnsPort,
	}
	if f.kubeconfig == "" && !f.proxyOnly {
		return o, flagError("kubeconfig", "must be given: make one on the server's machine with endpointd kubeconfig --node NAME")
	}
	if f.dataDir == "" {
		return o, flagError("data-dir", "must not be empty")
	}
	if f.drain < 0 {
		return o, flagError("drain-grace", "must not be negative")
	}
	if err := checkNodeListen(f.listen); err != nil {
		return o, err
	}
	var err error
	if err := f.traffic(&o); err != nil {
		return o, err
	}
	if o.Addrs, err = parseAddrs("node-ip", f.addrs); err != nil {
		return o, err
	}
	if o.ClusterDNS, err = parseAddrs("cluster-dns", f.dns); err != nil {
		return o, err
	}
	if o.PodCIDRs, err = parseRanges("pod-cidr", f.podCIDRs); err != nil {
		return o, err
	}
	if o.Names, err = f.names.options(); err != nil {
		return o, err
	}
	if o.DataDir, err = filepath.Abs(f.dataDir); err != nil {
		return o, flagError("data-dir", "%w", err)
	}
	if o.Logger, err = newLogger(streams.Err, f.logLevel, f.logFormat); err != nil {
		return o, err
	}
	o.Ready = func(name string, addrs []netip.Addr, pods []netip.Prefix) {
		fmt.Fprintf(streams.Out, "endpointd node %s is ready: %s, pods %s\n", name, joined(addrs), cmp.Or(joined(pods), "unknown"))
	}
	return o, nil
}

// traffic checks what says how connections are led.
func (f *nodeFlags) traffic(o *app.NodeOptions) (err error) {
	if o.DataPlane, err = parseDataPlane(f.dataPlane); err != nil {
		return err
	}
	if o.NodePorts, err = traffic.ParseNodePortAddrs(f.nodePorts); err != nil {
		return flagError("nodeport-addresses", "%w", err)
	}
	if o.ClusterCIDRs, err = parseRanges("cluster-cidr", f.clusterCIDRs); err != nil {
		return err
	}
	if f.healthz != "" {
		if _, _, err := net.SplitHostPort(f.healthz); err != nil {
			return flagError("healthz-bind-address", "%q is not HOST:PORT or :PORT, like :10256", f.healthz)
		}
	}
	if !f.proxyOnly {
		return nil
	}
	for flag, given := range map[string]bool{"manifests": f.manifests != "", "images": f.images != "", "node-labels": len(f.labels) > 0} {
		if given {
			return flagError(flag, "is about pods, which a kubelet keeps with --proxy-only: leave out one of the two")
		}
	}
	return nil
}

// registerDataPlane is for all who have nodes.
func registerDataPlane(flags *pflag.FlagSet, value *string) {
	flags.StringVar(value, "data-plane", string(app.DataPlaneAuto), "how connections to Services are led: auto, ebpf (with nftables for what eBPF leaves) or nftables")
}

func parseDataPlane(text string) (app.DataPlane, error) {
	kind := app.DataPlane(text)
	if !slices.Contains([]app.DataPlane{app.DataPlaneAuto, app.DataPlaneEBPF, app.DataPlaneNFTables}, kind) {
		return kind, flagError("data-plane", "%q is none of auto, ebpf, nftables", text)
	}
	return kind, nil
}

func checkNodeListen(listen string) error {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return flagError("listen", "%q is not HOST:PORT or :PORT, like :10250", listen)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return flagError("listen", "%q: the port must be a number from 1 to 65535", listen)
	}
	if host == "" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return flagError("listen", "%q: %s is not an IP address", listen, host)
	}
	return nil
}

func parseAddrs(flag string, texts []string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, text := range texts {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			return nil, flagError(flag, "%q is not an IP address, like 192.0.2.7 or 2001:db8::7", text)
		}
		addrs = append(addrs, addr.Unmap())
	}
	if flag == "node-ip" && (len(addrs) > 2 || len(addrs) == 2 && addrs[0].Is4() == addrs[1].Is4()) {
		return nil, flagError(flag, "%s: want one address, or one of each family", strings.Join(texts, ","))
	}
	return addrs, nil
}

// parseRanges reads one range, or one of each address family.
func parseRanges(flag string, texts []string) ([]netip.Prefix, error) {
	ranges, err := parsePrefixes(flag, texts)
	if err == nil && (len(ranges) > 2 || len(ranges) == 2 && ranges[0].Addr().Is4() == ranges[1].Addr().Is4()) {
		return nil, flagError(flag, "%s: want one range, or one of each address family", strings.Join(texts, ","))
	}
	return ranges, err
}

// parsePrefixes reads any number of ranges.
func parsePrefixes(flag string, texts []string) ([]netip.Prefix, error) {
	var ranges []netip.Prefix
	for _, text := range texts {
		r, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, flagError(flag, "%q is not an address range, like 10.244.1.0/24 or fd00:244:0:1::/64", text)
		}
		if r != r.Masked() {
			return nil, flagError(flag, "%s is an address within its range: did you mean %s?", text, r.Masked())
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

func joined[T fmt.Stringer](items []T) string {
	var texts []string
	for _, item := range items {
		texts = append(texts, item.String())
	}
	return strings.Join(texts, ",")
}
