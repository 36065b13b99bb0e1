package endpoints

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/controller/sliceset"
)

// errDeleting is the result of creations that are not sent because the Service
// is being deleted: the garbage collector might have been there already.
var errDeleting = errors.New("the Service is being deleted")

// maxDeferred is how many times in a row the Endpoints object makes way for the
// slices of a newer change.
const maxDeferred = 2

// write sends what the slices need, then what the Endpoints object needs. The
// slices are what proxies and DNS read, and the object is much the larger write.
// changes is the number of pods whose changes led to this.
func (c *Controller) write(ctx context.Context, st *service, svc *corev1.Service, changes int) error {
	begin := time.Now()
	n, err := c.writeSlices(ctx, st, svc)
	if err == nil {
		st.trigger.slices = time.Time{}
	}
	want, holds := st.obj.plan(svc, objectLabels(svc), st.trigger.object)
	now, news := time.Now(), c.hasNews(st.key)
	if n > 0 {
		st.pace.wrote(now, now.Sub(begin), changes)
	}
	if want == nil {
		st.object.wrote(0)
		st.trigger.object = time.Time{}
		return err
	}
	if news && st.deferred < maxDeferred {
		st.deferred++
		return err // the news has it planned again
	}
	if wait := st.object.hold(now, st.pace.crowded()); wait > 0 {
		c.pending(st.key)
		c.loop.AddAfter(st.key, wait)
		return err
	}
	st.deferred = 0
	if e := c.putObject(ctx, st, svc, want, holds); e != nil {
		return errors.Join(err, e)
	}
	st.object.wrote(time.Since(now))
	st.trigger.object = time.Time{}
	return err
}

// writeSlices sends what the slices need, and gives how many writes that took.
// svc is nil where they only go.
func (c *Controller) writeSlices(ctx context.Context, st *service, svc *corev1.Service) (int, error) {
	writes := st.set.Plan(st.trigger.slices)
	if svc != nil && svc.DeletionTimestamp != nil {
		writes = withoutCreates(st.set, writes)
	}
	if len(writes) == 0 {
		return 0, nil
	}
	err := sliceset.Apply(ctx, c.client.DiscoveryV1(), st.set, writes)
	if err != nil && svc != nil && !apierrors.IsConflict(err) && ctx.Err() == nil {
		c.recorder.Eventf(svc, corev1.EventTypeWarning, "FailedToUpdateEndpointSlices",
			"Error updating Endpoint Slices for Service %s/%s: %v", svc.Namespace, svc.Name, err)
	}
	return len(writes), err
}

func withoutCreates(set *sliceset.Set, writes []sliceset.Write) []sliceset.Write {
	var kept []sliceset.Write
	for _, w := range writes {
		if w.Op == sliceset.Create {
			set.Done(w, nil, errDeleting)
			continue
		}
		kept = append(kept, w)
	}
	return kept
}

// putObject creates or updates the Endpoints object; holds is what it will hold.
func (c *Controller) putObject(ctx context.Context, st *service, svc *corev1.Service, want *corev1.Endpoints, holds []subset) error {
	client := c.client.CoreV1().Endpoints(want.Namespace)
	var got *corev1.Endpoints
	var err error
	create := want.ResourceVersion == ""
	switch {
	case create && svc.DeletionTimestamp != nil:
		return nil
	case create:
		got, err = client.Create(ctx, want, metav1.CreateOptions{})
	default:
		got, err = client.Update(ctx, want, metav1.UpdateOptions{})
	}
	switch {
	case err == nil:
		st.obj.wrote(got, holds)
		return nil
	case create && apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	case apierrors.IsNotFound(err) && !create:
		st.obj.observe(nil) // deleted by somebody: made anew by the next try
	}
	reason, verb := "FailedToUpdateEndpoint", "update"
	if create {
		reason, verb = "FailedToCreateEndpoint", "create"
	}
	if !apierrors.IsConflict(err) && ctx.Err() == nil {
		c.recorder.Eventf(svc, corev1.EventTypeWarning, reason, "Failed to %s endpoint %s/%s: %v", verb, want.Namespace, want.Name, err)
	}
	return fmt.Errorf("%s Endpoints %s/%s: %w", verb, want.Namespace, want.Name, err)
}

// disown takes our label off Endpoints that are somebody else's from now on.
func (c *Controller) disown(ctx context.Context, st *service) error {
	ep := st.obj.seen
	if ep == nil || ep.Labels[managedByLabel] != managedByValue {
		return nil
	}
	theirs := *ep
	theirs.Labels = maps.Clone(ep.Labels)
	delete(theirs.Labels, managedByLabel)
	got, err := c.client.CoreV1().Endpoints(ep.Namespace).Update(ctx, &theirs, metav1.UpdateOptions{})
	if err != nil {
		return fmt.Errorf("take the label %s off Endpoints %s: %w", managedByLabel, st.key, err)
	}
	st.obj.observe(got)
	return nil
}

func (c *Controller) deleteObject(ctx context.Context, st *service) error {
	uid := st.obj.seen.UID
	err := c.client.CoreV1().Endpoints(st.key.Namespace).Delete(ctx, st.key.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete Endpoints %s: %w", st.key, err)
	}
	st.obj.observe(nil)
	return nil
}
