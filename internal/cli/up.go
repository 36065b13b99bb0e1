package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/endpointd/endpointd/internal/app"
	"github.com/endpointd/endpointd/internal/sandbox"
)

// insideCommand is what `up` starts in namespaces of its own.
const insideCommand = "sandbox-inside"

// upFlags are as given on the command line.
type upFlags struct {
	serverFlags
	nodes      int
	detach     bool
	files      []string
	images     string
	podCIDRs   []string
	dataPlane  string
	publish    bool
	progressFD int
}

func newUp(streams IO) *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a server and some nodes on this machine, in a network of their own",
		Long: `Run a server and some nodes on this machine, in a network of their own, until Ctrl-C or endpointd down.

Each node is a network namespace, joined by a bridge inside an outer namespace: nothing of this machine's own network,
firewall or routes changes, and there is no way out of it. The API and node ports are on this machine's loopback. Nobody
needs to be root where user namespaces are allowed.

endpointd exec runs a command inside, endpointd status says how things are.`,
		Example: "  endpointd up --detach\n  endpointd kubectl get nodes\n  endpointd exec --node node-1 -- sh\n  endpointd down",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := f.options(streams)
			if err != nil {
				return err
			}
			ctx, stop := signalContext(cmd)
			defer stop()
			if f.progressFD > 2 {
				log, err := f.boundedLog(&o)
				if err != nil {
					return err
				}
				defer log.Close() //nolint:errcheck // what it could not write is lost
			}
			if f.detach && f.progressFD == 0 {
				return f.runDetached(ctx, streams, o)
			}
			return app.RunUp(ctx, o)
		},
	}
	f.register(cmd)
	return cmd
}

func (f *upFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.IntVar(&f.nodes, "nodes", 3, "how many nodes")
	flags.StringVar(&f.dataDir, "data-dir", dataDir(), "folder of everything that is kept")
	flags.BoolVarP(&f.detach, "detach", "d", false, "return when all is ready")
	flags.StringSliceVarP(&f.files, "filename", "f", nil, "`files` to apply when all is ready, as of kubectl apply")
	flags.StringVar(&f.images, "images", "", "`file` that says what images mean: nothing is pulled")
	flags.StringVar(&f.listen, "listen", "127.0.0.1:6443", "`address` and port of the API on this machine's loopback; port 0 takes a free one")
	flags.StringSliceVar(&f.serviceCIDRs, "service-cidr", []string{"10.96.0.0/16"}, "address range of Services; two, one of each family, for dual stack")
	flags.StringSliceVar(&f.podCIDRs, "pod-cidr", []string{"10.244.0.0/16"}, "address range of pods; a node has a /24 or /64 of it; two for dual stack")
	flags.StringVar(&f.nodePorts, "node-port-range", "30000-32767", "`range` of node ports")
	registerDataPlane(flags, &f.dataPlane)
	flags.BoolVar(&f.publish, "publish-node-ports", true, "open node ports on this machine's loopback")
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&f.logFormat, "log-format", "text", "text or json, on standard error")
	flags.IntVar(&f.progressFD, "progress-fd", 0, "descriptor for progress, from the one who waits for it")
	_ = flags.MarkHidden("progress-fd") // it exists
}

// options checks everything that can be checked without touching anything.
func (f *upFlags) options(streams IO) (app.UpOptions, error) {
	server, err := f.serverFlags.options(streams)
	o := app.UpOptions{
		DataDir: f.dataDir, Nodes: f.nodes, Listen: f.listen, ServiceCIDRs: server.ServiceCIDRs, NodePorts: server.NodePorts,
		PublishNodePorts: f.publish, Inside: []string{"endpointd", insideCommand}, Logger: server.Logger,
	}
	if err != nil {
		return o, err
	}
	if err := checkLoopback(f.listen); err != nil {
		return o, err
	}
	for _, text := range f.podCIDRs {
		cidr, err := netip.ParsePrefix(text)
		if err != nil || cidr != cidr.Masked() {
			return o, flagError("pod-cidr", "%q is not an address range, like 10.244.0.0/16 or fd00:244::/56", text)
		}
		o.PodCIDRs = append(o.PodCIDRs, cidr)
	}
	if f.images != "" {
		if o.Images, err = filepath.Abs(f.images); err == nil {
			_, err = os.Stat(o.Images)
		}
		if err != nil {
			return o, flagError("images", "%w", err)
		}
	}
	if o.DataPlane, err = parseDataPlane(f.dataPlane); err != nil {
		return o, err
	}
	f.show(streams, &o)
	return o, nil
}

func checkLoopback(listen string) error {
	host, _, _ := net.SplitHostPort(listen) // checked before
	if host == "localhost" {
		return nil
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		return flagError("listen", "%q is not on loopback, where everything of `up` stays: use 127.0.0.1:PORT or [::1]:PORT", listen)
	}
	return nil
}

// show says where progress goes: to the one who waits, or to standard output.
func (f *upFlags) show(streams IO, o *app.UpOptions) {
	if f.progressFD > 2 {
		pipe := os.NewFile(uintptr(f.progressFD), "progress")
		o.Progress = func(text string, since time.Duration) { _, _ = fmt.Fprintln(pipe, stepLine(text, since)) } // the reader may be gone
		o.Ready = func(_ context.Context, u app.UpReady) error {
			_, _ = fmt.Fprintln(pipe, app.ProgressEnd+u.URL+" "+u.Took.String()) // as above
			return pipe.Close()
		}
		return
	}
	o.Progress = func(text string, since time.Duration) { fmt.Fprintln(streams.Out, stepLine(text, since)) }
	o.Ready = func(ctx context.Context, u app.UpReady) error {
		if err := f.apply(ctx, streams); err != nil {
			return err
		}
		f.next(streams.Out, u.URL, u.Took)
		return nil
	}
}

// boundedLog is for what runs on for long, with nobody who looks at standard error.
func (f *upFlags) boundedLog(o *app.UpOptions) (io.Closer, error) {
	log, err := sandbox.OpenLog(sandbox.LogFile(f.dataDir, "up"))
	if err != nil {
		return nil, err
	}
	o.Logger, err = newLogger(log, f.logLevel, f.logFormat)
	return log, err
}

func stepLine(text string, since time.Duration) string {
	return fmt.Sprintf("%6d ms  %s", since.Milliseconds(), text)
}

// runDetached starts the same in the background. What is to be applied is, from here: its output belongs here.
func (f *upFlags) runDetached(ctx context.Context, streams IO, o app.UpOptions) error {
	args := []string{
		"up", "--nodes", strconv.Itoa(f.nodes), "--data-dir", f.dataDir, "--listen", f.listen, "--service-cidr", strings.Join(f.serviceCIDRs, ","),
		"--pod-cidr", strings.Join(f.podCIDRs, ","), "--node-port-range", f.nodePorts, "--publish-node-ports=" + strconv.FormatBool(f.publish),
		"--data-plane", f.dataPlane,
		"--log-level", f.logLevel, "--log-format", f.logFormat, "--progress-fd", "3",
	}
	if o.Images != "" {
		args = append(args, "--images", o.Images)
	}
	last, err := app.Detach(ctx, f.dataDir, args, func(line string) { fmt.Fprintln(streams.Out, line) })
	if err != nil {
		return err
	}
	if err := f.apply(ctx, streams); err != nil {
		return fmt.Errorf("%w (the nodes run on: correct the file and apply it again, or end them with `endpointd down`)", err)
	}
	url, took, _ := strings.Cut(last, " ")
	d, err := time.ParseDuration(took)
	f.next(streams.Out, url, d)
	return err
}

// apply is `kubectl apply` of all files, by this program in a process of its own: kubectl exits when it fails.
func (f *upFlags) apply(ctx context.Context, streams IO) error {
	if len(f.files) == 0 {
		return nil
	}
	args := []string{"kubectl", "apply", "--kubeconfig", app.Kubeconfig(f.dataDir)}
	for _, file := range f.files {
		args = append(args, "-f", file)
	}
	cmd := exec.CommandContext(ctx, sandbox.Program(), args...) //nolint:gosec // this very program
	cmd.Stdin, cmd.Stdout, cmd.Stderr = streams.In, streams.Out, streams.Err
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("apply %s: %w", strings.Join(f.files, ", "), err)
	}
	return nil
}

// next says what to try.
func (f *upFlags) next(w io.Writer, url string, took time.Duration) {
	folder := ""
	if f.dataDir != dataDir() {
		folder = " --data-dir " + f.dataDir
	}
	end := "endpointd down" + folder
	if !f.detach {
		end = "Ctrl-C, or " + end
	}
	fmt.Fprintf(w, `endpointd is ready: %s, kubeconfig %s (%d nodes, %d ms)

  export KUBECONFIG=%s
  endpointd kubectl%s get nodes
  endpointd exec%s --node node-1 -- sh
  endpointd status%s
  %s
`, url, app.Kubeconfig(f.dataDir), f.nodes, took.Milliseconds(), app.Kubeconfig(f.dataDir), folder, folder, folder, end)
}

// signalContext ends with SIGTERM or SIGINT; a second one ends the process.
func signalContext(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	again := context.AfterFunc(ctx, stop)
	return ctx, func() { again(); stop() }
}

// newInside is PID 1 of what `up` made.
func newInside(streams IO) *cobra.Command {
	return &cobra.Command{
		Use: insideCommand, Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return app.RunInside(slog.New(slog.NewTextHandler(streams.Err, nil)))
		},
	}
}

// exitError is the exit code of a command that ran elsewhere. Without an error it has said itself what is wrong.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return "exit code " + strconv.Itoa(e.code)
	}
	return e.err.Error()
}

func (e exitError) orNil() error {
	if e.code == 0 && e.err == nil {
		return nil
	}
	return e
}

// standardStreams are those of this process, which a command inside is given: only files can be.
func standardStreams(streams IO) ([3]*os.File, error) {
	var files [3]*os.File
	for i, s := range []any{streams.In, streams.Out, streams.Err} {
		f, is := s.(*os.File)
		if !is {
			return files, errors.New("standard streams are not files")
		}
		files[i] = f
	}
	return files, nil
}

// insideEnv is the part of an environment that makes sense inside.
func insideEnv(environ []string, kubeconfig string) []string {
	keep := []string{"PATH", "HOME", "TERM", "COLORTERM", "LANG", "USER", "LOGNAME", "SHELL", "TZ", "EDITOR", "PAGER"}
	var env []string
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if slices.Contains(keep, name) || strings.HasPrefix(name, "LC_") {
			env = append(env, entry)
		}
	}
	return append(env, "KUBECONFIG="+kubeconfig)
}
