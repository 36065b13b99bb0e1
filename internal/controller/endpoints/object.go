package endpoints

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/controller/sliceset"
)

// maxAddresses is how many addresses an Endpoints object holds (spec §3.2
// "Endpoints truncation").
const maxAddresses = 1000

// managedBy marks the Endpoints objects that the endpoints controller of
// Kubernetes (and this one) writes; ours too, so that either can take over.
const (
	managedByLabel = "endpoints.kubernetes.io/managed-by"
	managedByValue = "endpoint-controller"
)

// object is the Endpoints object of one Service as it should be, kept up with
// changes: setting one pod costs a search, however many there are, and telling
// that nothing changed costs a comparison of pointers. Not safe for concurrent
// use.
type object struct {
	groups  []*addressGroup    // by ports, in order of appearance
	members map[string]*member // pod name → what it contributes
	last    []subset           // what the observed object is known to hold; nil if not known
	seen    *corev1.Endpoints  // newest version known; nil if there is none
}

// addressGroup is the pods that share their ports. The lists are sorted as
// Endpoints are: by address as text, then by UID.
type addressGroup struct {
	ports           *sliceset.PortSet
	ready, notReady []*corev1.EndpointAddress
}

type member struct {
	group   *addressGroup
	address *corev1.EndpointAddress
	ready   bool
}

// subset is an EndpointSubset that points to addresses instead of holding them.
type subset struct {
	ports           []corev1.EndpointPort
	ready, notReady []*corev1.EndpointAddress
}

func newObject() *object { return &object{members: map[string]*member{}} }

// set says what the pod contributes; a nil address is nothing.
func (o *object) set(pod string, address *corev1.EndpointAddress, ready bool, ports *sliceset.PortSet) {
	if old := o.members[pod]; old != nil {
		if address != nil && addressEqual(old.address, address) {
			if old.ready == ready && old.group.ports.Key() == ports.Key() {
				return
			}
			address = old.address // so that a flip and back is seen as no change
		}
		old.group.take(old)
		delete(o.members, pod)
	}
	if address == nil {
		return
	}
	m := &member{group: o.group(ports), address: address, ready: ready}
	m.group.put(m)
	o.members[pod] = m
}

func (o *object) group(ports *sliceset.PortSet) *addressGroup {
	for _, g := range o.groups {
		if g.ports.Key() == ports.Key() {
			return g
		}
	}
	g := &addressGroup{ports: ports}
	o.groups = append(o.groups, g)
	return g
}

func (g *addressGroup) list(ready bool) *[]*corev1.EndpointAddress {
	if ready {
		return &g.ready
	}
	return &g.notReady
}

func (g *addressGroup) put(m *member) {
	list := g.list(m.ready)
	i, _ := slices.BinarySearchFunc(*list, m.address, compareAddress)
	*list = slices.Insert(*list, i, m.address)
}

func (g *addressGroup) take(m *member) {
	list := g.list(m.ready)
	if i, ok := slices.BinarySearchFunc(*list, m.address, compareAddress); ok {
		*list = slices.Delete(*list, i, i+1)
	}
}

// subsets gives the canonical form: ports that the very same pods offer are one
// subset. For pods that all have the same ports that is one subset without any
// copying.
func (o *object) subsets() []subset {
	o.groups = slices.DeleteFunc(o.groups, func(g *addressGroup) bool { return len(g.ready)+len(g.notReady) == 0 })
	if len(o.groups) == 1 {
		g := o.groups[0]
		return []subset{{ports: endpointPorts(g.ports.Ports()), ready: g.ready, notReady: g.notReady}}
	}
	slices.SortFunc(o.groups, func(a, b *addressGroup) int { return cmp.Compare(a.ports.Key(), b.ports.Key()) })
	type offer struct {
		port   discovery.EndpointPort
		groups []int // indexes of the groups that have the port
	}
	offers := map[string]*offer{} // key of a port → who offers it
	for i, g := range o.groups {
		ports := g.ports.Ports()
		if len(ports) == 0 {
			offers[""] = &offer{groups: []int{i}}
		}
		for _, p := range ports {
			key := sliceset.NewPortSet([]discovery.EndpointPort{p}).Key()
			if offers[key] == nil {
				offers[key] = &offer{port: p}
			}
			offers[key].groups = append(offers[key].groups, i)
		}
	}
	var out []subset
	of := map[string]int{} // groups → index in out
	for _, key := range slices.Sorted(maps.Keys(offers)) {
		who := offers[key]
		id := fmt.Sprint(who.groups)
		at, ok := of[id]
		if !ok {
			at = len(out)
			of[id] = at
			var s subset
			for _, i := range who.groups {
				s.ready = merge(s.ready, o.groups[i].ready)
				s.notReady = merge(s.notReady, o.groups[i].notReady)
			}
			out = append(out, s)
		}
		if key != "" {
			out[at].ports = append(out[at].ports, endpointPorts([]discovery.EndpointPort{who.port})...)
		}
	}
	return out
}

func merge(a, b []*corev1.EndpointAddress) []*corev1.EndpointAddress {
	if len(a) == 0 {
		return b
	}
	if len(b) == 0 {
		return a
	}
	out := append(slices.Clone(a), b...)
	slices.SortFunc(out, compareAddress)
	return out
}

// truncate cuts the subsets to maxAddresses in all: ready addresses first, each
// subset in proportion, rounded up until the room is used (as upstream's
// controller does). It reports whether anything was cut.
func truncate(subsets []subset) bool {
	ready, notReady := 0, 0
	for _, s := range subsets {
		ready += len(s.ready)
		notReady += len(s.notReady)
	}
	if ready+notReady <= maxAddresses {
		return false
	}
	room, total := maxAddresses-ready, notReady
	if ready > maxAddresses {
		room, total = maxAddresses, ready
	}
	left := room
	for i := range subsets {
		list := &subsets[i].notReady
		if ready > maxAddresses {
			subsets[i].notReady = nil
			list = &subsets[i].ready
		}
		n := int(math.Ceil(float64(len(*list)) / float64(total) * float64(room)))
		n = min(n, left, len(*list))
		*list = (*list)[:n]
		left -= n
	}
	return true
}

// observe takes in the object as a watch showed it; nil is that it is gone. Of
// two versions the newer wins.
func (o *object) observe(ep *corev1.Endpoints) {
	switch {
	case ep == nil || o.seen == nil || sliceset.Newer(ep, o.seen):
		o.seen, o.last = ep, nil
	case ep.ResourceVersion == o.seen.ResourceVersion:
		o.seen = ep // one object in memory instead of the watch's and the answer's
	}
}

// wrote takes in the answer to a write and what it holds.
func (o *object) wrote(ep *corev1.Endpoints, holds []subset) {
	if o.seen == nil || !sliceset.Newer(o.seen, ep) {
		o.seen, o.last = ep, holds
	}
}

// plan gives the object to write and what it holds, or nil if the observed one
// is right. labels are the complete set.
func (o *object) plan(svc *corev1.Service, labels map[string]string, triggerTime time.Time) (*corev1.Endpoints, []subset) {
	subsets := o.subsets()
	truncated := truncate(subsets)
	if o.seen != nil && o.last != nil && subsetsIdentical(o.last, subsets) && maps.Equal(o.seen.Labels, labels) && overCapacity(o.seen) == truncated {
		return nil, nil
	}
	ep := &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name},
		Subsets:    render(subsets),
	}
	// The lists of subsets may be those of the groups, which change in place.
	for i := range subsets {
		subsets[i].ready, subsets[i].notReady = slices.Clone(subsets[i].ready), slices.Clone(subsets[i].notReady)
	}
	if subsets == nil {
		subsets = []subset{}
	}
	if o.seen != nil {
		if maps.Equal(o.seen.Labels, labels) && overCapacity(o.seen) == truncated && equalSubsets(o.seen.Subsets, ep.Subsets) {
			o.last = subsets
			return nil, nil
		}
		ep.ObjectMeta = o.seen.ObjectMeta
		ep.ManagedFields = sliceset.Untracked()
		ep.Annotations = maps.Clone(o.seen.Annotations)
	}
	ep.Labels = labels
	if ep.Annotations == nil {
		ep.Annotations = map[string]string{}
	}
	delete(ep.Annotations, corev1.EndpointsLastChangeTriggerTime)
	delete(ep.Annotations, corev1.EndpointsOverCapacity)
	if !triggerTime.IsZero() {
		ep.Annotations[corev1.EndpointsLastChangeTriggerTime] = triggerTime.UTC().Format(time.RFC3339Nano)
	}
	if truncated {
		ep.Annotations[corev1.EndpointsOverCapacity] = "truncated"
	}
	return ep, subsets
}

func overCapacity(ep *corev1.Endpoints) bool {
	return ep.Annotations[corev1.EndpointsOverCapacity] == "truncated"
}

func subsetsIdentical(a, b []subset) bool {
	return slices.EqualFunc(a, b, func(a, b subset) bool {
		return slices.Equal(a.ready, b.ready) && slices.Equal(a.notReady, b.notReady) && slices.EqualFunc(a.ports, b.ports, portEqual)
	})
}

func render(subsets []subset) []corev1.EndpointSubset {
	out := make([]corev1.EndpointSubset, len(subsets))
	for i, s := range subsets {
		out[i] = corev1.EndpointSubset{Addresses: deref(s.ready), NotReadyAddresses: deref(s.notReady), Ports: s.ports}
	}
	return out
}

func deref(in []*corev1.EndpointAddress) []corev1.EndpointAddress {
	if len(in) == 0 {
		return nil
	}
	out := make([]corev1.EndpointAddress, len(in))
	for i, a := range in {
		out[i] = *a
	}
	return out
}

// equalSubsets compares what the API holds with what it should hold. Subsets,
// and ports in them, may be in any order: other writers sort them otherwise.
func equalSubsets(a, b []corev1.EndpointSubset) bool {
	if len(a) != len(b) {
		return false
	}
	a, b = canonical(a), canonical(b)
	return slices.EqualFunc(a, b, func(a, b corev1.EndpointSubset) bool {
		return slices.EqualFunc(a.Ports, b.Ports, portEqual) &&
			slices.EqualFunc(a.Addresses, b.Addresses, sameAddress) &&
			slices.EqualFunc(a.NotReadyAddresses, b.NotReadyAddresses, sameAddress)
	})
}

func canonical(in []corev1.EndpointSubset) []corev1.EndpointSubset {
	out := slices.Clone(in)
	for i := range out {
		out[i].Ports = slices.Clone(out[i].Ports)
		slices.SortFunc(out[i].Ports, comparePort)
	}
	sort.SliceStable(out, func(i, j int) bool { return slices.CompareFunc(out[i].Ports, out[j].Ports, comparePort) < 0 })
	return out
}

func comparePort(a, b corev1.EndpointPort) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

func portEqual(a, b corev1.EndpointPort) bool {
	return a.Name == b.Name && a.Protocol == b.Protocol && a.Port == b.Port &&
		(a.AppProtocol == nil) == (b.AppProtocol == nil) && (a.AppProtocol == nil || *a.AppProtocol == *b.AppProtocol)
}

func sameAddress(a, b corev1.EndpointAddress) bool { return addressEqual(&a, &b) }

func addressEqual(a, b *corev1.EndpointAddress) bool {
	if a.IP != b.IP || a.Hostname != b.Hostname || (a.NodeName == nil) != (b.NodeName == nil) || (a.TargetRef == nil) != (b.TargetRef == nil) {
		return false
	}
	if a.NodeName != nil && *a.NodeName != *b.NodeName {
		return false
	}
	if a.TargetRef == nil {
		return true
	}
	x, y := *a.TargetRef, *b.TargetRef
	x.ResourceVersion, y.ResourceVersion = "", ""
	return x == y
}

func compareAddress(a, b *corev1.EndpointAddress) int {
	return cmp.Or(cmp.Compare(a.IP, b.IP), cmp.Compare(a.TargetRef.UID, b.TargetRef.UID), cmp.Compare(a.TargetRef.Name, b.TargetRef.Name))
}

func endpointPorts(in []discovery.EndpointPort) []corev1.EndpointPort {
	var out []corev1.EndpointPort
	for _, p := range in {
		out = append(out, corev1.EndpointPort{Name: *p.Name, Port: *p.Port, Protocol: *p.Protocol, AppProtocol: p.AppProtocol})
	}
	return out
}
