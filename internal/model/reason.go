package model

import "fmt"

// A Reason says why an endpoint gets no traffic from this node, or why an object could not be used. Explain, events and status
// show the same values.
type Reason uint8

// The Reasons. The zero value is none: the endpoint is used.
const (
	None Reason = iota
	NotReady
	Terminating   // and there are others to use
	OtherZone     // hints keep traffic in the zone
	OtherNode     // hints, or a policy Local, keep traffic on the node
	LocalDead     // this node saw its process end
	LocalNotReady // this node saw its probe fail
	LocalDraining // this node is about to tell it to stop
	// What follows no condition of the endpoint overcomes.
	NoSuchPort     // the slice's port is not one of the Service's
	FamilyUnused   // the Service has no address of that family
	BadAddress     // not an IP address, or one that cannot be an endpoint
	BadPort        // not in 1–65535
	BadProtocol    // none of TCP, UDP, SCTP
	Duplicate      // the same address and port again
	FrontendTaken  // another Service has that address, protocol and port
	OtherProxyName // label service.kubernetes.io/service-proxy-name
	BadValue       // something else of the object makes no sense
	HeadlessSlice  // label service.kubernetes.io/headless on a slice of a Service that has a ClusterIP
	reasons        // how many there are
)

// words are the stable names of the Reasons, and what to make of them.
var words = [reasons]struct{ name, sentence string }{
	None:           {"used", "New connections are led to it."},
	NotReady:       {"not ready", "The API says that it is not ready; look at its readiness probe, or at who writes its EndpointSlice."},
	Terminating:    {"terminating", "It is told to stop, and there are others that are ready; connections that it has may finish."},
	OtherZone:      {"other zone", "The hints of its Service's endpoints keep traffic in the zone of each node; see spec.trafficDistribution."},
	OtherNode:      {"other node", "A traffic policy Local or hints keep traffic on each node; see the traffic policies and spec.trafficDistribution of its Service."},
	LocalDead:      {"process ended", "This node saw its process end, and the API has not said so yet."},
	LocalNotReady:  {"probe failed", "This node saw its readiness probe fail, and the API has not said so yet."},
	LocalDraining:  {"draining", "This node is about to tell it to stop; connections that it has may finish."},
	NoSuchPort:     {"no such port", "Its Service has no port of that name and protocol; the names of the slice's ports must be the Service's."},
	FamilyUnused:   {"family unused", "Its Service has no ClusterIP of that address family; see spec.ipFamilies."},
	BadAddress:     {"bad address", "It is no IP address, or one that connections cannot be led to from everywhere."},
	BadPort:        {"bad port", "A port is a number from 1 to 65535."},
	BadProtocol:    {"bad protocol", "A protocol is TCP, UDP or SCTP."},
	Duplicate:      {"duplicate", "The same is there already, and the better one of both is used."},
	FrontendTaken:  {"frontend taken", "An older Service has that address, protocol and port; this one gets it when the other lets go."},
	OtherProxyName: {"other proxy", "The label service.kubernetes.io/service-proxy-name says that another program forwards for its Service."},
	BadValue:       {"bad value", "It makes no sense, and was left out or replaced by the default."},
	HeadlessSlice:  {"headless slice", "Its EndpointSlice has the label service.kubernetes.io/headless and is for DNS only; remove the label, as its Service has a ClusterIP."},
}

// String is a phrase in lower case that stays the same from release to release.
func (r Reason) String() string {
	if r < reasons {
		return words[r].name
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Explain is a sentence for people: what it means, and where to look.
func (r Reason) Explain() string {
	if r < reasons {
		return words[r].sentence
	}
	return r.String() + " is not known to this version."
}

// local says whether it is one that Input.WithDown takes.
func (r Reason) local() bool { return r == LocalDead || r == LocalNotReady || r == LocalDraining }

// final says whether no condition of an endpoint overcomes it.
func (r Reason) final() bool { return r >= NoSuchPort }
