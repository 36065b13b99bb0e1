package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

var (
	// ErrPoolEmpty is wrapped by the error of Add when all addresses of a range are used.
	ErrPoolEmpty = errors.New("no pod address is free")
	// ErrPortTaken is wrapped by the error of Add when another pod or a process of the node has a host port.
	ErrPortTaken = errors.New("host port is taken")
	// ErrOverlap is wrapped by the errors of Check and New when a pod range is in use for something else.
	ErrOverlap = errors.New("pod range overlaps")
)

// Options say what is fixed for the life of a node's pod network.
type Options struct {
	NodeAddrs []netip.Addr   // the node's InternalIPs, primary first; each family of PodCIDRs needs one
	PodCIDRs  []netip.Prefix // the node's pod ranges: one, or one of each family, primary first
	Logger    *slog.Logger   // default: nothing is logged
}

// HostPort is a port of the node that leads to a port of a pod (core/v1 ContainerPort.hostPort).
type HostPort struct {
	HostIP        netip.Addr // zero = every address of the node; 0.0.0.0 or :: = every address of that family
	Port          uint16     // on the node
	ContainerPort uint16     // in the pod
	Protocol      string     // TCP, UDP, SCTP; "" = TCP
}

// Peer is another node.
type Peer struct {
	Name     string
	Addrs    []netip.Addr   // InternalIPs
	PodCIDRs []netip.Prefix // its pod ranges
}

// Network is the pod network of a node. All methods may be called concurrently; those for one pod wait for each other.
type Network struct {
	log    *slog.Logger
	config config
	kernel *kernel

	mu    sync.Mutex // guards what follows; never held during a system call
	pools []*pool    // one per pod range, in its order
	ports *portTable
	pods  map[string]*pod       // UID → what it has
	busy  map[string]*turnstile // UID → its lock, while somebody uses it

	peersMu sync.Mutex // held by SetPeers throughout
}

// pod is what a pod has. It is written only by the holder of its turnstile.
type pod struct {
	addrs   []netip.Addr // in the order of the pod ranges
	adopted bool         // false: an earlier run left it, and nobody has asked for it yet
}

type turnstile struct {
	mu    sync.Mutex
	users int
}

// Check says whether New would be refused, and changes nothing. It compares the pod ranges with the routes and
// interfaces of the network namespace of the calling thread, except those that this package made.
func Check(o Options) error {
	c, err := newConfig(o)
	if err != nil {
		return err
	}
	ns, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open the node's network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	_, err = check(c, ns)
	return err
}

func check(c config, ns netns.NsHandle) (surroundings, error) {
	around, err := observeSurroundings(ns)
	if err != nil {
		return surroundings{}, err
	}
	return around, conflicts(c, around)
}

// New makes the pod network of the network namespace of the calling thread, or takes over what an earlier run left in it.
// Pods that were found are kept until they are adopted, removed or pruned.
func New(ctx context.Context, o Options) (*Network, error) {
	c, err := newConfig(o)
	if err != nil {
		return nil, err
	}
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open the node's network namespace: %w", err)
	}
	n := &Network{
		log: o.Logger, config: c, kernel: &kernel{ns: ns},
		ports: newPortTable(), pods: map[string]*pod{}, busy: map[string]*turnstile{},
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	for _, prefix := range c.cidrs {
		n.pools = append(n.pools, newPool(prefix))
	}
	if err := n.start(ctx); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return n, nil
}

func (n *Network) start(ctx context.Context) error {
	around, err := check(n.config, n.kernel.ns)
	if err != nil {
		return err
	}
	n.config.mtu = around.mtu(n.config.node)
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := inNamespace(n.kernel.ns, func() error { return forwarding(n.config, around, n.log) }); err != nil {
		return err
	}
	if err := n.kernel.setTable(n.config); err != nil {
		return err
	}
	if err := n.kernel.setOwnRanges(n.config.cidrs); err != nil {
		return err
	}
	droppers, err := n.kernel.droppers()
	if err != nil {
		return err
	}
	if len(droppers) > 0 {
		n.log.Warn("another firewall drops forwarded packets by default; have it accept those from and to the pod ranges",
			"chains", droppers, "pod_ranges", join(n.config.cidrs))
	}
	// What an earlier run knew of other nodes is kept until SetPeers is called.
	seen, err := n.kernel.observeInside()
	if err != nil {
		return err
	}
	if own := inside(n.config, nil); !covers(seen, own) {
		if err := n.kernel.setInside(seen, own); err != nil {
			return err
		}
	}
	return n.takeOver()
}

// takeOver fills the memory from the kernel.
func (n *Network) takeOver() error {
	if err := n.kernel.removeUnfinished(); err != nil {
		return err
	}
	left, err := n.kernel.observePods()
	if err != nil {
		return err
	}
	owner := map[netip.Addr]string{} // address → UID
	for uid, addrs := range left {
		n.pods[uid] = &pod{addrs: n.order(addrs)}
		for _, addr := range addrs {
			owner[addr] = uid
			n.take(addr)
		}
	}
	ports, err := n.kernel.observePorts()
	if err != nil {
		return err
	}
	for _, p := range ports {
		if uid, ok := owner[p.target.Addr()]; ok {
			n.ports.put(p, uid)
		} else if err := n.kernel.changePorts(nil, []forward{p}); err != nil {
			return err // its pod is gone: a rule into nowhere
		}
	}
	if len(left) > 0 {
		n.log.Info("pod network taken over", "pods", len(left), "host_ports", len(ports))
	}
	return nil
}

// order sorts addresses as the pod ranges are.
func (n *Network) order(addrs []netip.Addr) []netip.Addr {
	sorted := slices.Clone(addrs)
	primary := n.config.cidrs[0].Addr().Is4()
	slices.SortFunc(sorted, func(a, b netip.Addr) int {
		if a.Is4() == b.Is4() {
			return a.Compare(b)
		}
		if a.Is4() == primary {
			return -1
		}
		return 1
	})
	return sorted
}

// Add gives a pod an interface eth0 in the network namespace at path, addresses (primary first) and its host ports. When it
// fails nothing is left. A pod that is there already is an error that Is fs.ErrExist, unless an earlier run left it
// and it was not adopted: then it is replaced.
func (n *Network) Add(ctx context.Context, uid, path string, ports []HostPort) ([]netip.Addr, error) {
	defer n.enter(uid)()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if old, adopted := n.lookup(uid); adopted {
		return nil, fmt.Errorf("pod %s has a network already: %w; remove it first", uid, fs.ErrExist)
	} else if old != nil {
		if err := n.remove(uid); err != nil {
			return nil, err
		}
	}
	addrs, forwards, err := n.reserve(uid, ports)
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", uid, err)
	}
	if err := n.attach(ctx, uid, path, addrs, forwards); err != nil {
		return nil, errors.Join(fmt.Errorf("pod %s: %w", uid, err), n.remove(uid))
	}
	return slices.Clone(addrs), nil
}

func (n *Network) attach(ctx context.Context, uid, path string, addrs []netip.Addr, forwards []forward) error {
	if len(forwards) > 0 {
		if err := probePorts(ctx, n.kernel.ns, forwards); err != nil {
			return err
		}
	}
	if err := n.kernel.addPod(n.cable(uid, addrs, forwards), path); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := n.kernel.changePorts(forwards, nil); err != nil {
		return err
	}
	return n.kernel.forgetFlows(forwards, true)
}

func (n *Network) cable(uid string, addrs []netip.Addr, forwards []forward) cable {
	return cable{
		uid: uid, addrs: addrs, node: n.config.node, mtu: n.config.mtu,
		localnet: slices.ContainsFunc(forwards, func(f forward) bool { return f.host.Addr().Is4() }),
	}
}

// Adopt takes a pod that an earlier run added: its addresses stay its own, and a route, neighbour entry or host port that
// is missing is made again. It fails if the pod's interface is gone, or if another pod has an address or a port.
func (n *Network) Adopt(uid string, addrs []netip.Addr, ports []HostPort) error {
	defer n.enter(uid)()
	addrs = n.order(addrs)
	wanted, err := forwardsOf(addrs, ports)
	if err != nil {
		return fmt.Errorf("adopt pod %s: %w", uid, err)
	}
	add, drop, err := n.claim(uid, addrs, wanted)
	if err != nil {
		return fmt.Errorf("adopt pod %s: %w", uid, err)
	}
	err = n.kernel.repairPod(n.cable(uid, addrs, wanted))
	if err == nil {
		err = n.kernel.changePorts(add, drop)
	}
	if err != nil {
		return fmt.Errorf("adopt pod %s: %w", uid, err)
	}
	return nil
}

// Remove takes a pod's interface, routes and host ports away. Its addresses may be given again. A pod that is not there
// is no error.
func (n *Network) Remove(ctx context.Context, uid string) error {
	defer n.enter(uid)()
	if err := ctx.Err(); err != nil {
		return err
	}
	return n.remove(uid)
}

// remove is Remove for the holder of the pod's turnstile. What fails is still known afterwards, so that it can be tried again.
func (n *Network) remove(uid string) error {
	n.mu.Lock()
	forwards := n.ports.of(uid)
	n.mu.Unlock()
	if err := n.kernel.changePorts(nil, forwards); err != nil {
		return fmt.Errorf("remove pod %s: %w", uid, err)
	}
	if err := n.kernel.removePod(uid); err != nil {
		return fmt.Errorf("remove pod %s: %w", uid, err)
	}
	n.mu.Lock()
	if p := n.pods[uid]; p != nil {
		n.release(p.addrs)
		delete(n.pods, uid)
	}
	for _, f := range forwards {
		n.ports.drop(f)
	}
	n.mu.Unlock()
	if err := n.kernel.forgetFlows(forwards, false); err != nil {
		return fmt.Errorf("remove pod %s: %w", uid, err)
	}
	return nil
}

// Prune removes every pod whose UID is not in keep. A pod that is added meanwhile must be in keep.
func (n *Network) Prune(ctx context.Context, keep []string) error {
	kept := make(map[string]bool, len(keep))
	for _, uid := range keep {
		kept[uid] = true
	}
	left, err := n.kernel.observePods()
	if err != nil {
		return err
	}
	n.mu.Lock()
	for uid := range n.pods {
		left[uid] = nil
	}
	n.mu.Unlock()
	var errs []error
	for uid := range left {
		if !kept[uid] {
			errs = append(errs, n.Remove(ctx, uid))
		}
	}
	return errors.Join(errs...)
}

// Close removes everything that this package made in the node's network namespace, for a node that is taken down for good. Settings of the
// kernel that others may rely on by now, such as net.ipv4.ip_forward, stay. The Network must not be used afterwards.
func (n *Network) Close(ctx context.Context) error {
	n.peersMu.Lock()
	defer n.peersMu.Unlock()
	err := errors.Join(
		n.Prune(ctx, nil),
		n.kernel.removeTable(),
		n.kernel.removeRoutes(),
	)
	return errors.Join(err, n.Stop())
}

// Stop lets go of the network and leaves everything as it is, for an agent that ends. The Network must not be used afterwards.
func (n *Network) Stop() error {
	if !n.kernel.ns.IsOpen() {
		return nil
	}
	return n.kernel.ns.Close()
}

// familyName is how people call the family of an address.
func familyName(addr netip.Addr) string {
	if addr.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

func netlinkFamily(addr netip.Addr) int {
	if addr.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func join[T fmt.Stringer](list []T) string {
	var words []string
	for _, item := range list {
		words = append(words, item.String())
	}
	return strings.Join(words, ", ")
}
