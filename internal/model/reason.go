package model

// A Reason says why an endpoint gets no traffic from this node, or why an object could not be used. Explain, events and status
// show the same values.
type Reason uint8

// The Reasons. The zero value is none: the endpoint is used.
const (
	None Reason = iota
	NotReady
	Terminating    // and there are others to use
	OtherZone      // hints keep traffic in the zone
	OtherNode      // hints, or a policy Local, keep traffic on the node
	LocalDead      // this node saw its process end
	LocalNotReady  // this node saw its probe fail
	LocalDraining  // this node is about to tell it to stop
	NoSuchPort     // the slice's port is not one of the Service's
	FamilyUnused   // the Service has no address of that family
	BadAddress     // not an IP address, or one that cannot be an endpoint
	BadPort        // not in 1–65535
	BadProtocol    // none of TCP, UDP, SCTP
	Duplicate      // the same address and port again
	FrontendTaken  // another Service has that address, protocol and port
	OtherProxyName // label service.kubernetes.io/service-proxy-name
	BadValue       // something else of the object makes no sense
)
