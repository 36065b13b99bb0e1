package app

import (
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"github.com/endpointd/endpointd/internal/dataplane/healthcheck"
)

// quietSink drops events that this user may not post: what they say is in the log.
type quietSink struct{ record.EventSink }

// Create implements record.EventSink.
func (s quietSink) Create(event *corev1.Event) (*corev1.Event, error) {
	return unlessForbidden(s.EventSink.Create(event))
}

// Update implements record.EventSink.
func (s quietSink) Update(event *corev1.Event) (*corev1.Event, error) {
	return unlessForbidden(s.EventSink.Update(event))
}

// Patch implements record.EventSink.
func (s quietSink) Patch(event *corev1.Event, data []byte) (*corev1.Event, error) {
	return unlessForbidden(s.EventSink.Patch(event, data))
}

func unlessForbidden(event *corev1.Event, err error) (*corev1.Event, error) {
	if apierrors.IsForbidden(err) {
		return event, nil
	}
	return event, err
}

// reasonNoHealthCheck is the reason of kube-proxy's event (pkg/proxy/healthcheck), which alerts look for.
const reasonNoHealthCheck = "FailedToStartServiceHealthcheck"

// healthEvents returns what tells the owner of a Service that load balancers cannot ask this node for its health.
func healthEvents(recorder record.EventRecorder, node string) func(healthcheck.Failure) {
	return func(f healthcheck.Failure) {
		service := &corev1.ObjectReference{
			APIVersion: "v1", Kind: "Service", Namespace: f.Service.Namespace, Name: f.Service.Name, UID: types.UID(f.UID),
		}
		recorder.Eventf(service, corev1.EventTypeWarning, reasonNoHealthCheck, "node %s: %v", node, f.Err)
	}
}
