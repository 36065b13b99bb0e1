package model

import (
	"fmt"
	"net/netip"
)

// String is the protocol's name in the API.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	case 0:
		return "-"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// String is as in the API.
func (k Kind) String() string {
	switch k {
	case ClusterIP:
		return "ClusterIP"
	case Headless:
		return "Headless"
	case ExternalName:
		return "ExternalName"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// String is one word.
func (k FrontendKind) String() string {
	switch k {
	case FrontendClusterIP:
		return "ClusterIP"
	case FrontendNodePort:
		return "NodePort"
	case FrontendExternalIP:
		return "ExternalIP"
	case FrontendLoadBalancerIP:
		return "LoadBalancerIP"
	}
	return fmt.Sprintf("frontend kind %d", uint8(k))
}

// String is one word in lower case.
func (v Verdict) String() string {
	switch v {
	case Reject:
		return "reject"
	case Drop:
		return "drop"
	}
	return fmt.Sprintf("verdict %d", uint8(v))
}

// String is like "TCP 10.0.0.1:80".
func (k FrontendKey) String() string {
	return k.Protocol.String() + " " + netip.AddrPortFrom(k.Addr, k.Port).String()
}
