package endpoints

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	netutils "k8s.io/utils/net"

	"github.com/endpointd/endpointd/internal/controller/sliceset"
)

// source is what a Service says about how its endpoints are made from pods.
// Derived from the Service once, then used for each of its pods.
type source struct {
	svc      *corev1.Service
	families []discovery.AddressType // as in spec.ipFamilies, the first is primary
	hints    hintMode
	fixed    *sliceset.PortSet // the ports of every pod, or nil where a target port is a name
}

// hintMode is who writes hints on the endpoints of a Service, and how.
type hintMode int

const (
	noHints    hintMode = iota
	sameZone            // spec.trafficDistribution PreferSameZone or PreferClose
	sameNode            // spec.trafficDistribution PreferSameNode (KEP-3015)
	zonesByCPU          // annotation service.kubernetes.io/topology-mode: Auto (KEP-2433)
)

func newSource(svc *corev1.Service) *source {
	s := &source{svc: svc, families: familiesOf(svc), hints: hintModeOf(svc)}
	for _, p := range svc.Spec.Ports {
		if p.TargetPort.Type == intstr.String {
			return s
		}
	}
	s.fixed = s.resolve(nil)
	return s
}

// derived is everything that one pod contributes to one Service.
type derived struct {
	want    map[discovery.AddressType]*sliceset.Want // for slices, by family
	address *corev1.EndpointAddress                  // for Endpoints; nil if the pod is not in it
	ready   bool                                     // of address
	ports   *sliceset.PortSet
	trigger time.Time // of the change that made it so; zero if unknown
}

// derive gives what the pod contributes; node is nil if it does not exist.
// Rules: spec §3.2 "conditions", "publishNotReadyAddresses", "slice shape".
func (s *source) derive(pod *corev1.Pod, node *corev1.Node) derived {
	d := derived{}
	ready := condition(pod.Status.Conditions, corev1.PodReady)
	if ready != nil {
		d.trigger = ready.LastTransitionTime.Time
	}
	if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded || len(pod.Status.PodIPs) == 0 {
		return d
	}
	publish := s.svc.Spec.PublishNotReadyAddresses
	serving := ready != nil && ready.Status == corev1.ConditionTrue
	terminating := pod.DeletionTimestamp != nil
	d.ports = s.fixed
	if d.ports == nil {
		d.ports = s.resolve(pod)
	}

	// The Endpoints object has no word for terminating: such pods are left out.
	// A pod none of whose ports can be found is in a slice without ports, but
	// in no subset, since a subset without ports would mean a headless Service.
	if (publish || !terminating) && (len(d.ports.Ports()) > 0 || len(s.svc.Spec.Ports) == 0) {
		if ip := addressOf(pod, s.families[0]); ip != "" {
			d.address, d.ready = s.endpointAddress(pod, ip), publish || serving
		}
	}

	// A pod on a node that does not exist would keep a name for an address that
	// somebody else may get; it is left out until the node is there, unless the
	// Service asks for addresses come what may.
	if node == nil && !publish {
		return d
	}
	for _, family := range s.families {
		ip := addressOf(pod, family)
		if ip == "" {
			continue
		}
		ep := &discovery.Endpoint{
			Addresses: []string{ip},
			Conditions: discovery.EndpointConditions{
				Ready: new(publish || serving && !terminating), Serving: new(serving), Terminating: new(terminating)},
			TargetRef: podRef(pod),
		}
		if pod.Spec.NodeName != "" {
			ep.NodeName = &pod.Spec.NodeName
		}
		if node != nil && node.Labels[corev1.LabelTopologyZone] != "" {
			ep.Zone = new(node.Labels[corev1.LabelTopologyZone])
		}
		if s.named(pod) {
			ep.Hostname = &pod.Spec.Hostname
		}
		ep.Hints = s.hintsFor(ep)
		if d.want == nil {
			d.want = map[discovery.AddressType]*sliceset.Want{}
		}
		d.want[family] = &sliceset.Want{Ports: d.ports, Endpoint: ep}
	}
	return d
}

// hintsFor gives the hints that follow from the endpoint alone. Auto is
// decided over all endpoints of the Service, see allocate.
func (s *source) hintsFor(ep *discovery.Endpoint) *discovery.EndpointHints {
	if !*ep.Conditions.Ready || s.hints == noHints || s.hints == zonesByCPU {
		return nil
	}
	var h discovery.EndpointHints
	if ep.Zone != nil {
		h.ForZones = []discovery.ForZone{{Name: *ep.Zone}}
	}
	if s.hints == sameNode && ep.NodeName != nil {
		h.ForNodes = []discovery.ForNode{{Name: *ep.NodeName}}
	}
	if h.ForZones == nil && h.ForNodes == nil {
		return nil
	}
	return &h
}

// named says whether the pod has a name of its own under the Service's (DNS
// specification 1.1.0, §2.4).
func (s *source) named(pod *corev1.Pod) bool {
	return pod.Spec.Hostname != "" && pod.Spec.Subdomain == s.svc.Name
}

func (s *source) endpointAddress(pod *corev1.Pod, ip string) *corev1.EndpointAddress {
	a := &corev1.EndpointAddress{IP: ip, TargetRef: podRef(pod)}
	if pod.Spec.NodeName != "" {
		a.NodeName = &pod.Spec.NodeName
	}
	if s.named(pod) {
		a.Hostname = pod.Spec.Hostname
	}
	return a
}

// resolve gives the target ports of the Service at the pod, which may be nil if
// none of them is a name. Ports that the pod does not have are left out.
func (s *source) resolve(pod *corev1.Pod) *sliceset.PortSet {
	ports := make([]discovery.EndpointPort, 0, len(s.svc.Spec.Ports))
	for i := range s.svc.Spec.Ports {
		p := &s.svc.Spec.Ports[i]
		number := p.TargetPort.IntVal
		if p.TargetPort.Type == intstr.String {
			if number = namedPort(pod, p.TargetPort.StrVal, p.Protocol); number == 0 {
				continue
			}
		}
		ports = append(ports, discovery.EndpointPort{Name: &p.Name, Port: &number, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
	}
	return sliceset.NewPortSet(ports)
}

// namedPort looks the name up in the pod's containers, then in its sidecars
// (init containers that keep running, KEP-753); 0 if it is not there.
func namedPort(pod *corev1.Pod, name string, protocol corev1.Protocol) int32 {
	in := func(c *corev1.Container) int32 {
		for _, p := range c.Ports {
			if p.Name == name && p.Protocol == protocol {
				return p.ContainerPort
			}
		}
		return 0
	}
	for i := range pod.Spec.Containers {
		if n := in(&pod.Spec.Containers[i]); n != 0 {
			return n
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		if n := in(c); n != 0 {
			return n
		}
	}
	return 0
}

// addressOf gives the pod's first address of the family in canonical form, or "".
func addressOf(pod *corev1.Pod, family discovery.AddressType) string {
	for _, p := range pod.Status.PodIPs {
		a, err := netip.ParseAddr(p.IP)
		if err != nil {
			// Objects older than Kubernetes 1.34 may hold forms such as 010.0.0.1.
			if a, _ = netip.AddrFromSlice(netutils.ParseIPSloppy(p.IP)); !a.IsValid() {
				continue
			}
		}
		a = a.Unmap()
		if a.Is4() == (family == discovery.AddressTypeIPv4) {
			return a.String()
		}
	}
	return ""
}

// familiesOf never gives none: a Service that no API server has defaulted yet
// (seen only on clusters older than dual stack) is taken for what its address
// says, else for IPv4.
func familiesOf(svc *corev1.Service) []discovery.AddressType {
	out := make([]discovery.AddressType, 0, 2)
	for _, f := range svc.Spec.IPFamilies {
		out = append(out, discovery.AddressType(f))
	}
	if len(out) > 0 {
		return out
	}
	if a, err := netip.ParseAddr(svc.Spec.ClusterIP); err == nil && a.Is6() {
		return append(out, discovery.AddressTypeIPv6)
	}
	return append(out, discovery.AddressTypeIPv4)
}

func hintModeOf(svc *corev1.Service) hintMode {
	// The older name of the annotation wins where both are set (KEP-2433).
	auto, ok := svc.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]
	if !ok {
		auto = svc.Annotations[corev1.AnnotationTopologyMode]
	}
	if auto == "Auto" || auto == "auto" {
		return zonesByCPU
	}
	if svc.Spec.TrafficDistribution == nil {
		return noHints
	}
	switch *svc.Spec.TrafficDistribution {
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
		return sameZone
	case corev1.ServiceTrafficDistributionPreferSameNode:
		return sameNode
	default:
		return noHints
	}
}

// matters says whether the difference between two versions of a pod can change
// any endpoint. Labels, which decide to which Services it belongs, count too.
func matters(a, b *corev1.Pod) bool {
	ra, rb := condition(a.Status.Conditions, corev1.PodReady), condition(b.Status.Conditions, corev1.PodReady)
	if a.UID != b.UID || a.Status.Phase != b.Status.Phase || a.Spec.NodeName != b.Spec.NodeName ||
		(a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) || (ra == nil) != (rb == nil) ||
		len(a.Status.PodIPs) != len(b.Status.PodIPs) || len(a.Labels) != len(b.Labels) {
		return true
	}
	if ra != nil && ra.Status != rb.Status {
		return true
	}
	for i := range a.Status.PodIPs {
		if a.Status.PodIPs[i] != b.Status.PodIPs[i] {
			return true
		}
	}
	for k, v := range a.Labels {
		if w, ok := b.Labels[k]; !ok || w != v {
			return true
		}
	}
	return a.Spec.Hostname != b.Spec.Hostname || a.Spec.Subdomain != b.Spec.Subdomain
}

func condition(conditions []corev1.PodCondition, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range conditions {
		if conditions[i].Type == t {
			return &conditions[i]
		}
	}
	return nil
}

func podRef(pod *corev1.Pod) *corev1.ObjectReference {
	return &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
}
