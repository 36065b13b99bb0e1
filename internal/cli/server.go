package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/endpointd/endpointd/internal/apiserver/etcd"
	"github.com/endpointd/endpointd/internal/app"
)

// serverFlags are as given on the command line.
type serverFlags struct {
	dataDir, listen     string
	listenFDs           []int
	serviceCIDRs        []string
	podCIDRs            []string
	nodePorts           string
	etcd                etcd.External
	disable             []string
	logLevel, logFormat string
}

func newServer(streams IO) *cobra.Command {
	var f serverFlags
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the Kubernetes API and the controllers",
		Long: `Run the Kubernetes API and the controllers, until SIGTERM or SIGINT; a second signal ends at once.

The state lies in an embedded etcd under the data folder, or in an external etcd cluster with --etcd-servers: several
servers on one cluster work together.

When the API answers, one line on standard output says so:

  endpointd is ready: https://127.0.0.1:6443, kubeconfig DIR/admin.kubeconfig`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := f.options(streams)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), o)
		},
	}
	f.register(cmd)
	return cmd
}

func (f *serverFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.dataDir, "data-dir", dataDir(), "folder of etcd, certificates and admin.kubeconfig")
	flags.StringVar(&f.listen, "listen", "127.0.0.1:6443", "`address` and port of the API; :6443 is all interfaces")
	flags.IntSliceVar(&f.listenFDs, "listen-fd", nil, "`numbers` of descriptors of more listeners, from who started this process")
	_ = flags.MarkHidden("listen-fd") // it exists
	flags.StringSliceVar(&f.etcd.Servers, "etcd-servers", nil, "`URLs` of an external etcd cluster, comma-separated; empty is the embedded one")
	flags.StringVar(&f.etcd.CAFile, "etcd-cafile", "", "CA `file` that verifies the etcd servers")
	flags.StringVar(&f.etcd.CertFile, "etcd-certfile", "", "client certificate `file` for etcd")
	flags.StringVar(&f.etcd.KeyFile, "etcd-keyfile", "", "client key `file` for etcd")
	flags.StringSliceVar(&f.serviceCIDRs, "service-cidr", []string{"10.96.0.0/16"}, "address range of Services; two, one of each family, for dual stack")
	flags.StringSliceVar(&f.podCIDRs, "pod-cidr", []string{"10.244.0.0/16"}, "address range of pods, of which each node gets a /24 or /64; two for dual stack; empty: nodes bring their own")
	flags.StringVar(&f.nodePorts, "node-port-range", "30000-32767", "`range` of node ports")
	flags.StringSliceVar(&f.disable, "disable-controllers", nil, "`names` of controllers that somebody else runs: "+strings.Join(app.ControllerNames(), ", "))
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&f.logFormat, "log-format", "text", "text or json, on standard error")
}

func serve(ctx context.Context, o app.ServerOptions) error {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// After the first signal the default is back: the second one ends the process.
	defer context.AfterFunc(ctx, stop)()
	return app.RunServer(ctx, o)
}

// options checks everything that can be checked without touching anything.
func (f *serverFlags) options(streams IO) (app.ServerOptions, error) {
	o := app.ServerOptions{DataDir: f.dataDir, Listen: f.listen, Etcd: f.etcd, Disable: f.disable}
	o.Ready = func(url, kubeconfig string) {
		fmt.Fprintf(streams.Out, "endpointd is ready: %s, kubeconfig %s\n", url, kubeconfig)
	}
	if f.dataDir == "" {
		return o, flagError("data-dir", "must not be empty")
	}
	if err := checkListen(f.listen); err != nil {
		return o, err
	}
	if err := checkEtcd(f.etcd); err != nil {
		return o, err
	}
	for _, name := range f.disable {
		if !slices.Contains(app.ControllerNames(), name) {
			return o, flagError("disable-controllers", "no controller %q: use %s", name, strings.Join(app.ControllerNames(), ", "))
		}
	}
	var err error
	if o.ServiceCIDRs, err = parseCIDRs(f.serviceCIDRs); err != nil {
		return o, err
	}
	if o.PodCIDRs, err = parsePodCIDRs(f.podCIDRs, o.ServiceCIDRs); err != nil {
		return o, err
	}
	if o.NodePorts, err = parsePorts(f.nodePorts); err != nil {
		return o, err
	}
	if o.Logger, err = newLogger(streams.Err, f.logLevel, f.logFormat); err != nil {
		return o, err
	}
	o.Inherited, err = inherited(f.listenFDs)
	return o, err
}

// inherited takes the descriptors over.
func inherited(fds []int) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, fd := range fds {
		if fd <= 2 {
			return nil, flagError("listen-fd", "%d is a standard stream", fd)
		}
		file := os.NewFile(uintptr(fd), "listener "+strconv.Itoa(fd))
		l, err := net.FileListener(file)
		if closeErr := file.Close(); err == nil { // the listener has its own
			err = closeErr
		}
		if err == nil {
			if _, tcp := l.(*net.TCPListener); !tcp {
				err = errors.New("is not a TCP listener")
			}
		}
		if err != nil {
			return nil, flagError("listen-fd", "%d: %w", fd, err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

func checkListen(listen string) error {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return flagError("listen", "%q is not HOST:PORT, like 127.0.0.1:6443 or [::1]:6443", listen)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return flagError("listen", "%q: the port must be a number from 0 to 65535", listen)
	}
	if host == "" || host == "localhost" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return flagError("listen", "%q: %s is not an IP address", listen, host)
	}
	return nil
}

func checkEtcd(e etcd.External) error {
	for _, server := range e.Servers {
		u, err := url.Parse(server)
		switch {
		case err != nil:
			return flagError("etcd-servers", "%q is not a URL, like https://10.0.0.1:2379", server)
		case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		case (u.Scheme == "http" || u.Scheme == "https") && u.Port() != "" && (u.Path == "" || u.Path == "/"):
		default:
			return flagError("etcd-servers", "%q is not http(s)://HOST:PORT or unix:///PATH", server)
		}
	}
	for _, f := range []struct{ flag, value string }{{"etcd-cafile", e.CAFile}, {"etcd-certfile", e.CertFile}, {"etcd-keyfile", e.KeyFile}} {
		if f.value != "" && len(e.Servers) == 0 {
			return flagError(f.flag, "has no use without --etcd-servers")
		}
	}
	if (e.CertFile == "") != (e.KeyFile == "") {
		return usageError{errors.New("--etcd-certfile and --etcd-keyfile: give both or none")}
	}
	return nil
}

// The smallest and largest ranges that the upstream allocator takes, in host bits.
const (
	minHostBits = 3
	maxHostBits = 64
)

func parseCIDRs(texts []string) ([]netip.Prefix, error) {
	const flag = "service-cidr"
	if len(texts) == 0 || len(texts) > 2 {
		return nil, flagError(flag, "want one range, or one of each address family, not %d", len(texts))
	}
	var cidrs []netip.Prefix
	for _, text := range texts {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, flagError(flag, "%q is not an address range, like 10.96.0.0/16 or fd00:96::/112", text)
		}
		if cidr != cidr.Masked() {
			return nil, flagError(flag, "%s is an address within its range: did you mean %s?", text, cidr.Masked())
		}
		switch hostBits := cidr.Addr().BitLen() - cidr.Bits(); {
		case hostBits < minHostBits:
			return nil, flagError(flag, "%s has fewer than %d addresses: choose a larger range", text, 1<<minHostBits)
		case hostBits > maxHostBits:
			return nil, flagError(flag, "%s is too large: choose /%d or smaller", text, cidr.Addr().BitLen()-maxHostBits)
		}
		cidrs = append(cidrs, cidr)
	}
	if len(cidrs) == 2 && cidrs[0].Addr().Is4() == cidrs[1].Addr().Is4() {
		return nil, flagError(flag, "%s and %s are of one address family: dual stack wants one of each", texts[0], texts[1])
	}
	return cidrs, nil
}

// The parts of the pod ranges that nodes get.
const (
	nodeBits4 = 24
	nodeBits6 = 64
)

func parsePodCIDRs(texts []string, services []netip.Prefix) ([]netip.Prefix, error) {
	const flag = "pod-cidr"
	texts = slices.DeleteFunc(slices.Clone(texts), func(s string) bool { return s == "" })
	if len(texts) > 2 {
		return nil, flagError(flag, "want no range, one, or one of each address family, not %d", len(texts))
	}
	var cidrs []netip.Prefix
	for _, text := range texts {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, flagError(flag, "%q is not an address range, like 10.244.0.0/16 or fd00:244::/56", text)
		}
		if cidr != cidr.Masked() {
			return nil, flagError(flag, "%s is an address within its range: did you mean %s?", text, cidr.Masked())
		}
		part := nodeBits6
		if cidr.Addr().Is4() {
			part = nodeBits4
		}
		if cidr.Bits() > part {
			return nil, flagError(flag, "%s is too small: a node gets a /%d of it", text, part)
		}
		for _, service := range services {
			if cidr.Overlaps(service) {
				return nil, flagError(flag, "%s overlaps %s of --service-cidr: choose another range for one of them", text, service)
			}
		}
		cidrs = append(cidrs, cidr)
	}
	if len(cidrs) == 2 && cidrs[0].Addr().Is4() == cidrs[1].Addr().Is4() {
		return nil, flagError(flag, "%s and %s are of one address family: dual stack wants one of each", texts[0], texts[1])
	}
	return cidrs, nil
}

func parsePorts(text string) (utilnet.PortRange, error) {
	r, err := utilnet.ParsePortRange(text)
	if err != nil || r.Base < 1 || r.Size < 1 {
		return utilnet.PortRange{}, flagError("node-port-range", "%q is not FIRST-LAST within 1-65535, like 30000-32767", text)
	}
	return *r, nil
}

func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil || !slices.Contains([]string{"debug", "info", "warn", "error"}, level) {
		return nil, flagError("log-level", "%q is not debug, info, warn or error", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, flagError("log-format", "%q is not text or json", format)
}
