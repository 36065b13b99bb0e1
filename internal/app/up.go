package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/endpointd/endpointd/internal/apiserver"
	"github.com/endpointd/endpointd/internal/apiserver/pki"
	"github.com/endpointd/endpointd/internal/sandbox"
)

// UpOptions are those of `endpointd up`.
type UpOptions struct {
	DataDir string
	Nodes   int
	// Listen is an address of the machine's loopback for the API, host:port.
	Listen       string
	ServiceCIDRs []netip.Prefix
	PodCIDRs     []netip.Prefix
	NodePorts    utilnet.PortRange
	// Images is the agents' table of images; "" = none.
	Images string
	// DataPlane of all nodes.
	DataPlane DataPlane
	// PublishNodePorts on the machine's loopback.
	PublishNodePorts bool
	// Inside are arguments that make this program call RunInside; the first is how it is called.
	Inside []string
	Logger *slog.Logger
	// Progress is called when a step is done, by one goroutine at a time.
	Progress func(text string, since time.Duration)
	// Ready is called once, when the server answers and all nodes are ready. Its error ends everything.
	Ready func(ctx context.Context, u UpReady) error
}

// UpReady says where things are.
type UpReady struct {
	URL, Kubeconfig string
	Took            time.Duration
}

// insidePort is where the API is reached inside.
const insidePort = "6443"

// RunUp runs a sandbox until ctx ends, and then stops everything in order.
func RunUp(ctx context.Context, o UpOptions) (err error) {
	apiserver.RouteKlog(o.Logger)
	u := &up{UpOptions: o, began: time.Now()}
	if u.DataDir, err = filepath.Abs(o.DataDir); err != nil {
		return err
	}
	if u.spec, err = sandbox.Layout(o.Nodes, o.PodCIDRs, o.ServiceCIDRs); err != nil {
		return err
	}
	lock, err := sandbox.Acquire(u.DataDir)
	if err != nil {
		return err
	}
	defer lock.Release()
	if err := sandbox.Clean(u.DataDir); err != nil {
		return fmt.Errorf("remove what an earlier sandbox left: %w", err)
	}
	if u.folder, err = freeFolder(ctx, u.DataDir); err != nil {
		return err
	}

	listener, err := listen(o.Listen)
	if err != nil {
		return err
	}
	defer listener.Close() //nolint:errcheck // nothing to lose
	if err := u.certificates(boundAddress(listener)); err != nil {
		return err
	}
	u.compose()
	u.progress("addresses, certificates")
	return u.run(ctx, listener)
}

// freePatience is how long what was killed may take to end.
const freePatience = 2 * time.Second

// freeFolder returns when no server has the folder: the one inside would find out later, and say so in a log only. One that was
// killed a moment ago takes some time to end.
func freeFolder(ctx context.Context, path string) (*folder, error) {
	ctx, cancel := context.WithTimeout(ctx, freePatience)
	defer cancel()
	for {
		dir, err := openFolder(path)
		if err == nil {
			dir.Close()
			return dir, nil
		}
		if !errors.As(err, new(errInUse)) {
			return nil, err
		}
		select {
		case <-time.After(readyPoll):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// up is a sandbox being made.
type up struct {
	UpOptions
	began  time.Time
	folder *folder
	spec   sandbox.Spec
	url    string // of the API, on the machine's loopback

	mu    sync.Mutex // guards what follows, and Progress
	ended map[string]int
	fail  context.CancelCauseFunc
	ready bool
}

func (u *up) progress(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.Progress(fmt.Sprintf(format, args...), time.Since(u.began))
}

// certificates makes the server's, and kubeconfigs, so that server and nodes start at the same time.
func (u *up) certificates(bound netip.AddrPort) error {
	addresses := []netip.Addr{bound.Addr()}
	for _, gateway := range u.spec.Gateways[:1] {
		addresses = append(addresses, gateway.Addr())
	}
	names, err := certNames(addresses, u.ServiceCIDRs)
	if err != nil {
		return err
	}
	files, err := pki.Ensure(u.folder.pki(), names)
	if err != nil {
		return err
	}
	u.url = clientURL(bound)
	inside := "https://" + u.insideAddress()
	if err := pki.WriteKubeconfig(u.folder.kubeconfig(), u.url, files); err != nil {
		return err
	}
	if err := pki.WriteKubeconfig(sandbox.InsideKubeconfig(u.DataDir), inside, files); err != nil {
		return err
	}
	for _, n := range u.spec.Nodes {
		text, err := pki.NodeKubeconfig(u.folder.pki(), inside, pki.Node{Name: n.Name, Addrs: n.Addrs})
		if err != nil {
			return err
		}
		if err := os.MkdirAll(sandbox.NodeDir(u.DataDir, n.Name), 0o700); err != nil {
			return err
		}
		if err := pki.WriteNodeKubeconfig(u.nodeKubeconfig(n.Name), text); err != nil {
			return err
		}
	}
	return nil
}

func (u *up) nodeKubeconfig(node string) string {
	return filepath.Join(sandbox.NodeDir(u.DataDir, node), "kubeconfig")
}

func (u *up) insideAddress() string {
	return net.JoinHostPort(u.spec.Gateways[0].Addr().String(), insidePort)
}

// compose says which processes run inside.
func (u *up) compose() {
	s := &u.spec
	s.Services = u.ServiceCIDRs
	s.DataDir, s.PublishNodePorts, s.Resolv = u.DataDir, u.PublishNodePorts, sandbox.Resolv(u.ServiceCIDRs[0])
	s.Server = []string{"endpointd", "server", "--data-dir", u.DataDir, "--listen", u.insideAddress(), "--listen-fd", fmt.Sprint(sandbox.ServerFD),
		"--service-cidr", joinText(u.ServiceCIDRs), "--pod-cidr", joinText(u.PodCIDRs), "--node-port-range", fmt.Sprintf("%d-%d", u.NodePorts.Base, u.NodePorts.Base+u.NodePorts.Size-1)}
	outside := make([]netip.Prefix, len(s.Gateways)) // where the server is, and commands are without a node
	for i, g := range s.Gateways {
		outside[i] = netip.PrefixFrom(g.Addr(), g.Addr().BitLen())
	}
	cgroups := sandbox.MakeCgroups(u.DataDir, s.Nodes)
	for i := range s.Nodes {
		n := &s.Nodes[i]
		n.Args = []string{"endpointd", "node", "--kubeconfig", u.nodeKubeconfig(n.Name), "--name", n.Name, "--data-dir", sandbox.NodeDir(u.DataDir, n.Name),
			"--node-ip", joinText(n.Addrs), "--pod-cidr", joinText(n.PodCIDRs), "--cluster-dns", sandbox.DNS(u.ServiceCIDRs[0]).String(),
			"--cluster-cidr", joinText(u.PodCIDRs), "--data-plane", string(u.DataPlane), "--dns-allow", joinText(outside),
			// There is no way out, so nobody to ask: some resolvers would wait until they give up if that were not said.
			"--dns-upstream", "none"}
		if u.Images != "" {
			n.Args = append(n.Args, "--images", u.Images)
		}
		// Never all of this machine, which an agent would take without being told.
		n.Cgroup = cgroups[n.Name]
		n.Args = append(n.Args, "--cgroup", cmp.Or(n.Cgroup, NoCgroup))
	}
}

func joinText[T fmt.Stringer](items []T) string {
	texts := make([]string, len(items))
	for i, item := range items {
		texts[i] = item.String()
	}
	return strings.Join(texts, ",")
}

// run runs what was composed until ctx ends.
func (u *up) run(ctx context.Context, listener net.Listener) error {
	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	u.fail, u.ended = fail, map[string]int{}
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	box, err := sandbox.Start(sandbox.Options{Spec: u.spec, Args: u.Inside, API: file, Event: u.event})
	_ = file.Close() // the inside has its own
	if err != nil {
		return errors.Join(err, sandbox.Clean(u.DataDir))
	}
	var work sync.WaitGroup
	work.Go(func() {
		select {
		case <-box.Done():
			fail(errFailed{orEnded(box.Err())})
		case <-running.Done():
		}
	})
	work.Go(func() { trimMemory(running) })
	err = u.await(running)
	if err == nil {
		u.mu.Lock()
		u.ready = true
		u.mu.Unlock()
		err = u.Ready(running, UpReady{URL: u.url, Kubeconfig: u.folder.kubeconfig(), Took: time.Since(u.began)})
	}
	if err == nil {
		<-running.Done()
	}
	err = u.reason(running, err)
	fail(nil)
	work.Wait()
	// The caller's end is the reason to stop, not to hurry.
	if stopErr := box.Stop(context.WithoutCancel(ctx)); err == nil {
		err = stopErr
	}
	return errors.Join(err, sandbox.Clean(u.DataDir))
}

// reason is why it ended: nil when the caller wanted it.
func (u *up) reason(ctx context.Context, err error) error {
	var failed errFailed
	switch {
	case errors.As(context.Cause(ctx), &failed):
		return failed.error
	case ctx.Err() != nil:
		return nil
	}
	return err
}

func orEnded(err error) error {
	if err == nil {
		return errors.New("the sandbox ended by itself")
	}
	return err
}

// maxEnds is how often a node may end before it was ready. A server may not: what it says at its start is final.
const maxEnds = 3

// event is called for all that happens inside.
func (u *up) event(e sandbox.Event) {
	if e.Kind == sandbox.EventStep {
		u.progress("%s", e.Text)
		return
	}
	e.Log(u.Logger)
	if e.Kind != sandbox.EventExited {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended[e.Name]++; u.ready || e.Name != "server" && u.ended[e.Name] < maxEnds {
		return
	}
	path := sandbox.LogFile(u.DataDir, e.Name)
	u.fail(errFailed{fmt.Errorf("%s ended before it was ready (%s): %s: see %s", e.Name, e.Text, lastLine(path), path)})
}

// lastLine is the last line in a log, without the program's name.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close() //nolint:errcheck // read only
	const enough = 4 << 10
	if info, err := f.Stat(); err == nil && info.Size() > enough {
		_, _ = f.Seek(-enough, io.SeekEnd) // then it is read from the start
	}
	text, _ := io.ReadAll(f)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.TrimPrefix(lines[len(lines)-1], "endpointd: ")
}

// await returns when the server answers and all nodes are ready.
func (u *up) await(ctx context.Context) error {
	config, err := clientcmd.BuildConfigFromFlags("", u.folder.kubeconfig())
	if err != nil {
		return err
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(withoutWarnings(config))
	if err != nil {
		return err
	}
	if err := awaitServer(ctx, client); err != nil {
		return err
	}
	u.progress("server answers at %s", u.url)
	if len(u.spec.Nodes) == 0 {
		return nil
	}
	return awaitNodes(ctx, client, u.spec.Nodes, func(name string) { u.progress("%s is ready", name) })
}

func withoutWarnings(c *rest.Config) *rest.Config {
	c.WarningHandler = rest.NoWarnings{}
	return c
}
