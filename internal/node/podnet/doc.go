// Package podnet is the pod network of one node: addresses, virtual cables, routes and host ports.
//
// What it is: each pod has an interface eth0 with an address of its own (one of each family), and a cable (veth) to the
// node. There is no bridge: the default route of a pod leads to a link-local gateway that nobody owns, permanent
// neighbour entries on both ends replace ARP and neighbour discovery, and the node has a route to each pod. So every packet of a pod is
// routed by the node, and a pod can be reached as soon as [Network.Add] returns.
//
// In and out: the network namespace of a pod and its host ports go in, addresses come out; the kernel of the network
// namespace in which [New] was called is written over netlink (rtnetlink, nftables). Ranges of pods on other nodes go in through
// [Network.SetPeers]. The kernel is also the memory: what an earlier run left (the alias of a cable is the pod's UID, its routes name the
// addresses, the maps of the nftables table the host ports) is taken over by New without an interruption.
//
// Invariants: an address or host port belongs to one pod at a time, and an address that was just freed is the last to
// be given again. Nothing that others made is changed: our routes have protocol [RouteProtocol], our interfaces the prefix "edp",
// our rules the table "endpointd-pods". Pods see each other's and the node's true source address; only what leaves the
// cluster is masqueraded. plan.go, pool.go and ports.go decide and are pure; link.go and nft.go write; observe.go reads back.
//
// What it refuses: a pod range that overlaps a route, an interface or a node's address, before anything is changed;
// tunnels (another node must be on a network in common); any program to be installed. A host port does not answer on ::1: the
// kernel takes an answer for ::1 from no other interface than lo (127.0.0.1 works).
//
// How to test: go test ./internal/node/podnet. The test binary starts itself again in namespaces of its own and sends real packets;
// the machine's network is never touched.
package podnet
