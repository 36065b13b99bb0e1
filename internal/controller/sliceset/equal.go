package sliceset

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
)

// EndpointEqual reports whether two endpoints mean the same to a consumer. The
// resourceVersion of the target is left out: it changes with every write to a
// pod and nobody may rely on it.
func EndpointEqual(a, b *discovery.Endpoint) bool {
	return a == b ||
		slices.Equal(a.Addresses, b.Addresses) &&
			ptrEqual(a.Conditions.Ready, b.Conditions.Ready) &&
			ptrEqual(a.Conditions.Serving, b.Conditions.Serving) &&
			ptrEqual(a.Conditions.Terminating, b.Conditions.Terminating) &&
			ptrEqual(a.Hostname, b.Hostname) &&
			ptrEqual(a.NodeName, b.NodeName) &&
			ptrEqual(a.Zone, b.Zone) &&
			targetEqual(a.TargetRef, b.TargetRef) &&
			hintsEqual(a.Hints, b.Hints) &&
			maps.Equal(a.DeprecatedTopology, b.DeprecatedTopology)
}

func ptrEqual[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func targetEqual(a, b *corev1.ObjectReference) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := *a, *b
	x.ResourceVersion, y.ResourceVersion = "", ""
	return x == y
}

func hintsEqual(a, b *discovery.EndpointHints) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.Equal(a.ForZones, b.ForZones) && slices.Equal(a.ForNodes, b.ForNodes)
}

func metaEqual(a, b *Meta) bool {
	return a.Namespace == b.Namespace && a.GenerateName == b.GenerateName &&
		maps.Equal(a.Labels, b.Labels) &&
		(a.Annotations == nil) == (b.Annotations == nil) && maps.Equal(a.Annotations, b.Annotations) &&
		a.Owner.UID == b.Owner.UID && a.Owner.Kind == b.Owner.Kind && a.Owner.APIVersion == b.Owner.APIVersion &&
		slices.Equal(a.Families, b.Families) &&
		a.Placeholder == b.Placeholder && a.MaxEndpoints == b.MaxEndpoints
}
