package model

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	// TTLAnnotation on a Service is the time to live of its DNS records in seconds.
	TTLAnnotation = "endpointd.io/dns-ttl"
	// proxyNameLabel says that another proxy than the cluster's forwards for the Service (k8s.io/kubernetes/pkg/proxy/apis).
	proxyNameLabel = "service.kubernetes.io/service-proxy-name"
	// noProxyName stands for that label without a value, which counts too.
	noProxyName = "(unnamed)"
	// maxAffinity and defaultAffinity are those of core/v1 ClientIPConfig.
	maxAffinity     = 86400 * time.Second
	defaultAffinity = 10800 * time.Second
)

// A service is what is kept of a Service object: all that does not depend on anything else is resolved here, once.
type service struct {
	id      string // key of Input.services
	created int64  // seconds since 1970; it decides who has a frontend that two want
	// said is what Snapshots say of it, but for frontends and endpoints. It's not modified.
	said          Service
	ports         []servicePort // like said.Ports
	wants         []want        // frontends that do not depend on the node, each key once
	families      [2]bool       // it has a ClusterIP: IPv4, IPv6
	ranges        [2][]netip.Prefix
	internalLocal bool // internalTrafficPolicy
	externalLocal bool // externalTrafficPolicy, if it has a meaning
	affinity      time.Duration
}

type servicePort struct {
	name     string
	protocol Protocol
	number   uint16
	nodePort uint16
}

// A want is a frontend that a Service has unless another has it.
type want struct {
	FrontendKey
	kind FrontendKind
	port int // of service.ports
}

// keyOf is a key of persistent maps, in the order of ServiceKeys. No name in the API is empty or has a zero byte: such an object is none.
func keyOf(namespace, name string) (string, bool) {
	ok := namespace != "" && name != "" && !strings.Contains(namespace, "\x00") && !strings.Contains(name, "\x00")
	return namespace + "\x00" + name, ok
}

// newService reads a Service; nothing of the object is kept but strings.
func newService(id string, from *corev1.Service) *service {
	s := &service{id: id, created: from.CreationTimestamp.Unix()}
	s.said = Service{Key: ServiceKey{from.Namespace, from.Name}, UID: string(from.UID), PublishNotReady: from.Spec.PublishNotReadyAddresses}
	if proxy, ok := from.Labels[proxyNameLabel]; ok {
		s.said.OtherProxy = cmp.Or(proxy, noProxyName)
	}
	s.readTTL(from.Annotations)
	s.readPorts(from.Spec.Ports)
	switch {
	case from.Spec.Type == corev1.ServiceTypeExternalName:
		s.said.Kind = ExternalName
		s.readExternalName(from.Spec.ExternalName)
	case from.Spec.ClusterIP == corev1.ClusterIPNone, len(from.Spec.ClusterIPs) > 0 && from.Spec.ClusterIPs[0] == corev1.ClusterIPNone:
		s.said.Kind = Headless
	default:
		s.readClusterIPs(&from.Spec)
		s.readPolicies(from)
		s.readRanges(from)
		s.readWants(from)
	}
	slices.SortFunc(s.said.Problems, compareProblems)
	return s
}

func (s *service) problem(reason Reason, format string, args ...any) {
	s.said.Problems = append(s.said.Problems, Problem{Kind: "Service", Object: s.said.Key, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

// forwards says whether a data plane of ours has anything to do for it.
func (s *service) forwards() bool { return s.said.Kind == ClusterIP && s.said.OtherProxy == "" }

func (s *service) readTTL(annotations map[string]string) {
	s.said.TTL = -1
	text, ok := annotations[TTLAnnotation]
	if !ok {
		return
	}
	// RFC 2181 §8: the range of a TTL.
	seconds, err := strconv.ParseUint(strings.TrimSpace(text), 10, 31)
	if err != nil {
		s.problem(BadValue, "the annotation %s is %q; use seconds from 0 to %d", TTLAnnotation, text, math.MaxInt32)
		return
	}
	s.said.TTL = time.Duration(seconds) * time.Second
}

func (s *service) readExternalName(name string) {
	s.said.ExternalName = strings.TrimSuffix(name, ".")
	if faults := validation.IsDNS1123Subdomain(strings.ToLower(s.said.ExternalName)); len(faults) > 0 {
		s.said.ExternalName = ""
		s.problem(BadValue, "spec.externalName is %q; use a host name such as db.example.com", name)
	}
}

// readPorts keeps the first of the ports that contradict each other, in the order of the object.
func (s *service) readPorts(from []corev1.ServicePort) {
	type name struct {
		name     string
		protocol Protocol
	}
	type number struct {
		number   uint16
		protocol Protocol
	}
	names, numbers := map[name]bool{}, map[number]bool{}
	type both struct {
		port servicePort
		said *Port
	}
	var ports []both
	for i := range from {
		port, ok := s.readPort(&from[i])
		if !ok {
			continue
		}
		if names[name{port.name, port.protocol}] || numbers[number{port.number, port.protocol}] {
			s.problem(Duplicate, "port %q: an earlier port has its name or number %d; give each port its own", port.name, port.number)
			continue
		}
		names[name{port.name, port.protocol}], numbers[number{port.number, port.protocol}] = true, true
		said := &Port{Name: port.name, Protocol: port.protocol, Number: port.number}
		if from[i].AppProtocol != nil {
			said.AppProtocol = *from[i].AppProtocol
		}
		ports = append(ports, both{port, said})
	}
	slices.SortFunc(ports, func(a, b both) int {
		return cmp.Or(strings.Compare(a.port.name, b.port.name), cmp.Compare(a.port.protocol, b.port.protocol))
	})
	for _, p := range ports {
		s.ports, s.said.Ports = append(s.ports, p.port), append(s.said.Ports, p.said)
	}
}

func (s *service) readPort(from *corev1.ServicePort) (servicePort, bool) {
	protocol, known := readProtocol(from.Protocol)
	switch {
	case strings.Contains(from.Name, "\x00"):
		s.problem(BadValue, "port %q: this is no name; use letters, digits and '-'", from.Name)
		return servicePort{}, false
	case !known:
		s.problem(BadProtocol, "port %q has the protocol %q; use TCP, UDP or SCTP", from.Name, from.Protocol)
		return servicePort{}, false
	case from.Port < 1 || from.Port > 65535:
		s.problem(BadPort, "port %q has the number %d; use one from 1 to 65535", from.Name, from.Port)
		return servicePort{}, false
	}
	port := servicePort{name: from.Name, protocol: protocol, number: uint16(from.Port)}
	if from.NodePort < 0 || from.NodePort > 65535 {
		s.problem(BadPort, "port %q has the nodePort %d; use one from 1 to 65535", from.Name, from.NodePort)
	} else {
		port.nodePort = uint16(from.NodePort)
	}
	return port, true
}

func readProtocol(name corev1.Protocol) (Protocol, bool) {
	switch name {
	case corev1.ProtocolTCP, "":
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	}
	return 0, false
}

// readClusterIPs takes an address for what it is, whatever ipFamilies say of it: the allocator writes both.
func (s *service) readClusterIPs(spec *corev1.ServiceSpec) {
	texts := spec.ClusterIPs
	if len(texts) == 0 && spec.ClusterIP != "" {
		texts = []string{spec.ClusterIP}
	}
	for _, text := range texts {
		addr, err := parseAddr(text)
		if err == nil {
			err = usable(addr)
		}
		switch {
		case err != nil:
			s.problem(BadAddress, "the ClusterIP cannot be used: %v; delete the Service and create it again", err)
		case s.families[family(addr)]:
			s.problem(Duplicate, "the ClusterIP %s is the second of its family; one of each family is used", addr)
		default:
			s.families[family(addr)] = true
			s.said.ClusterIPs = append(s.said.ClusterIPs, addr)
		}
	}
}

// family is an index: 0 for IPv4, 1 for IPv6.
func family(addr netip.Addr) int {
	if addr.Is6() {
		return 1
	}
	return 0
}

func (s *service) readPolicies(from *corev1.Service) {
	spec := &from.Spec
	if policy := spec.InternalTrafficPolicy; policy != nil {
		s.internalLocal = *policy == corev1.ServiceInternalTrafficPolicyLocal
		if !s.internalLocal && *policy != corev1.ServiceInternalTrafficPolicyCluster {
			s.problem(BadValue, "spec.internalTrafficPolicy is %q; use Cluster or Local", *policy)
		}
	}
	// The policy of what nobody outside can reach means nothing (k8s.io/kubernetes/pkg/api/v1/service ExternallyAccessible).
	reachable := spec.Type == corev1.ServiceTypeLoadBalancer || spec.Type == corev1.ServiceTypeNodePort || len(spec.ExternalIPs) > 0
	switch spec.ExternalTrafficPolicy {
	case corev1.ServiceExternalTrafficPolicyLocal:
		s.externalLocal = reachable
	case corev1.ServiceExternalTrafficPolicyCluster, "":
	default:
		s.problem(BadValue, "spec.externalTrafficPolicy is %q; use Cluster or Local", spec.ExternalTrafficPolicy)
	}
	if s.externalLocal && spec.Type == corev1.ServiceTypeLoadBalancer {
		if port := spec.HealthCheckNodePort; port < 1 || port > 65535 {
			s.problem(BadPort, "spec.healthCheckNodePort is %d, so load balancers cannot ask which nodes have endpoints; use one from 1 to 65535", port)
		} else {
			s.said.HealthCheckNodePort = uint16(port)
		}
	}
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityClientIP:
		s.affinity = s.readAffinity(spec.SessionAffinityConfig)
	case corev1.ServiceAffinityNone, "":
	default:
		s.problem(BadValue, "spec.sessionAffinity is %q; use None or ClientIP", spec.SessionAffinity)
	}
}

func (s *service) readAffinity(config *corev1.SessionAffinityConfig) time.Duration {
	if config == nil || config.ClientIP == nil || config.ClientIP.TimeoutSeconds == nil {
		return defaultAffinity
	}
	timeout := time.Duration(*config.ClientIP.TimeoutSeconds) * time.Second
	if timeout <= 0 || timeout > maxAffinity {
		s.problem(BadValue, "the timeout of the session affinity is %v, which counts as the default %v; use 1 to 86400 seconds", timeout, defaultAffinity)
		return defaultAffinity
	}
	return timeout
}

func (s *service) readRanges(from *corev1.Service) {
	field, texts := "spec.loadBalancerSourceRanges", from.Spec.LoadBalancerSourceRanges
	if len(texts) == 0 {
		field, texts = "the annotation "+corev1.AnnotationLoadBalancerSourceRangesKey, nil
		if text := from.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]; text != "" {
			texts = strings.Split(text, ",")
		}
	}
	var err error
	if s.ranges[0], s.ranges[1], err = parseRanges(texts); err != nil {
		s.problem(BadValue, "%s: %s; a family of which no range can be read is closed to everybody", field, strings.ReplaceAll(err.Error(), "\n", ", "))
	}
}

// readWants puts the more particular kinds first: of an address that is a load balancer's and an external one, the source ranges count.
func (s *service) readWants(from *corev1.Service) {
	if s.said.OtherProxy != "" {
		return
	}
	var seen map[FrontendKey]int
	add := func(kind FrontendKind, addr netip.Addr) {
		for i, port := range s.ports {
			key := FrontendKey{Addr: addr, Protocol: port.protocol, Port: port.number}
			if _, ok := seen[key]; ok {
				continue // of the same port: numbers are unique
			}
			if seen == nil {
				seen = map[FrontendKey]int{}
			}
			seen[key] = i
			s.wants = append(s.wants, want{FrontendKey: key, kind: kind, port: i})
		}
	}
	for _, addr := range s.said.ClusterIPs {
		add(FrontendClusterIP, addr)
	}
	for _, ingress := range from.Status.LoadBalancer.Ingress {
		if ingress.IP == "" || ingress.IPMode != nil && *ingress.IPMode != corev1.LoadBalancerIPModeVIP {
			continue // KEP-1860: the balancer itself passes connections on
		}
		if addr, ok := s.readOuter("status.loadBalancer.ingress", ingress.IP); ok {
			add(FrontendLoadBalancerIP, addr)
		}
	}
	for _, text := range from.Spec.ExternalIPs {
		if strings.TrimSpace(text) == "" {
			continue
		}
		if addr, ok := s.readOuter("spec.externalIPs", text); ok {
			add(FrontendExternalIP, addr)
		}
	}
}

// readOuter reads an address other than a ClusterIP. It's of use only if the Service has that family: endpoints are of the same.
func (s *service) readOuter(field, text string) (netip.Addr, bool) {
	addr, err := parseAddr(text)
	if err == nil {
		err = usable(addr)
	}
	switch {
	case err != nil:
		s.problem(BadAddress, "%s: %v", field, err)
	case !s.families[family(addr)]:
		s.problem(FamilyUnused, "%s: the Service has no ClusterIP of the family of %s; add the family to spec.ipFamilies", field, addr)
	default:
		return addr, true
	}
	return addr, false
}

// nodePorts are the frontends that it wants on this node's own addresses.
func (s *service) nodePorts(network *Network) []want {
	if !s.forwards() {
		return nil
	}
	var wants []want
	for i, port := range s.ports {
		if port.nodePort == 0 {
			continue
		}
		for _, addr := range network.NodePortAddrs {
			key := FrontendKey{Addr: addr, Protocol: port.protocol, Port: port.nodePort}
			taken := func(w want) bool { return w.FrontendKey == key }
			if !s.families[family(addr)] || slices.ContainsFunc(s.wants, taken) || slices.ContainsFunc(wants, taken) {
				continue
			}
			wants = append(wants, want{FrontendKey: key, kind: FrontendNodePort, port: i})
		}
	}
	return wants
}

// equal says whether two are worth the same.
func (s *service) equal(other *service) bool {
	return s.id == other.id && s.created == other.created && equalServices(&s.said, &other.said) &&
		slices.Equal(s.ports, other.ports) && slices.Equal(s.wants, other.wants) && s.families == other.families &&
		slices.Equal(s.ranges[0], other.ranges[0]) && slices.Equal(s.ranges[1], other.ranges[1]) &&
		s.internalLocal == other.internalLocal && s.externalLocal == other.externalLocal && s.affinity == other.affinity
}
