package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/endpointd/endpointd/internal/apiserver"
	"github.com/endpointd/endpointd/internal/fdstore"
	"github.com/endpointd/endpointd/internal/node"
	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/image"
	"github.com/endpointd/endpointd/internal/node/manifest"
	"github.com/endpointd/endpointd/internal/node/peers"
	"github.com/endpointd/endpointd/internal/node/podnet"
	"github.com/endpointd/endpointd/internal/node/podspec"
	"github.com/endpointd/endpointd/internal/node/process"
	"github.com/endpointd/endpointd/internal/node/register"
	"github.com/endpointd/endpointd/internal/node/stream"
	"github.com/endpointd/endpointd/internal/node/traffic"
	"github.com/endpointd/endpointd/internal/node/watch"
	"github.com/endpointd/endpointd/internal/prober"
)

// NodeOptions are those of `endpointd node`.
type NodeOptions struct {
	// ProxyOnly leads connections and nothing else, on a node that a kubelet keeps.
	ProxyOnly  bool
	Kubeconfig string // "" = the service account of the pod that this process runs in
	DataDir    string
	Name       string         // "" = the one in the kubeconfig's certificate, else the machine's
	Addrs      []netip.Addr   // of the node, primary first; empty = the one of the default route
	PodCIDRs   []netip.Prefix // empty = what the API gives this node
	Manifests  string         // folder of static pods; "" = none
	Images     string         // file of the image table; "" = only what is built in
	ClusterDNS []netip.Addr
	Domain     string // of the cluster
	Labels     map[string]string
	Cgroup     string // cgroup v2 folder below which pods get theirs; "" = one of this node's own, where there is v2; or NoCgroup
	Listen     string // of the kubelet API, host:port; the host empty = the node's primary address
	DataPlane  DataPlane
	// NodePorts says on which addresses NodePorts answer.
	NodePorts traffic.NodePortAddrs
	// ClusterCIDRs are the ranges of all nodes' pods; empty = those of all Nodes.
	ClusterCIDRs []netip.Prefix
	// DNSPort is where this node's DNS server answers, on all Addrs; 0 = there is none. What else it does is in Names, but for Listen and Domain.
	DNSPort    uint16
	Names      NamesOptions
	Healthz    string // address of health checks and metrics, host:port; "" = none
	DrainGrace time.Duration
	Version    string // of this program
	Logger     *slog.Logger
	// Ready is called once, when the node is registered and its pods are known.
	Ready func(node string, addrs []netip.Addr, pods []netip.Prefix)
}

// NoCgroup is the Cgroup of a node that has none.
const NoCgroup = "none"

// agentGC is how much garbage an agent may have for what it holds, in percent: a node has memory for its pods, and probes make
// garbage all the time.
const agentGC = 50

// agent is what runs on a node. Its parts end in the reverse order.
type agent struct {
	o        NodeOptions
	config   *rest.Config         // without limits
	client   kubernetes.Interface // for everything but the lease
	events   record.EventBroadcaster
	recorder record.EventRecorder

	groups    string // folder of the pods' cgroups; "" = none
	processes *process.Runtime
	runtimes  map[string]container.Runtime
	network   *podnet.Network
	registry  *register.Registration
	objects   *objects
	probes    *prober.Prober
	specs     *podspec.Builder
	static    *manifest.Manifest // nil without a folder
	node      *node.Agent
	plane     *plane
	traffic   *traffic.Traffic
	peers     *peers.Client // nil = nobody is asked
	nodes     *watch.Store[*corev1.Node]
	pods      *watch.Store[*corev1.Pod]
	own       ownPods
	names     *names // nil = there is no DNS server
	endNames  func() // and returns when it has ended; nil = it was not begun
	noNames   error  // why there is none, if there was to be one
	kept      *fdstore.Keeper
	answering atomic.Bool // names answers from a Snapshot, or an earlier run's sockets collect questions until it does

	work sync.WaitGroup
	fail context.CancelCauseFunc
}

// RunNode runs until ctx ends. The pods run on, and connections are led on.
func RunNode(ctx context.Context, o NodeOptions) (err error) {
	kept := fdstore.Inherit()
	may := mayMakePods
	if o.ProxyOnly {
		may = mayForward
	}
	if err := may(); err != nil {
		return err
	}
	apiserver.RouteKlog(o.Logger)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(agentGC)
	}
	lock, err := openNodeFolder(o.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // it is only held
	a := &agent{o: o, kept: kept}
	a.expectNames()
	if err := a.connect(); err != nil {
		return err
	}
	defer a.events.Shutdown()

	parts, cancel := context.WithCancelCause(ctx)
	a.fail = cancel
	defer func() {
		if a.endNames != nil {
			a.endNames()
		}
	}()
	defer a.work.Wait()
	defer cancel(nil)
	work := a.host
	if o.ProxyOnly {
		work = a.forward
	}
	defer a.close()
	if err := work(parts); err != nil {
		return err
	}
	if parts.Err() == nil {
		o.Ready(a.o.Name, a.o.Addrs, a.o.PodCIDRs)
		tellReady(kept, o.Logger)
	}
	<-parts.Done()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(parts)
}

// host is the work of an agent that keeps a node of its own.
func (a *agent) host(ctx context.Context) error {
	if err := a.address(); err != nil {
		return err
	}
	if err := a.prepare(ctx); err != nil {
		return err
	}
	return a.start(ctx)
}

// run has a part of the agent run until the end; if it ends by itself, the agent does.
func (a *agent) run(ctx context.Context, what string, f func(context.Context) error) {
	a.work.Go(func() {
		if err := f(ctx); ctx.Err() == nil {
			a.fail(fmt.Errorf("%s: %w", what, err))
		}
	})
}

func (a *agent) connect() error {
	config, err := access(a.o.Kubeconfig, "endpointd-node", "make one with endpointd kubeconfig --node NAME")
	if err != nil {
		return err
	}
	if err := a.identify(config); err != nil {
		return err
	}
	a.config = watch.Connection(config)
	if a.client, err = kubernetes.NewForConfig(a.config); err != nil {
		return fmt.Errorf("kubeconfig %s: %w", a.o.Kubeconfig, err)
	}
	a.events = record.NewBroadcaster()
	a.events.StartRecordingToSink(quietSink{&corev1client.EventSinkImpl{Interface: a.client.CoreV1().Events("")}})
	a.recorder = a.events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "endpointd", Host: a.o.Name})
	return nil
}

// address finds the node's own address if none was given.
func (a *agent) address() error {
	if len(a.o.Addrs) > 0 {
		return nil
	}
	ip, err := utilnet.ChooseHostInterface()
	if err != nil {
		return fmt.Errorf("address of this node: %w: give it with --node-ip", err)
	}
	addr, _ := netip.AddrFromSlice(ip)
	a.o.Addrs = []netip.Addr{addr.Unmap()}
	return nil
}

// prepare builds everything that needs no pods. A pod range that cannot be is refused before anything is changed.
func (a *agent) prepare(ctx context.Context) error {
	o := a.o
	if len(o.PodCIDRs) > 0 {
		if err := podnet.Check(podnet.Options{NodeAddrs: o.Addrs, PodCIDRs: o.PodCIDRs, Logger: o.Logger}); err != nil {
			return err
		}
	}
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("path of this program: %w", err)
	}
	images := image.Builtin(executable)
	if o.Images != "" {
		if images, err = image.Load(o.Images, executable); err != nil {
			return err
		}
	}
	if err := a.makePlane(ctx); err != nil {
		return err
	}
	if a.o.PodCIDRs, err = a.register(ctx); err != nil {
		return err
	}
	if a.network, err = podnet.New(ctx, podnet.Options{NodeAddrs: o.Addrs, PodCIDRs: a.o.PodCIDRs, Logger: o.Logger}); err != nil {
		return err
	}
	a.groups = a.cgroup()
	a.processes, err = process.New(process.Options{Dir: filepath.Join(o.DataDir, "pods"), Cgroup: a.groups, Logger: o.Logger})
	if err != nil {
		return err
	}
	a.runtimes = map[string]container.Runtime{node.ClassProcess: a.processes, node.ClassExternal: node.NewExternal()}
	a.makeNames(ctx)
	a.objects = newObjects(a.client)
	a.probes = prober.New()
	a.specs, err = podspec.New(podspec.Options{
		Source: a.objects, Images: images, Dir: filepath.Join(o.DataDir, "volumes"), Node: a.self, ResolvConf: o.Names.ResolvConf,
		ClusterDNS: a.o.ClusterDNS, ClusterDomain: o.Domain, Event: a.warn, Logger: o.Logger,
	})
	if err != nil {
		return err
	}
	a.lead()
	return a.pick(ctx)
}

// warn tells a pod's owner of something that stops nothing.
func (a *agent) warn(pod *corev1.Pod, reason, message string) {
	a.recorder.Event(pod, corev1.EventTypeWarning, reason, message)
}

// register makes the node known and returns its pod ranges.
func (a *agent) register(ctx context.Context) ([]netip.Prefix, error) {
	lease, err := kubernetes.NewForConfig(watch.Connection(a.config)) // with connections of its own
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(a.o.Listen)
	if err != nil {
		return nil, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	a.registry, err = register.New(register.Options{
		Client: a.client, LeaseClient: lease, Name: a.o.Name, Addrs: a.o.Addrs, PodCIDRs: a.o.PodCIDRs, Labels: a.o.Labels, Annotations: a.annotations,
		Port: int(number), Version: a.o.Version, DataDir: a.o.DataDir, Logger: a.o.Logger,
	})
	if err != nil {
		return nil, err
	}
	a.run(ctx, "registration", a.registry.Run)
	if len(a.o.PodCIDRs) > 0 {
		return a.o.PodCIDRs, nil
	}
	a.o.Logger.Info("waiting for the API to give this node its pod range", "node", a.o.Name)
	return a.givenRanges(ctx)
}

// givenRanges waits until the API has given the node its pod ranges.
func (a *agent) givenRanges(ctx context.Context) ([]netip.Prefix, error) {
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		if n, ok := a.registry.Node(); ok {
			if p := peer(n); len(p.PodCIDRs) > 0 {
				return p.PodCIDRs, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-look.C:
		}
	}
}

// cgroup is where pods get their cgroups.
func (a *agent) cgroup() string {
	if a.o.Cgroup == NoCgroup {
		a.o.Logger.Info("no cgroups for pods: their resources are not limited")
		return ""
	}
	if a.o.Cgroup != "" {
		return a.o.Cgroup
	}
	mount, ok := process.FindCgroup2()
	if !ok {
		return ""
	}
	path := filepath.Join(mount, "endpointd-"+a.o.Name)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		a.o.Logger.Info("no cgroups for pods: their resources are not limited", "err", err)
		return ""
	}
	return path
}

// self is the Node of this machine, nil before the API has it.
func (a *agent) self() *corev1.Node {
	n, _ := a.registry.Node()
	return n
}

// pick builds the part that keeps the pods.
func (a *agent) pick(ctx context.Context) error {
	a.watchPods()
	var err error
	options := node.Options{
		HostIPs: a.o.Addrs, Client: a.client.CoreV1(), Recorder: a.recorder, Runtimes: a.runtimes, Network: a.network, Specs: a.specs, Probes: a.probes,
		Mirror: a.mirror, LastWords: a.lastWords, Traffic: facts{a.traffic}, DrainGrace: a.o.DrainGrace, Logger: a.o.Logger,
	}
	if a.o.Manifests != "" {
		a.static = manifest.New(manifest.Options{
			Dir: a.o.Manifests, NodeName: a.o.Name, Client: a.client, Node: a.registry.Node, Keep: filepath.Join(a.o.DataDir, "manifests"), Events: a.recorder, Logger: a.o.Logger,
			OnChange: func(pods []*corev1.Pod) { a.node.SetStatic(pods) },
			Running:  func(uid types.UID) bool { return a.node.Keeps(uid) },
		})
	}
	a.node, err = node.New(ctx, options)
	return err
}

// start has everything run, and returns when the pods of this node are known.
func (a *agent) start(ctx context.Context) error {
	server, listener, err := a.kubelet()
	if err != nil {
		return err
	}
	a.runTraffic(ctx)
	a.run(ctx, "probes", a.probes.Run)
	a.run(ctx, "routes", a.keepRoutes)
	a.work.Go(func() { trimMemory(ctx) })
	a.work.Go(func() { dropPages(ctx) })
	a.run(ctx, "pods", a.node.Run)
	a.run(ctx, "watch of pods", a.pods.Run)
	if a.static != nil {
		a.run(ctx, "manifests", a.static.Run)
	}
	a.run(ctx, "kubelet API", func(ctx context.Context) error { return server.Serve(ctx, listener) })
	select {
	case <-a.pods.Synced():
		a.node.Synced()
	case <-ctx.Done():
	}
	_ = a.plane.inForce(ctx) // it ends with ctx
	return nil
}

// watchPods tells the agent which pods the API has for it.
func (a *agent) watchPods() {
	a.pods = watch.New(watch.Options[*corev1.Pod]{
		Name: "pods", Source: watch.From(a.client.CoreV1().Pods("")), Fields: "spec.nodeName=" + a.o.Name, Logger: a.o.Logger,
		Changed: func(was, now *corev1.Pod) {
			a.own.changed(was, now)
			switch {
			case now != nil && manifest.IsMirror(now):
				a.node.MirrorChanged(manifest.StaticUID(now))
			case now != nil:
				a.node.SetPod(now)
			case !manifest.IsMirror(was):
				a.node.RemovePod(was.UID)
			}
		},
	})
}

// mirror finds the API's object of a static pod.
func (a *agent) mirror(static types.UID) (*corev1.Pod, bool) {
	for _, pod := range a.pods.List() {
		if manifest.StaticUID(pod) == static {
			return pod, true
		}
	}
	return nil, false
}

// routesPeriod is how often routes and tables are compared with what they should be: somebody may have removed them.
const routesPeriod = 5 * time.Second

func (a *agent) keepRoutes(ctx context.Context) error {
	tick := time.NewTicker(routesPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if a.nodes.HasSynced() {
				a.setPeers()
			}
		}
	}
}

func (a *agent) setPeers() {
	var peers []podnet.Peer
	for _, n := range a.nodes.List() {
		if p := peer(n); n.Name != a.o.Name && len(p.PodCIDRs) > 0 && len(p.Addrs) > 0 {
			peers = append(peers, p)
		}
	}
	if err := a.network.SetPeers(context.Background(), peers); err != nil {
		a.o.Logger.Warn("routes to other nodes", "err", err)
	}
}

// kubelet makes the server of logs, exec and the like.
func (a *agent) kubelet() (*stream.Server, net.Listener, error) {
	host, port, err := net.SplitHostPort(a.o.Listen)
	if err != nil {
		return nil, nil, err
	}
	if host == "" {
		host = a.o.Addrs[0].String()
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: a kubelet or another agent serves this port: stop it, choose another one with --listen, or use --proxy-only to forward Services beside it", err)
	}
	options, err := a.streams()
	if err != nil {
		_ = listener.Close()
		return nil, nil, err
	}
	return stream.New(options), listener, nil
}

func (a *agent) close() {
	for _, r := range a.runtimes {
		if err := r.Close(); err != nil {
			a.o.Logger.Warn("runtime", "err", err)
		}
	}
	if a.o.Cgroup == "" && a.groups != "" {
		_ = os.Remove(a.groups) // ours, and gone if no pod runs on
	}
	if a.network != nil {
		if err := a.network.Stop(); err != nil {
			a.o.Logger.Warn("network", "err", err)
		}
	}
	if a.peers != nil {
		a.peers.Close()
	}
}
