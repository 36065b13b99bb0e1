package apiserver

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// Issuer is the issuer and default audience of ServiceAccount tokens, the usual one of Kubernetes.
const Issuer = "https://kubernetes.default.svc"

// Options is everything a Server needs. Zero values are refused unless a field says what they mean.
type Options struct {
	// Listener is bound by the caller to loopback, to one address, or to all of them. Run closes it.
	Listener net.Listener
	// ExternalHost is the host name or address told to clients in discovery; empty = the advertised address,
	// else the listener's.
	ExternalHost string
	// Advertise is the address in the endpoints of the Service default/kubernetes. Zero = derived from Listener:
	// its own address, or the one of the default route's interface when it listens on all. With a loopback
	// listener and no address here, the Service has no endpoints: the API forbids loopback in Endpoints.
	Advertise netip.Addr

	Etcd  EtcdOptions
	Certs Certs

	// ServiceCIDRs are the ranges of cluster IPs: one, or one of each family; the first is primary.
	ServiceCIDRs []netip.Prefix
	// NodePorts is the range of Service node ports; zero = 30000-32767.
	NodePorts utilnet.PortRange

	// Logger gets what the upstream libraries warn about, too. nil = discard.
	Logger *slog.Logger
}

// EtcdOptions says where the state is kept.
type EtcdOptions struct {
	Servers  []string // unix:///… or http(s)://…
	CAFile   string   // verifies the servers; empty without TLS
	CertFile string   // client certificate; empty = none
	KeyFile  string
	Prefix   string // of all keys; empty = /registry
}

// Certs are paths of PEM files. Rotation on disk of the first three is picked up while running.
type Certs struct {
	CAFile                string // verifies client certificates, and the certificates of nodes
	ServerCertFile        string
	ServerKeyFile         string
	ServiceAccountKeyFile string // private key: signs tokens, its public half verifies them
	// NodeClientCertFile and NodeClientKeyFile identify this server to nodes (logs, exec, port-forward); empty = none.
	NodeClientCertFile string
	NodeClientKeyFile  string
}

// withDefaults checks o and fills what may be left out.
func (o Options) withDefaults() (Options, error) {
	var errs []error
	if o.Listener == nil {
		errs = append(errs, errors.New("no listener"))
	}
	if len(o.Etcd.Servers) == 0 {
		errs = append(errs, errors.New("no etcd servers"))
	}
	for _, f := range []struct{ what, path string }{
		{"CA certificate", o.Certs.CAFile}, {"server certificate", o.Certs.ServerCertFile},
		{"server key", o.Certs.ServerKeyFile}, {"service account key", o.Certs.ServiceAccountKeyFile},
	} {
		if f.path == "" {
			errs = append(errs, fmt.Errorf("no %s file", f.what))
		}
	}
	errs = append(errs, checkCIDRs(o.ServiceCIDRs))
	if o.Advertise.IsValid() {
		errs = append(errs, checkAdvertise(o.Advertise))
	}
	if o.NodePorts == (utilnet.PortRange{}) {
		o.NodePorts = utilnet.PortRange{Base: 30000, Size: 2768}
	}
	if o.Etcd.Prefix == "" {
		o.Etcd.Prefix = "/registry"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := errors.Join(errs...); err != nil {
		return o, fmt.Errorf("api server options: %w", err)
	}
	return o, nil
}

// maxServiceBits is the most host bits a service range may have, as for the upstream flag (KEP-1880).
const maxServiceBits = 64

func checkCIDRs(cidrs []netip.Prefix) error {
	if len(cidrs) < 1 || len(cidrs) > 2 {
		return fmt.Errorf("service CIDRs: want one, or one of each address family, got %d", len(cidrs))
	}
	for _, c := range cidrs {
		if !c.IsValid() || c != c.Masked() {
			return fmt.Errorf("service CIDR %s: not a network address; did you mean %s?", c, c.Masked())
		}
		hostBits := c.Addr().BitLen() - c.Bits()
		if hostBits < 3 {
			return fmt.Errorf("service CIDR %s: fewer than 8 addresses; choose a larger range", c)
		}
		if hostBits > maxServiceBits {
			return fmt.Errorf("service CIDR %s: too large; the prefix must be at least /%d", c, c.Addr().BitLen()-maxServiceBits)
		}
	}
	if len(cidrs) == 2 && cidrs[0].Addr().Is4() == cidrs[1].Addr().Is4() {
		return fmt.Errorf("service CIDRs %s and %s: of the same address family; dual stack wants one of each", cidrs[0], cidrs[1])
	}
	return nil
}

func checkAdvertise(a netip.Addr) error {
	if a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
		return fmt.Errorf("advertised address %s: Endpoints must not hold unspecified, loopback, link-local or multicast addresses; give one that clients reach", a)
	}
	return nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
