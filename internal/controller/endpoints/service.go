package endpoints

import (
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/endpointd/endpointd/internal/controller/sliceset"
)

// sliceManager is the value of the managed-by label of the slices that this
// controller owns: the one of Kubernetes' own controller, so that either takes
// over from the other without a write.
const sliceManager = "endpointslice-controller.k8s.io"

// mirrorManager marks the slices that are copies of hand-written Endpoints.
const mirrorManager = "endpointslicemirroring-controller.k8s.io"

// families are all that an EndpointSlice of a Service can have.
var families = [...]discovery.AddressType{discovery.AddressTypeIPv4, discovery.AddressTypeIPv6}

// service is what the controller knows and wants of one Service. It belongs to
// the worker that holds the Service's key.
type service struct {
	key      types.NamespacedName
	src      *source              // nil unless the rule is serve
	set      *sliceset.Set        // our slices
	obj      *object              // the Endpoints object of the Service's name
	pods     map[string]time.Time // pods taken in → their trigger time
	mirrored map[string]struct{}  // slices of the mirroring controller that exist
	hints    map[discovery.AddressType]*autoHints
	known    bool // served before
	deleted  bool // its deletion was seen and is not done with
	trigger  triggers
	pace     pace
	object   lag // of obj
	deferred int // how many times in a row obj has made way
}

// triggers are the times of the oldest change that is not written yet; zero if
// there is none.
type triggers struct{ slices, object time.Time }

// autoHints is the state of topology-mode Auto in one family.
type autoHints struct {
	zone    map[string]string // pod name → zone that its endpoint works for
	problem string            // why there are none; "" if there are
}

func newService(key types.NamespacedName) *service {
	return &service{
		key: key, obj: newObject(), pods: map[string]time.Time{}, mirrored: map[string]struct{}{},
		hints: map[discovery.AddressType]*autoHints{},
		set: sliceset.New(func(_ *discovery.EndpointSlice, ep *discovery.Endpoint) string {
			if ep.TargetRef == nil || ep.TargetRef.Kind != "Pod" || ep.TargetRef.Namespace != key.Namespace {
				return ""
			}
			return ep.TargetRef.Name
		}),
	}
}

// rule is what a Service gets from this controller. The transitions between
// rules are in the package documentation.
type rule int

const (
	serve    rule = iota // it has a selector: slices and Endpoints follow the pods
	handOver             // no selector: whoever writes Endpoints or slices owns them
	withdraw             // ExternalName: it has no endpoints
	retire               // it does not exist
)

func ruleOf(svc *corev1.Service) rule {
	switch {
	case svc == nil:
		return retire
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		return withdraw
	case len(svc.Spec.Selector) == 0:
		return handOver
	default:
		return serve
	}
}

// takePod brings in what the pod contributes now; a nil pod, or one that the
// Service does not select, contributes nothing.
func (s *service) takePod(name string, pod *corev1.Pod, node *corev1.Node) {
	var d derived
	if pod != nil && selects(s.src.svc.Spec.Selector, pod.Labels) {
		d = s.src.derive(pod, node)
		if d.trigger.After(s.pods[name]) {
			s.triggeredAt(d.trigger)
		}
		s.pods[name] = d.trigger
	} else {
		delete(s.pods, name)
	}
	for _, family := range families {
		s.set.Want(sliceset.Key{Family: family, Name: name}, d.want[family])
	}
	s.obj.set(name, d.address, d.ready, d.ports)
}

// dropPods takes out all pods.
func (s *service) dropPods() {
	for name := range s.pods {
		s.takePod(name, nil, nil)
	}
	s.src, s.trigger, s.pace, s.object, s.deferred = nil, triggers{}, pace{}, lag{}, 0
	clear(s.hints)
}

func (s *service) triggeredAt(t time.Time) {
	for _, oldest := range []*time.Time{&s.trigger.slices, &s.trigger.object} {
		if oldest.IsZero() || t.Before(*oldest) {
			*oldest = t
		}
	}
}

// hintEvent tells a user what became of topology-mode Auto.
type hintEvent struct {
	family  discovery.AddressType
	problem string // "" when hints are given from now on
	off     bool   // hints ended because nobody asks for them any more
}

// allocateHints distributes the ready endpoints over the zones, where the
// Service asks for it, and tells what changed in that.
func (s *service) allocateHints(shares zoneShares) []hintEvent {
	var events []hintEvent
	if s.src.hints != zonesByCPU {
		for family, h := range s.hints {
			if h.problem == "" {
				events = append(events, hintEvent{family: family, off: true})
			}
		}
		clear(s.hints)
		return events
	}
	for _, family := range s.src.families {
		before := s.hints[family]
		if before == nil {
			before = &autoHints{problem: "not decided yet"}
		}
		var ready []zoned
		for name := range s.pods {
			if w := s.set.Wanted(sliceset.Key{Family: family, Name: name}); w != nil && *w.Endpoint.Conditions.Ready {
				z := zoned{name: name, hint: before.zone[name]}
				if w.Endpoint.Zone != nil {
					z.zone = *w.Endpoint.Zone
				}
				ready = append(ready, z)
			}
		}
		now := &autoHints{}
		now.zone, now.problem = allocate(ready, shares)
		if now.problem != before.problem {
			events = append(events, hintEvent{family: family, problem: now.problem})
		}
		s.hints[family] = now
		for name := range s.pods {
			s.hint(sliceset.Key{Family: family, Name: name}, now.zone[name])
		}
	}
	return events
}

// hint sets the zone for which an endpoint works; "" for none.
func (s *service) hint(k sliceset.Key, zone string) {
	w := s.set.Wanted(k)
	if w == nil {
		return
	}
	ep := *w.Endpoint
	ep.Hints = nil
	if zone != "" {
		ep.Hints = &discovery.EndpointHints{ForZones: []discovery.ForZone{{Name: zone}}}
	}
	s.set.Want(k, &sliceset.Want{Ports: w.Ports, Endpoint: &ep})
}

// meta is what all slices of the Service have in common.
func (s *service) meta() sliceset.Meta {
	svc := s.src.svc
	return sliceset.Meta{
		Namespace:    svc.Namespace,
		GenerateName: generateName(svc.Name),
		Labels:       sliceLabels(svc),
		Owner:        sliceset.ServiceOwner(svc),
		Families:     s.src.families,
		Placeholder:  true,
	}
}

// withoutSlices is the meta under which every slice goes.
func (s *service) withoutSlices() sliceset.Meta {
	return sliceset.Meta{Namespace: s.key.Namespace}
}

// willBeMirrored says whether the mirroring controller makes slices from the
// Endpoints object as it is.
func (s *service) willBeMirrored() bool {
	ep := s.obj.seen
	if ep == nil || ep.Labels[discovery.LabelSkipMirror] == "true" {
		return false
	}
	if _, lock := ep.Annotations[resourcelock.LeaderElectionRecordAnnotationKey]; lock {
		return false
	}
	for _, sub := range ep.Subsets {
		if len(sub.Addresses)+len(sub.NotReadyAddresses) > 0 {
			return true
		}
	}
	return false
}

// generateName is the Service's name and a dash, as far as that is a valid
// start of a name (it may already be as long as a name may be).
func generateName(service string) string {
	if prefix := service + "-"; len(apivalidation.NameIsDNSSubdomain(prefix, true)) == 0 {
		return prefix
	}
	return service
}

func reserved(label string) bool {
	return label == discovery.LabelServiceName || label == discovery.LabelManagedBy || label == corev1.IsHeadlessService
}

// sliceLabels is the Service's labels, but for the ones that the API reserves
// for slices, and those.
func sliceLabels(svc *corev1.Service) map[string]string {
	out := make(map[string]string, len(svc.Labels)+3)
	for k, v := range svc.Labels {
		if !reserved(k) {
			out[k] = v
		}
	}
	if headless(svc) {
		out[corev1.IsHeadlessService] = ""
	}
	out[discovery.LabelServiceName] = svc.Name
	out[discovery.LabelManagedBy] = sliceManager
	return out
}

// objectLabels is the Service's labels and the ones that Endpoints have.
func objectLabels(svc *corev1.Service) map[string]string {
	out := maps.Clone(svc.Labels)
	if out == nil {
		out = map[string]string{}
	}
	delete(out, corev1.IsHeadlessService)
	if headless(svc) {
		out[corev1.IsHeadlessService] = ""
	}
	out[managedByLabel] = managedByValue
	return out
}

// headless Services have no address of their own.
func headless(svc *corev1.Service) bool {
	return svc.Spec.ClusterIP == corev1.ClusterIPNone || svc.Spec.ClusterIP == ""
}
