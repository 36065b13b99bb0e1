package model

import (
	"slices"
	"strings"

	"github.com/cilium/statedb/part"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// An Input is all that a [Snapshot] is made of. It is a value: each With… and Without… returns another, which shares with the first all that is
// the same, and both remain good. Any number of goroutines may use one. The zero value is a node that knows nothing.
//
// API objects are translated when they come in. They are not modified, nothing keeps them, and one that says nothing new gives the same Input.
type Input struct {
	network  Network
	services part.Map[string, *service] // keyOf → Service
	slices   part.Map[string, *slice]   // keyOf → EndpointSlice
	// ofService is keyOf a Service, which need not exist → its slices by name.
	ofService part.Map[string, []*slice]
	// ofPod is the UID of a pod → keys of the slices with an endpoint of it, for pods of this node: see mine.
	ofPod part.Map[string, []string]
	down  part.Map[string, Reason] // UID of a pod → what this node knows of it
	log   history                  // keys of the Services that were touched
}

// WithService adds or replaces a Service.
func (in Input) WithService(object *corev1.Service) Input {
	id, ok := keyOf(object.Namespace, object.Name)
	if !ok {
		return in
	}
	s := newService(id, object)
	if old, ok := in.services.Get(id); ok && old.equal(s) {
		return in
	}
	in.services = in.services.Set(id, s)
	in.log = in.log.with(id)
	return in
}

// WithoutService removes a Service. Its slices stay, for when it comes back.
func (in Input) WithoutService(key ServiceKey) Input {
	id, _ := keyOf(key.Namespace, key.Name)
	if _, ok := in.services.Get(id); !ok {
		return in
	}
	in.services = in.services.Delete(id)
	in.log = in.log.with(id)
	return in
}

// WithSlice adds or replaces an EndpointSlice. Its name says which one it is; it may have changed its Service.
func (in Input) WithSlice(object *discoveryv1.EndpointSlice) Input {
	id, ok := keyOf(object.Namespace, object.Name)
	if !ok {
		return in
	}
	s := newSlice(id, object)
	old, _ := in.slices.Get(id)
	if old != nil && old.equal(s) {
		return in
	}
	in.slices = in.slices.Set(id, s)
	return in.replaced(old, s)
}

// WithoutSlice removes an EndpointSlice.
func (in Input) WithoutSlice(namespace, name string) Input {
	id, _ := keyOf(namespace, name)
	old, ok := in.slices.Get(id)
	if !ok {
		return in
	}
	in.slices = in.slices.Delete(id)
	return in.replaced(old, nil)
}

// replaced brings what is known of slices up to date. One of the two may be nil.
func (in Input) replaced(old, now *slice) Input {
	if old != nil && (now == nil || now.service != old.service) {
		in = in.place(old.service, old.id, nil)
	}
	if now != nil {
		in = in.place(now.service, now.id, now)
	}
	was, is := in.pods(old), in.pods(now)
	for _, uid := range was {
		if _, ok := slices.BinarySearch(is, uid); !ok {
			in = in.withoutPod(uid, old.id)
		}
	}
	for _, uid := range is {
		if _, ok := slices.BinarySearch(was, uid); !ok {
			in = in.withPod(uid, now.id)
		}
	}
	return in
}

// place puts a slice among those of a Service, or takes it away.
func (in Input) place(service, id string, now *slice) Input {
	if service == "" {
		return in
	}
	old, _ := in.ofService.Get(service)
	at, there := slices.BinarySearchFunc(old, id, func(s *slice, id string) int { return strings.Compare(s.id, id) })
	list := make([]*slice, 0, len(old)+1)
	list = append(list, old[:at]...)
	if now != nil {
		list = append(list, now)
	}
	if there {
		at++
	}
	list = append(list, old[at:]...)
	if len(list) == 0 {
		in.ofService = in.ofService.Delete(service)
	} else {
		in.ofService = in.ofService.Set(service, list)
	}
	return in.touch(service)
}

// touch records a change of a Service, which matters to Snapshots only if there is one.
func (in Input) touch(service string) Input {
	if _, ok := in.services.Get(service); ok {
		in.log = in.log.with(service)
	}
	return in
}

// WithNetwork says what the node knows of its own addresses and others'. The slices are copied, sorted, and rid of what is invalid.
func (in Input) WithNetwork(network Network) Input {
	network.NodePortAddrs = sortAddrs(network.NodePortAddrs)
	network.PodCIDRs = sortPrefixes(network.PodCIDRs)
	network.ClusterCIDRs = sortPrefixes(network.ClusterCIDRs)
	network.NodePodCIDRs = sortPrefixes(network.NodePodCIDRs)
	network.ServiceCIDRs = sortPrefixes(network.ServiceCIDRs)
	if network.equal(&in.network) {
		return in
	}
	renamed := network.Node != in.network.Node
	in.network = network // Build compares it; it's no part of the log
	if renamed {
		// Facts that meant nobody may now mean somebody, and the log does not know them.
		in.log = history{cut: true}.with("")
		in.ofPod = part.Map[string, []string]{}
		for _, s := range in.slices.All() {
			for _, uid := range in.pods(s) {
				in = in.withPod(uid, s.id)
			}
		}
	}
	return in
}

// WithDown says that this node knows that a pod cannot serve, whatever the API still says: its process ended, its probe failed, or it drains.
// Why is LocalDead, LocalNotReady or LocalDraining; anything else changes nothing. It counts for endpoints with the pod's UID that the API
// places on this node or nowhere.
func (in Input) WithDown(podUID string, why Reason) Input {
	if podUID == "" || !why.local() {
		return in
	}
	if old, _ := in.down.Get(podUID); old == why {
		return in
	}
	in.down = in.down.Set(podUID, why)
	return in.touchPod(podUID)
}

// WithoutDown takes it back: the API knows better again.
func (in Input) WithoutDown(podUID string) Input {
	if _, ok := in.down.Get(podUID); !ok {
		return in
	}
	in.down = in.down.Delete(podUID)
	return in.touchPod(podUID)
}

// Leads says whether some EndpointSlice leads new connections to a pod of this node: whether an endpoint of it is ready and does not
// terminate. Only the API counts, not what WithDown said.
func (in Input) Leads(podUID string) bool {
	ids, _ := in.ofPod.Get(podUID)
	for _, id := range ids {
		s, _ := in.slices.Get(id)
		for i := range s.endpoints {
			if e := &s.endpoints[i]; e.Target.UID == podUID && e.Ready && !e.Terminating && in.mine(e.Origin) {
				return true
			}
		}
	}
	return false
}

// mine says whether an endpoint may be a pod of this node: of others, this node knows nothing better than the API.
func (in *Input) mine(origin *Origin) bool {
	return origin.Node == "" || origin.Node == in.network.Node
}

// pods are the UIDs of a slice that WithDown may be about.
func (in *Input) pods(s *slice) []string {
	if s == nil {
		return nil
	}
	var uids []string
	for i := range s.endpoints {
		if e := &s.endpoints[i]; e.Target.UID != "" && in.mine(e.Origin) {
			uids = append(uids, e.Target.UID)
		}
	}
	slices.Sort(uids)
	return slices.Compact(uids)
}

func (in Input) withPod(uid, id string) Input {
	old, _ := in.ofPod.Get(uid)
	in.ofPod = in.ofPod.Set(uid, append(slices.Clip(old), id))
	return in
}

func (in Input) withoutPod(uid, id string) Input {
	old, _ := in.ofPod.Get(uid)
	rest := make([]string, 0, len(old))
	for _, o := range old {
		if o != id {
			rest = append(rest, o)
		}
	}
	if len(rest) == 0 {
		in.ofPod = in.ofPod.Delete(uid)
	} else {
		in.ofPod = in.ofPod.Set(uid, rest)
	}
	return in
}

func (in Input) touchPod(uid string) Input {
	ids, _ := in.ofPod.Get(uid)
	for _, id := range ids {
		s, _ := in.slices.Get(id)
		in = in.touch(s.service)
	}
	return in
}
