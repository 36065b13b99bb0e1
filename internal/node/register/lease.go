package register

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// leaseTimeout limits one round of requests. Renewals begin 500 ms apart, or at once after a round that took
// longer: after one lost request the silence is 1.2 s, after two 1.9 s, after three 2.6 s, each plus a round trip.
const leaseTimeout = 700 * time.Millisecond

// renewal is the state of the Lease's goroutine.
type renewal struct {
	r      *Registration
	known  *coordinationv1.Lease // as the API answered last; nil = not known
	tried  metav1.MicroTime      // renewTime of the last write, whether it arrived or not
	before metav1.MicroTime      // tried when this round began
	lost   time.Time             // when it failed first; zero = it does not
	rival  bool                  // a second agent was logged
}

// renew keeps the Lease alive until ctx ends. It begins when the Node exists.
func (r *Registration) renew(ctx context.Context) {
	select {
	case <-r.done:
	case <-ctx.Done():
		return
	}
	l := &renewal{r: r}
	for {
		next := time.After(r.o.Renew) // from the beginning of this round to the beginning of the next
		l.round(ctx)
		select {
		case <-next:
		case <-ctx.Done():
			return
		}
	}
}

// round renews once, and logs when that begins or ceases to fail.
func (l *renewal) round(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, leaseTimeout)
	err := l.write(limited)
	cancel()
	switch {
	case ctx.Err() != nil:
	case err != nil && l.lost.IsZero():
		l.lost = time.Now()
		l.r.log.Warn("cannot renew the lease of the node, trying on", "error", err)
	case err == nil && !l.lost.IsZero():
		l.r.log.Info("lease of the node renewed again", "after", time.Since(l.lost).Round(time.Millisecond))
		l.lost = time.Time{}
		if give := l.r.give.Load(); give != nil {
			(*give)()
		}
		l.r.Refresh() // somebody may have called the node NotReady meanwhile
	}
}

// write updates the Lease as it is known, else reads or makes it first. A failure that says that the Lease is not what
// was known is met at once, once.
func (l *renewal) write(ctx context.Context) error {
	known := l.known != nil
	l.before = l.tried
	err := l.once(ctx)
	if known && (apierrors.IsConflict(err) || apierrors.IsNotFound(err)) {
		l.known = nil
		err = l.once(ctx)
	}
	return err
}

func (l *renewal) once(ctx context.Context) error {
	leases := l.r.o.LeaseClient.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	name := l.r.o.Name
	if l.known == nil {
		got, err := leases.Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			got, err = leases.Create(ctx, l.next(&coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name},
			}), metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("create lease %s/%s: %w", corev1.NamespaceNodeLease, name, err)
			}
			l.known = got
			return nil
		case err != nil:
			return fmt.Errorf("read lease %s/%s: %w", corev1.NamespaceNodeLease, name, err)
		}
		l.compare(got)
		l.known = got
	}
	got, err := leases.Update(ctx, l.next(l.known), metav1.UpdateOptions{})
	if err != nil {
		return fmt.Errorf("update lease %s/%s: %w", corev1.NamespaceNodeLease, name, err)
	}
	l.known = got
	return nil
}

// next is the Lease as it should be now.
func (l *renewal) next(lease *coordinationv1.Lease) *coordinationv1.Lease {
	lease = lease.DeepCopy()
	l.tried = metav1.NewMicroTime(time.Now().Truncate(time.Microsecond)) // as it comes back
	lease.Spec.HolderIdentity = new(l.r.o.Name)
	lease.Spec.LeaseDurationSeconds = new(l.r.o.LeaseSeconds)
	lease.Spec.RenewTime = new(l.tried)
	lease.OwnerReferences = nil
	if uid := l.r.uid.Load(); uid != nil {
		lease.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: l.r.o.Name, UID: *uid}}
	}
	return lease
}

// compare notices a second agent of the same name: a Lease that is alive, and that this one did not write last.
func (l *renewal) compare(got *coordinationv1.Lease) {
	renewed := got.Spec.RenewTime
	if l.rival || l.before.IsZero() || renewed == nil || !renewed.After(l.before.Time) {
		return
	}
	l.rival = true
	l.r.log.Error("somebody else renews this node's lease: end the other agent, or give one of them another --name",
		"node", l.r.o.Name)
}
