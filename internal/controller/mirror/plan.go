package mirror

import (
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/endpointd/endpointd/internal/controller/sliceset"
)

// Values of the label endpointslice.kubernetes.io/managed-by.
const (
	manager          = "endpointslicemirroring-controller.k8s.io" // us
	endpointsManager = "endpointslice-controller.k8s.io"          // package endpoints
)

// endpointsManagedBy is the label by which the endpoints controller knows its
// Endpoints. It says nothing about slices.
const endpointsManagedBy = "endpoints.kubernetes.io/managed-by"

// maxEndpointsPerSlice is what the API accepts (discovery/v1 EndpointSlice).
const maxEndpointsPerSlice = 1000

// course is what is to be done about a Service's mirrored slices.
type course int

const (
	follow course = iota // they say what the Endpoints say
	leave                // they stay as they are, until the endpoints controller has made its own
	remove               // they go
)

// decide is the rule of the package comment. takenOver says whether the endpoints
// controller has made slices for the Service; it is asked only where it matters.
func decide(svc *corev1.Service, ep *corev1.Endpoints, takenOver func() bool) course {
	switch {
	case svc == nil || svc.Spec.Type == corev1.ServiceTypeExternalName:
		return remove
	case ep == nil || ep.DeletionTimestamp != nil || optedOut(ep):
		return remove
	case svc.Spec.Selector == nil:
		return follow
	case takenOver():
		return remove
	}
	return leave
}

// optedOut says that the Endpoints are not meant for consumers of slices.
func optedOut(ep *corev1.Endpoints) bool {
	_, lock := ep.Annotations[resourcelock.LeaderElectionRecordAnnotationKey]
	return lock || ep.Labels[discovery.LabelSkipMirror] == "true"
}

func managedBy(slice *discovery.EndpointSlice) string {
	if slice == nil {
		return ""
	}
	return slice.Labels[discovery.LabelManagedBy]
}

// isOurs says whether the slice is ours to write. One that only waits for its
// finalizers is not any more.
func isOurs(slice *discovery.EndpointSlice) bool {
	return managedBy(slice) == manager && slice.Labels[discovery.LabelServiceName] != "" && slice.DeletionTimestamp == nil
}

// serviceOf is the Service that a slice is labeled for.
func serviceOf(slice *discovery.EndpointSlice) (key types.NamespacedName) {
	if slice != nil {
		key = types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discovery.LabelServiceName]}
	}
	return key
}

// plan is what the slices of one Service should be.
type plan struct {
	meta    sliceset.Meta
	want    map[sliceset.Key]*sliceset.Want
	invalid []string // what is no IP address, each once
	skipped int      // addresses beyond the maximum
}

// planFor is pure: the same objects, the same plan.
func planFor(svc *corev1.Service, ep *corev1.Endpoints, most int) plan {
	p := plan{
		meta: sliceset.Meta{
			Namespace:    ep.Namespace,
			GenerateName: ep.Name + "-",
			Labels:       labelsFor(svc, ep),
			Annotations:  annotationsFor(ep),
			Owner:        *metav1.NewControllerRef(ep, corev1.SchemeGroupVersion.WithKind("Endpoints")),
			Families:     []discovery.AddressType{discovery.AddressTypeIPv4, discovery.AddressTypeIPv6},
			MaxEndpoints: min(most, maxEndpointsPerSlice),
		},
		want: map[sliceset.Key]*sliceset.Want{},
	}
	var groups []group
	groups, p.invalid = repack(ep.Subsets)
	for _, g := range groups {
		if n := len(g.members) - most; n > 0 {
			g.members = g.members[:most]
			p.skipped += n
		}
		for _, ports := range portSets(g.ports) {
			for _, m := range g.members {
				e := m.endpoint()
				p.want[sliceset.Key{Family: m.family(), Name: endpointName(e, ports.Key())}] = &sliceset.Want{Ports: ports, Endpoint: e}
			}
		}
	}
	return p
}

// portSets gives the ports as slices can hold them: no two of one name in the
// same slice (discovery/v1 EndpointPort). The Endpoints may well have those: two
// processes on one machine.
func portSets(ports []corev1.EndpointPort) []*sliceset.PortSet {
	lists := [][]discovery.EndpointPort{{}}
	seen := map[string]int{} // name → how often
	for _, p := range ports {
		n := seen[p.Name]
		seen[p.Name]++
		if n == len(lists) {
			lists = append(lists, nil)
		}
		port := discovery.EndpointPort{Name: new(p.Name), Protocol: new(p.Protocol), Port: new(p.Port)}
		if p.AppProtocol != nil {
			port.AppProtocol = new(*p.AppProtocol)
		}
		lists[n] = append(lists[n], port)
	}
	sets := make([]*sliceset.PortSet, len(lists))
	for i, list := range lists {
		sets[i] = sliceset.NewPortSet(list)
	}
	return sets
}

// endpointName names an endpoint within the slices of one Service and family:
// by address, by target because several may share the address, and by ports
// because the same address may be in slices with others. It is "" for an
// endpoint that cannot come from here.
func endpointName(e *discovery.Endpoint, ports string) string {
	if len(e.Addresses) != 1 {
		return ""
	}
	name := e.Addresses[0] + "\x00"
	if t := e.TargetRef; t != nil {
		name += t.Namespace + "/" + t.Name + "/" + string(t.UID)
	}
	return name + "\x00" + ports
}
