package podspec

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// fieldValue is a field of the pod as the downward API gives it. Without facts (nil) it knows only what volumes may show:
// the pod's metadata.
func fieldValue(pod *corev1.Pod, path string, facts *Facts) (string, error) {
	if field, key, ok := subscript(path); ok {
		switch field {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
		return "", fmt.Errorf("fieldRef %s: only metadata.labels and metadata.annotations have keys", path)
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return quotedLines(pod.Labels), nil
	case "metadata.annotations":
		return quotedLines(pod.Annotations), nil
	}
	if facts == nil {
		return "", fmt.Errorf("fieldRef %s: a volume can show metadata.name, .namespace, .uid, .labels and .annotations; use a variable for others", path)
	}
	switch path {
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return firstOf(facts.HostIPs), nil
	case "status.hostIPs":
		return joinAddrs(facts.HostIPs), nil
	case "status.podIP":
		return firstOf(facts.PodIPs), nil
	case "status.podIPs":
		return joinAddrs(facts.PodIPs), nil
	}
	return "", fmt.Errorf("fieldRef %s: no such field; known are metadata.name, .namespace, .uid, .labels['…'], .annotations['…'], spec.nodeName, spec.serviceAccountName, status.hostIP(s) and status.podIP(s)", path)
}

// subscript takes metadata.labels['key'] apart.
func subscript(path string) (field, key string, ok bool) {
	inner, ok := strings.CutSuffix(path, "']")
	if !ok {
		return "", "", false
	}
	field, key, ok = strings.Cut(inner, "['")
	return field, key, ok && field != ""
}

// quotedLines is a map as the downward API writes it: sorted lines of key="value".
func quotedLines(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, key+"="+strconv.Quote(m[key]))
	}
	return strings.Join(lines, "\n")
}

func firstOf(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return ""
	}
	return addrs[0].String()
}

func joinAddrs(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}

// resourceValue is a limit or request of a container, in units of the divisor, rounded up. A limit that is not set is what
// the node has.
func (b *Builder) resourceValue(pod *corev1.Pod, c *corev1.Container, ref *corev1.ResourceFieldSelector) (string, error) {
	if ref.ContainerName != "" && (c == nil || ref.ContainerName != c.Name) {
		if c = findContainer(pod, ref.ContainerName); c == nil {
			return "", fmt.Errorf("resourceFieldRef %s: the pod has no container %q", ref.Resource, ref.ContainerName)
		}
	}
	if c == nil {
		return "", fmt.Errorf("resourceFieldRef %s: containerName is needed in a volume", ref.Resource)
	}
	kind, name, _ := strings.Cut(ref.Resource, ".")
	var quantity resource.Quantity
	resourceName := corev1.ResourceName(name)
	switch kind {
	case "limits":
		quantity = c.Resources.Limits[resourceName]
		if quantity.IsZero() && !strings.HasPrefix(name, corev1.ResourceHugePagesPrefix) {
			quantity = b.allocatable()[resourceName]
		}
	case "requests":
		quantity = c.Resources.Requests[resourceName]
	}
	switch known := resourceName == corev1.ResourceCPU || resourceName == corev1.ResourceMemory || resourceName == corev1.ResourceEphemeralStorage ||
		strings.HasPrefix(name, corev1.ResourceHugePagesPrefix); {
	case !known || kind != "limits" && kind != "requests":
		return "", fmt.Errorf("resourceFieldRef %s: no such resource; known are limits and requests of cpu, memory, ephemeral-storage and hugepages-<size>", ref.Resource)
	case ref.Divisor.Sign() < 0:
		return "", fmt.Errorf("resourceFieldRef %s: divisor %s is negative", ref.Resource, ref.Divisor.String())
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = *resource.NewQuantity(1, resource.DecimalSI)
	}
	if resourceName == corev1.ResourceCPU {
		return roundUp(quantity.MilliValue(), divisor.MilliValue()), nil
	}
	return roundUp(quantity.Value(), divisor.Value()), nil
}

func roundUp(value, divisor int64) string {
	return strconv.FormatInt(int64(math.Ceil(float64(value)/float64(cmp.Or(divisor, 1)))), 10)
}

func findContainer(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		if i := slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == name }); i >= 0 {
			return &list[i]
		}
	}
	return nil
}
