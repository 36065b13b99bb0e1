package traffic

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/endpointd/endpointd/internal/model"
)

// triggers are Services → the oldest change that had a slice of theirs be written and that is in no Snapshot yet.
type triggers map[model.ServiceKey]time.Time

// triggered notes when that happened for which a slice was written: its controller says so in an annotation (the SLIs "network programming latency" and
// "DNS programming latency" of Kubernetes' sig-scalability are measured from there). What was before the first Snapshot kept nobody waiting. t.mu is held.
func (t *Traffic) triggered(s *discoveryv1.EndpointSlice) {
	at, err := time.Parse(time.RFC3339Nano, s.Annotations[corev1.EndpointsLastChangeTriggerTime])
	if t.o.Programmed == nil || t.current == nil || err != nil {
		return
	}
	key := model.ServiceKey{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
	if was, ok := t.late[key]; ok && was.Before(at) {
		return
	}
	if t.late == nil {
		t.late = triggers{}
	}
	t.late[key] = at
}

// programmed tells of the triggers of those Services that are not as they were. A slice that says what was known before changes none,
// and of a Service that comes after its slices nothing is told: they were not what was waited for.
func (t *Traffic) programmed(was, now *model.Snapshot, all triggers) {
	if len(all) == 0 || now == was {
		return
	}
	for key := range now.Changed(was) {
		if at, ok := all[key]; ok {
			if s := now.Service(key); s != nil {
				t.o.Programmed(s, at)
			}
		}
	}
}
