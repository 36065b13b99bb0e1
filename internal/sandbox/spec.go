package sandbox

import (
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
)

// Spec says what is inside. It goes from the host side to the inside as JSON.
type Spec struct {
	DataDir string
	// Gateways are the outer namespace's addresses on the bridge, with its range: one of each family.
	Gateways []netip.Prefix
	Nodes    []Node
	// Services are the ranges of ClusterIPs: the outer namespace routes them to the nodes.
	Services []netip.Prefix
	// Server are the arguments of the server, which runs in the outer namespace. Descriptor 3 is the listener on the
	// machine's loopback.
	Server []string
	// Resolv is the content of /etc/resolv.conf everywhere inside.
	Resolv string
	// PublishNodePorts on the machine's loopback.
	PublishNodePorts bool
}

// Node is one node.
type Node struct {
	Name     string
	Addrs    []netip.Addr   // one of each family
	PodCIDRs []netip.Prefix // one of each family; the outer namespace routes them to the node
	Args     []string       // of the agent
	Cgroup   string         // of its pods and of commands that run there; "" = none
}

// The most nodes that a /24 of addresses and a /16 of pods leave room for, and the first one's address.
const (
	MaxNodes  = 200
	firstHost = 10
)

// Addresses of the bridge; node i has the address with the number firstHost+i.
func bridges() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.200.0.0/24"), netip.MustParsePrefix("fd00:200::/64")}
}

// Layout gives names and addresses to nodes. Families are those of the pod ranges, in their order.
func Layout(nodes int, pods, services []netip.Prefix) (Spec, error) {
	var s Spec
	if nodes < 0 || nodes > MaxNodes {
		return s, fmt.Errorf("%d nodes: want 0 to %d", nodes, MaxNodes)
	}
	if len(pods) == 0 || len(pods) > 2 || len(pods) == 2 && pods[0].Addr().Is4() == pods[1].Addr().Is4() {
		return s, errors.New("pod ranges: want one, or one of each address family")
	}
	if err := apart(slices.Concat(bridges(), pods, services)); err != nil {
		return s, err
	}
	s.Nodes = make([]Node, nodes)
	for _, pod := range pods {
		bridge := bridges()[0]
		if pod.Addr().Is6() {
			bridge = bridges()[1]
		}
		s.Gateways = append(s.Gateways, netip.PrefixFrom(offset(bridge.Addr(), 1, 0), bridge.Bits()))
		for i := range s.Nodes {
			n := &s.Nodes[i]
			n.Name = "node-" + strconv.Itoa(i+1)
			n.Addrs = append(n.Addrs, offset(bridge.Addr(), firstHost+i+1, 0))
			cidr, err := nodeRange(pod, i+1, nodes)
			if err != nil {
				return s, err
			}
			n.PodCIDRs = append(n.PodCIDRs, cidr)
		}
	}
	return s, nil
}

// A node's pods have a /24, or a /64.
func nodeRange(pods netip.Prefix, number, nodes int) (netip.Prefix, error) {
	bits := 24
	if pods.Addr().Is6() {
		bits = 64
	}
	if pods.Bits() > bits || bits-pods.Bits() < 16 && nodes >= 1<<(bits-pods.Bits()) {
		return netip.Prefix{}, fmt.Errorf("pod range %s: too small for %d nodes of a /%d each: choose a larger one", pods, nodes, bits)
	}
	return netip.PrefixFrom(offset(pods.Masked().Addr(), number, pods.Addr().BitLen()-bits), bits), nil
}

// offset adds n << shift.
func offset(a netip.Addr, n, shift int) netip.Addr {
	sum := new(big.Int).SetBytes(a.AsSlice())
	sum.Add(sum, new(big.Int).Lsh(big.NewInt(int64(n)), uint(shift)))
	out, _ := netip.AddrFromSlice(sum.FillBytes(make([]byte, a.BitLen()/8)))
	return out
}

func apart(ranges []netip.Prefix) error {
	for i, a := range ranges {
		for _, b := range ranges[:i] {
			if a.Overlaps(b) {
				return fmt.Errorf("%s and %s overlap: choose other ranges with --pod-cidr and --service-cidr (nodes have %s and %s)", b, a, bridges()[0], bridges()[1])
			}
		}
	}
	return nil
}

// DNS is the address of the cluster's DNS: the tenth of the service range.
func DNS(services netip.Prefix) netip.Addr { return offset(services.Masked().Addr(), 10, 0) }

// Resolv is a resolv.conf as a kubelet writes it for the default namespace (Kubernetes: "DNS for Services and Pods").
func Resolv(services netip.Prefix) string {
	return "nameserver " + DNS(services).String() + "\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
}

// Paths in a data folder:
//
//	inside.kubeconfig     for commands inside
//	logs/NAME.log         what a part printed, and NAME.log.1 what it printed before
//	nodes/NAME/           an agent's folder and kubeconfig
//	run/control.sock      exec and status
//	run/NAME.notify       where an agent says what is to be kept for its next start
//	up.lock               held while the sandbox is there; the pid of the host side inside

// InsideKubeconfig is for commands inside the sandbox.
func InsideKubeconfig(dataDir string) string { return filepath.Join(dataDir, "inside.kubeconfig") }

// NodeDir is an agent's data folder.
func NodeDir(dataDir, name string) string { return filepath.Join(dataDir, "nodes", name) }

// LogFile is where the output of a part goes: "up", "sandbox", "server" or a node's name.
func LogFile(dataDir, part string) string { return filepath.Join(dataDir, "logs", part+".log") }

func runDir(dataDir string) string { return filepath.Join(dataDir, "run") }

const (
	controlName = "control.sock"
	keptSuffix  = ".notify"
)

func keptSocket(dataDir, node string) string { return filepath.Join(runDir(dataDir), node+keptSuffix) }
