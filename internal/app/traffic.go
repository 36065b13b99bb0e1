package app

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/node"
	"github.com/endpointd/endpointd/internal/node/peers"
	"github.com/endpointd/endpointd/internal/node/process"
	"github.com/endpointd/endpointd/internal/node/register"
	"github.com/endpointd/endpointd/internal/node/traffic"
)

// makePlane finds out how this machine can lead connections, before anything else is begun.
func (a *agent) makePlane(ctx context.Context) error {
	var err error
	o := a.o
	a.plane, err = newPlane(ctx, planeOptions{
		kind: o.DataPlane, cgroup: a.clients(), pins: pinsFolder(o.DataDir), netns: a.namespaces, listen: o.Healthz,
		failed: healthEvents(a.recorder, o.Name), log: o.Logger,
	})
	if err == nil && o.NodePorts.Localhost() && !a.plane.ebpf {
		o.Logger.Warn("node ports on loopback need eBPF, and are not reliable without it", "data_plane", a.plane.name)
	}
	return err
}

// lead builds what tells the data plane what to do.
func (a *agent) lead() {
	o := a.o
	options := traffic.Options{
		Node: o.Name, Client: a.client, Addrs: o.Addrs, PodCIDRs: o.PodCIDRs, ClusterCIDRs: o.ClusterCIDRs, NodePorts: o.NodePorts,
		Set: a.set, Wait: a.plane.runner.Wait, NodeChanged: a.nodeChanged, Logger: o.Logger,
	}
	if !o.ProxyOnly {
		options.ServiceChanged, options.Peers = a.objects.serviceChanged, a.askPeers()
	}
	if a.names != nil {
		options.Programmed = a.names.programmed
	}
	a.traffic = traffic.New(options)
	a.nodes = a.traffic.Nodes()
}

// set has a Snapshot be in force soon, and names answered from it at once.
func (a *agent) set(s *model.Snapshot) {
	a.plane.set(s)
	a.setNames(s)
}

// runTraffic has all of it run.
func (a *agent) runTraffic(ctx context.Context) {
	a.run(ctx, "data plane", a.plane.run)
	a.run(ctx, "watch of Services", a.traffic.Run)
	if a.names != nil {
		a.runNames(ctx)
	}
	a.run(ctx, "health checks", a.plane.serveHealth)
	a.run(ctx, "debug socket", func(ctx context.Context) error {
		return serveDebug(ctx, a.o.DataDir, debugHandler(a.plane, debugNames{a.names, a.noNames}), a.o.Logger)
	})
}

// nodeChanged keeps routes to the other nodes' pods, and tells load balancers what becomes of this one.
func (a *agent) nodeChanged(was, now *corev1.Node) {
	if now != nil && now.Name == a.o.Name || was != nil && was.Name == a.o.Name {
		a.plane.setEligible(now)
	}
	if was != nil && now != nil && samePeer(was, now) {
		return
	}
	if a.names != nil {
		a.names.setNodes(a.nodes.List())
	}
	if a.network == nil || !a.nodes.HasSynced() && now == nil {
		return
	}
	a.setPeers()
}

// clients is the cgroup whose processes are eBPF's clients: the folder that was given, which holds this node's pods and nobody else's, or
// everything on this machine.
func (a *agent) clients() string {
	switch a.o.Cgroup {
	case "":
	case NoCgroup:
		return ""
	default:
		return a.o.Cgroup
	}
	mount, _ := process.FindCgroup2()
	return mount
}

// namespaces are the network namespaces in which there may be sockets to endpoints that are gone.
func (a *agent) namespaces() []string {
	if a.processes != nil {
		var paths []string
		pods, _ := a.processes.Pods(context.Background()) // it asks nobody
		for _, pod := range pods {
			if pod.NetNS != "" {
				paths = append(paths, pod.NetNS)
			}
		}
		return paths
	}
	var paths []string
	for _, pattern := range []string{"/run/netns/*", "/run/docker/netns/*"} { // where runtimes keep them
		found, _ := filepath.Glob(pattern) // the pattern is right
		for _, path := range found {
			var fs unix.Statfs_t
			if unix.Statfs(path, &fs) == nil && int64(fs.Type) == unix.NSFS_MAGIC { // not what was mounted there once
				paths = append(paths, path)
			}
		}
	}
	return paths
}

// facts tells traffic what the agent knows better than the API of its pods.
type facts struct{ *traffic.Traffic }

// Down implements node.Traffic.
func (f facts) Down(uid string, why node.Fact) {
	reason := model.LocalDead
	switch why {
	case node.NotReady:
		reason = model.LocalNotReady
	case node.Draining:
		reason = model.LocalDraining
	case node.Dead:
	}
	f.Traffic.Down(uid, reason)
}

// acknowledged is for other nodes, see package peers.
func (a *agent) acknowledged(ctx context.Context, resourceVersion string) error {
	version, err := strconv.ParseUint(resourceVersion, 10, 64)
	if err != nil {
		return fmt.Errorf("resourceVersion %s: %w", resourceVersion, err)
	}
	return a.traffic.Acknowledged(ctx, version)
}

// askPeers returns what asks all other nodes whether they have in force what EndpointSlices said up to a version.
func (a *agent) askPeers() func(context.Context, uint64) {
	config, err := rest.TLSConfigFor(a.config)
	var client *peers.Client
	if err == nil {
		client, err = peers.New(peers.Options{TLS: config})
	}
	if err != nil {
		a.o.Logger.Warn("other nodes are not asked before a pod is told to end", "err", err)
		return nil
	}
	a.peers = client
	return func(ctx context.Context, version uint64) {
		for _, answer := range client.Acknowledge(ctx, a.others(), strconv.FormatUint(version, 10)) {
			if answer.Err != nil && answer.Outcome != peers.Foreign {
				a.o.Logger.Info("a pod is told to end though a node may lead connections to it yet", "err", answer.Err)
			}
		}
	}
}

// others are the nodes that lead connections and can be asked: those that are ready and whose agent is ours.
func (a *agent) others() []peers.Peer {
	var others []peers.Peer
	for _, n := range a.nodes.List() {
		if p, ok := askable(n); ok && n.Name != a.o.Name {
			others = append(others, p)
		}
	}
	return others
}

func askable(n *corev1.Node) (peers.Peer, bool) {
	at := slices.IndexFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
	addrs := peer(n).Addrs
	port := n.Status.DaemonEndpoints.KubeletEndpoint.Port
	if at < 0 || n.Status.Conditions[at].Status != corev1.ConditionTrue || len(addrs) == 0 || !register.Ours(n) || port < 0 || port > 65535 {
		return peers.Peer{}, false
	}
	return peers.Peer{Name: n.Name, Addr: addrs[0], Port: uint16(port)}, true
}
