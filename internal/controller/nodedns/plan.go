package nodedns

import (
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/endpointd/endpointd/internal/controller/sliceset"
)

// Annotation of a Node whose agent answers DNS questions: the port at which it does, on all of the node's InternalIPs, by UDP and TCP.
const Annotation = "endpointd.io/dns-port"

// serviceName is what Kubernetes calls the Service of its DNS server, whatever program it is (kubeadm, "kube-dns").
const serviceName = "kube-dns"

// manager is our value of the label endpointslice.kubernetes.io/managed-by.
const manager = "dns.endpointd.io"

// dnsPort is the Service's.
const dnsPort = 53

// service is the Service as it is made.
func service(addrs []netip.Addr) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceSystem, Name: serviceName,
			Labels:      map[string]string{"k8s-app": serviceName, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "endpointd"},
			Annotations: map[string]string{"kubernetes.io/description": "The DNS servers of the nodes: each node's pods ask their own."},
		},
		Spec: corev1.ServiceSpec{
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: dnsPort, TargetPort: intstr.FromInt32(dnsPort)},
				{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: dnsPort, TargetPort: intstr.FromInt32(dnsPort)},
			},
		},
	}
	for _, a := range addrs {
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, a.String())
		family := corev1.IPv4Protocol
		if a.Is6() {
			family = corev1.IPv6Protocol
		}
		svc.Spec.IPFamilies = append(svc.Spec.IPFamilies, family)
	}
	if len(addrs) > 0 {
		svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
	}
	if len(addrs) > 1 {
		svc.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
	}
	return svc
}

// server is what matters of a Node here; comparable.
type server struct {
	port   int32 // 0 = it has none
	ready  bool
	zone   string
	v4, v6 string // address of that family, "" = none
}

// serverOf is zero for a Node whose agent has no DNS server, and for nil.
func serverOf(n *corev1.Node) server {
	if n == nil {
		return server{}
	}
	port, err := strconv.ParseUint(n.Annotations[Annotation], 10, 16)
	if err != nil || port == 0 {
		return server{}
	}
	s := server{port: int32(port), zone: n.Labels[corev1.LabelTopologyZone]}
	for _, c := range n.Status.Conditions {
		s.ready = s.ready || c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	}
	for _, a := range n.Status.Addresses {
		ip, err := netip.ParseAddr(a.Address)
		switch {
		case a.Type != corev1.NodeInternalIP || err != nil:
		case ip.Unmap().Is4() && s.v4 == "":
			s.v4 = ip.Unmap().String()
		case ip.Unmap().Is6() && s.v6 == "":
			s.v6 = ip.String()
		}
	}
	return s
}

// plan is pure: the slices that should be for this Service and these Nodes.
func plan(svc *corev1.Service, nodes []*corev1.Node) (sliceset.Meta, map[sliceset.Key]*sliceset.Want) {
	meta := sliceset.Meta{
		Namespace: svc.Namespace, GenerateName: svc.Name + "-", Owner: sliceset.ServiceOwner(svc),
		Labels: map[string]string{discovery.LabelServiceName: svc.Name, discovery.LabelManagedBy: manager},
	}
	want := map[sliceset.Key]*sliceset.Want{}
	if svc.Spec.Selector != nil || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.DeletionTimestamp != nil {
		return meta, want
	}
	for _, f := range svc.Spec.IPFamilies {
		meta.Families = append(meta.Families, discovery.AddressType(f))
	}
	ports := map[int32]*sliceset.PortSet{}
	for _, n := range nodes {
		s := serverOf(n)
		if s.port == 0 {
			continue
		}
		if ports[s.port] == nil {
			ports[s.port] = portSet(s.port)
		}
		for family, addr := range map[discovery.AddressType]string{discovery.AddressTypeIPv4: s.v4, discovery.AddressTypeIPv6: s.v6} {
			if addr != "" {
				want[sliceset.Key{Family: family, Name: n.Name}] = &sliceset.Want{Ports: ports[s.port], Endpoint: endpoint(n.Name, addr, &s)}
			}
		}
	}
	return meta, want
}

func portSet(port int32) *sliceset.PortSet {
	return sliceset.NewPortSet([]discovery.EndpointPort{
		{Name: new("dns"), Protocol: new(corev1.ProtocolUDP), Port: &port},
		{Name: new("dns-tcp"), Protocol: new(corev1.ProtocolTCP), Port: &port},
	})
}

func endpoint(node, addr string, s *server) *discovery.Endpoint {
	e := &discovery.Endpoint{
		Addresses:  []string{addr},
		Conditions: discovery.EndpointConditions{Ready: new(s.ready), Serving: new(s.ready), Terminating: new(false)},
		NodeName:   &node,
		TargetRef:  &corev1.ObjectReference{Kind: "Node", Name: node},
		Hints:      &discovery.EndpointHints{ForNodes: []discovery.ForNode{{Name: node}}},
	}
	if s.zone != "" {
		e.Zone = &s.zone
	}
	return e
}

// nodeOf is the node that an endpoint is about.
func nodeOf(e *discovery.Endpoint) string {
	if e.NodeName == nil {
		return ""
	}
	return *e.NodeName
}

// isOurs says whether a slice is ours to write. One that only waits for its finalizers is not any more.
func isOurs(s *discovery.EndpointSlice) bool {
	return s != nil && s.Namespace == metav1.NamespaceSystem && s.Labels[discovery.LabelManagedBy] == manager &&
		s.Labels[discovery.LabelServiceName] == serviceName && s.DeletionTimestamp == nil
}
