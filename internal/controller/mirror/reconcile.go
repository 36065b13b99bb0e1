package mirror

import (
	"context"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/endpointd/endpointd/internal/controller/sliceset"
)

// Reasons of events, the same as upstream's.
const (
	reasonInvalidIP = "InvalidIPAddress"
	reasonTooMany   = "TooManyAddressesToMirror"
)

// state is what is known of one Service's mirrored slices.
type state struct {
	set *sliceset.Set

	// What set was last told to want, and from which objects. Informers replace
	// objects and never change them, so the same pointer means no news.
	service   *corev1.Service
	endpoints *corev1.Endpoints
	want      map[sliceset.Key]*sliceset.Want

	warned warning
}

// warning is what the user was told about his Endpoints.
type warning struct {
	uid     types.UID
	invalid string
	skipped int
}

func newState() *state {
	return &state{set: sliceset.New(func(s *discovery.EndpointSlice, e *discovery.Endpoint) string {
		return endpointName(e, sliceset.PortsKey(s.Ports))
	})}
}

// reconcile brings one Service's mirrored slices to what they should be.
func (c *Controller) reconcile(ctx context.Context, key types.NamespacedName) error {
	svc, ep := get[*corev1.Service](c.services, key), get[*corev1.Endpoints](c.endpoints, key)
	to := decide(svc, ep, func() bool { return c.takenOver(key) })
	st, news := c.take(key, to == follow)
	if st == nil {
		return nil
	}
	for name, slice := range news {
		st.observe(name, slice)
	}
	switch to {
	case follow:
		c.want(st, svc, ep)
	case remove:
		st.wantNothing(key)
	case leave:
		if st.set.Slices() == 0 {
			c.drop(key)
		}
		return nil
	}
	writes := st.set.Plan(time.Time{})
	if len(writes) == 0 {
		// After deletions the state is kept until the watch has shown them, lest
		// older events bring the slices back.
		if to == remove && st.set.Slices() == 0 {
			c.drop(key)
		}
		return nil
	}
	return sliceset.Apply(ctx, c.client.DiscoveryV1(), st.set, writes)
}

// takenOver says whether the endpoints controller has made slices for the
// Service.
func (c *Controller) takenOver(key types.NamespacedName) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.theirs[key]) > 0
}

// want has the slices follow the Endpoints.
func (c *Controller) want(st *state, svc *corev1.Service, ep *corev1.Endpoints) {
	if st.service == svc && st.endpoints == ep {
		return
	}
	p := planFor(svc, ep, c.max)
	st.set.SetMeta(p.meta)
	for k := range st.want {
		if p.want[k] == nil {
			st.set.Want(k, nil)
		}
	}
	for k, w := range p.want {
		st.set.Want(k, w)
	}
	st.service, st.endpoints, st.want = svc, ep, p.want
	c.warn(st, ep, p)
}

// warn tells the user what of his Endpoints is left out, once for each change.
func (c *Controller) warn(st *state, ep *corev1.Endpoints, p plan) {
	now := warning{uid: ep.UID, invalid: strings.Join(p.invalid, ", "), skipped: p.skipped}
	was := st.warned
	if was.uid != now.uid {
		was = warning{}
	}
	st.warned = now
	if n := len(p.invalid); n > 0 && now.invalid != was.invalid {
		c.recorder.Eventf(ep, corev1.EventTypeWarning, reasonInvalidIP,
			"Skipped %d invalid IP addresses when mirroring to EndpointSlices, the first is %q", n, p.invalid[0])
	}
	if now.skipped > 0 && now.skipped != was.skipped {
		c.recorder.Eventf(ep, corev1.EventTypeWarning, reasonTooMany,
			"A max of %d addresses can be mirrored to EndpointSlices per Endpoints subset. %d addresses were skipped", c.max, now.skipped)
	}
}

// wantNothing has all slices go.
func (st *state) wantNothing(key types.NamespacedName) {
	st.set.SetMeta(sliceset.Meta{Namespace: key.Namespace})
	for k := range st.want {
		st.set.Want(k, nil)
	}
	st.service, st.endpoints, st.want, st.warned = nil, nil, nil, warning{}
}

func (st *state) observe(name string, slice *discovery.EndpointSlice) {
	if slice == nil {
		st.set.Forget(name)
		return
	}
	st.set.Observe(slice)
}

// get looks an object up in an informer's store; nil if it is not there.
func get[T any](store cache.Store, key types.NamespacedName) (obj T) {
	if found, ok, _ := store.GetByKey(key.String()); ok {
		obj, _ = found.(T)
	}
	return obj
}

// labelsFor is the labels of the slices: those of the Endpoints, but for the
// ones that mean something else on a slice.
func labelsFor(svc *corev1.Service, ep *corev1.Endpoints) map[string]string {
	out := maps.Clone(ep.Labels)
	if out == nil {
		out = map[string]string{}
	}
	delete(out, endpointsManagedBy)
	delete(out, corev1.IsHeadlessService)
	if svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		out[corev1.IsHeadlessService] = ""
	}
	out[discovery.LabelServiceName] = ep.Name
	out[discovery.LabelManagedBy] = manager
	return out
}

// annotationsFor is the annotations of the slices, never nil.
func annotationsFor(ep *corev1.Endpoints) map[string]string {
	out := maps.Clone(ep.Annotations)
	if out == nil {
		out = map[string]string{}
	}
	delete(out, corev1.EndpointsLastChangeTriggerTime)
	delete(out, corev1.LastAppliedConfigAnnotation)
	return out
}
