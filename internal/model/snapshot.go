package model

import (
	"iter"
	"net/netip"
	"time"
)

// A Snapshot is what one node should do about every Service at one moment. It is immutable: whoever has one may read it from any
// goroutine and keep it for as long as he likes, and nobody modifies what it refers to. See [Build].
type Snapshot struct {
	// Revision orders the Snapshots of one process; it never goes back. It is no part of what [Text] prints.
	Revision uint64
	// Network is what the node knows of addresses that are not a Service's.
	Network Network

	index index
}

// Network says which addresses are whose. The slices are sorted and not to be modified.
type Network struct {
	Node string // name of this node
	Zone string // its label topology.kubernetes.io/zone; "" = none
	// NodePortAddrs are the addresses of this node on which NodePorts answer, chosen by nodePortAddresses.
	NodePortAddrs []netip.Addr
	// PodCIDRs are the ranges of this node's own pods: their packets come back through this node, so their source is kept.
	PodCIDRs []netip.Prefix
	// ClusterCIDRs are the ranges of all nodes' pods; what comes from there, or from the node itself, is internal traffic.
	ClusterCIDRs []netip.Prefix
	// NodePodCIDRs are the ranges that Nodes have for their pods, this one's among them. There are pods and nothing else there, while ClusterCIDRs can
	// be wider, for somebody has written them down.
	NodePodCIDRs []netip.Prefix
	// ServiceCIDRs are the ranges of ClusterIPs: what is sent to an address there that no Service has goes nowhere. Empty if not known.
	ServiceCIDRs []netip.Prefix
}

// A ServiceKey is the name of a Service.
type ServiceKey struct{ Namespace, Name string }

// String is namespace/name.
func (k ServiceKey) String() string { return k.Namespace + "/" + k.Name }

// Compare orders by namespace, then name.
func (k ServiceKey) Compare(other ServiceKey) int { return compareServiceKeys(k, other) }

// Protocol is a transport protocol; its number is IANA's, as in the IP header.
type Protocol uint8

// The protocols that a Service's port can have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// Kind says what a Service is to DNS and to the data plane.
type Kind uint8

// The kinds of Services.
const (
	ClusterIP    Kind = iota // it has addresses; NodePort and LoadBalancer Services are of this kind too
	Headless                 // clusterIP None: DNS answers with its endpoints, and the data plane does nothing
	ExternalName             // DNS answers with another name
)

// A Service with everything of it resolved for this node. The same Service in the next Snapshot is the same pointer if nothing that
// is said here has changed.
type Service struct {
	Key  ServiceKey
	UID  string
	Kind Kind
	// ClusterIPs, primary family first; empty unless Kind is ClusterIP.
	ClusterIPs []netip.Addr
	// ExternalName of a Service of that kind, without a dot at its end.
	ExternalName string
	// PublishNotReady is publishNotReadyAddresses; the endpoints' Ready has it in it already.
	PublishNotReady bool
	// OtherProxy is the label service.kubernetes.io/service-proxy-name: somebody else forwards, so there are no Frontends. DNS answers.
	// A label without a value counts too, and is "(unnamed)" here.
	OtherProxy string
	// Ports sorted by name.
	Ports []*Port
	// Endpoints of all ports and families, ready or not, each with its Reason: sorted by PortName, Protocol and AddrPort, no two equal.
	// An endpoint of a Service without ports has port 0 and Protocol 0, and so has what comes from a port that cannot be used.
	// None of ExternalName.
	Endpoints []*Endpoint
	// HealthCheckNodePort is the port that tells load balancers about LocalEndpoints; 0 = none.
	HealthCheckNodePort uint16
	// LocalEndpoints is how many ready addresses of this node external traffic reaches under externalTrafficPolicy Local, in the family that
	// has more. Terminating ones do not count: balancers should look for another node.
	LocalEndpoints int
	// TTL of its DNS records if an annotation gives one, else negative.
	TTL time.Duration
	// Problems of this Service and its slices, sorted: what could not be used, and why.
	Problems []Problem
}

// A Port of a Service.
type Port struct {
	Name        string // "" only if it is the only one
	Protocol    Protocol
	Number      uint16
	AppProtocol string
	// Frontends sorted by [FrontendKey]; empty if the data plane has nothing to do for it.
	Frontends []Frontend
}

// A FrontendKey is what a client dials. No two Frontends of a Snapshot have the same one.
type FrontendKey struct {
	Addr     netip.Addr
	Protocol Protocol
	Port     uint16
}

// FrontendKind says where a Frontend's address is from.
type FrontendKind uint8

// The kinds of Frontends.
const (
	FrontendClusterIP FrontendKind = iota
	FrontendNodePort
	FrontendExternalIP
	FrontendLoadBalancerIP
)

// A Frontend is one address and port at which a Service answers, and where it leads from this node.
type Frontend struct {
	FrontendKey
	Kind FrontendKind
	// Internal is for clients inside the cluster (pods of any node, this node itself), External for all others. Never nil; often the same.
	Internal, External *Pool
	// KeepSource is externalTrafficPolicy Local: a client from outside keeps its address, its packets are not masqueraded.
	KeepSource bool
	// SourceRanges are the only ones that may reach it; empty = everybody. A node's own traffic is not exempt. Ranges that could not be read
	// leave 0.0.0.0/32 or ::/128, which are nobody's.
	SourceRanges []netip.Prefix
}

// A PoolKey names a Pool: it stays the same as endpoints come and go.
type PoolKey struct {
	Service  ServiceKey
	Port     string
	Protocol Protocol
	IPv6     bool
	Local    bool // only endpoints of this node: a traffic policy Local
}

// A Pool is the endpoints that new connections are spread over.
type Pool struct {
	PoolKey
	// Endpoints that were chosen: sorted by AddrPort, all of one family, no two with the same AddrPort.
	Endpoints []*Endpoint
	// Empty is what happens to packets while there is no endpoint.
	Empty Verdict
	// Affinity > 0: a client's connections go to one endpoint until it has made none for so long (sessionAffinity ClientIP), whole seconds.
	Affinity time.Duration
}

// Verdict is what happens to a packet that leads nowhere.
type Verdict uint8

// The verdicts.
const (
	Reject Verdict = iota // no endpoint anywhere: the client is told at once
	Drop                  // there are endpoints, but the policy Local excludes them all
)

// An Endpoint receives: one address and port of one port of a Service. Its conditions are the API's, with what this node knows better about
// its own pods.
type Endpoint struct {
	netip.AddrPort
	PortName string
	Protocol Protocol
	// Ready, Serving and Terminating as in discovery/v1, nil resolved to its meaning.
	Ready, Serving, Terminating bool
	// Local: it is on this node.
	Local bool
	// lastResort: it is ready for the API, and this node saw its probe fail.
	lastResort bool
	// Reason it gets no traffic from this node; None if it is in a Pool, or if DNS answers with it (Headless). Where policies differ, it is that
	// of a client in the cluster that dials the ClusterIP: other Pools of the Service may lead to an endpoint with another Reason.
	Reason Reason
	// Hostname is for DNS; often "".
	Hostname string
	// Where it is from; shared with the endpoints of other ports.
	*Origin
}

// An Origin is what all ports of an endpoint have in common.
type Origin struct {
	Node, Zone string
	Slice      string // name of the EndpointSlice
	// Target is what the endpoint is, e.g. kind "Pod", name and UID; zero for endpoints written by hand.
	Target Target
	// ForZones and ForNodes are its hints, sorted.
	ForZones, ForNodes []string
}

// A Target is an object that an endpoint stands for, in the Service's namespace.
type Target struct{ Kind, Name, UID string }

// A Problem is an object, or a part of one, that could not be used. It hurts nothing else.
type Problem struct {
	Kind    string // "Service" or "EndpointSlice"
	Object  ServiceKey
	Reason  Reason
	Message string // what is wrong, and what to do
}

// Services in the order of their keys.
func (s *Snapshot) Services() iter.Seq[*Service] { return s.index.services() }

// Service is nil if there is none of that name.
func (s *Snapshot) Service(key ServiceKey) *Service { return s.index.service(key) }

// Changed yields the keys of the Services that differ between was and s, in no order; each once. What is gone is among them. The cost is
// in proportion to the changes if was is not much older than s. A nil was is a Snapshot without Services.
func (s *Snapshot) Changed(was *Snapshot) iter.Seq[ServiceKey] { return s.index.changed(s, was) }

// Len is the number of Services.
func (s *Snapshot) Len() int { return s.index.len() }

// Owner is the Service that has the frontend, nil if none has.
func (s *Snapshot) Owner(key FrontendKey) *Service { return s.index.owner(key) }
