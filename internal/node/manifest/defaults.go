package manifest

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// setDefaults fills in what the API server would (core/v1, "Defaulting"), because a static pod runs without one.
func setDefaults(s *corev1.PodSpec) {
	def(&s.RestartPolicy, corev1.RestartPolicyAlways)
	def(&s.DNSPolicy, corev1.DNSClusterFirst)
	def(&s.SchedulerName, corev1.DefaultSchedulerName)
	point(&s.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds)
	point(&s.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	point(&s.SecurityContext, corev1.PodSecurityContext{})
	for i := range s.InitContainers {
		containerDefaults(&s.InitContainers[i], s.HostNetwork)
	}
	for i := range s.Containers {
		containerDefaults(&s.Containers[i], s.HostNetwork)
	}
	for i := range s.Volumes {
		volumeDefaults(&s.Volumes[i].VolumeSource)
	}
	// Nobody can move a static pod, so no taint may evict it.
	s.Tolerations = append(s.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
}

// def sets a string that is empty, or a number that is zero.
func def[T comparable](field *T, value T) {
	if *field == *new(T) {
		*field = value
	}
}

// point sets a pointer that is nil.
func point[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

func containerDefaults(c *corev1.Container, hostNetwork bool) {
	def(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	def(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	def(&c.ImagePullPolicy, pullPolicy(c.Image))
	for i := range c.Ports {
		def(&c.Ports[i].Protocol, corev1.ProtocolTCP)
		if hostNetwork {
			def(&c.Ports[i].HostPort, c.Ports[i].ContainerPort)
		}
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil && from.FieldRef != nil {
			def(&from.FieldRef.APIVersion, "v1")
		}
	}
	for name, limit := range c.Resources.Limits {
		if c.Resources.Requests == nil {
			c.Resources.Requests = corev1.ResourceList{}
		}
		if _, ok := c.Resources.Requests[name]; !ok {
			c.Resources.Requests[name] = limit.DeepCopy()
		}
	}
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p == nil {
			continue
		}
		def(&p.TimeoutSeconds, 1)
		def(&p.PeriodSeconds, 10)
		def(&p.SuccessThreshold, 1)
		def(&p.FailureThreshold, 3)
		httpDefaults(p.HTTPGet)
		if p.GRPC != nil {
			point(&p.GRPC.Service, "")
		}
	}
	if c.Lifecycle != nil {
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil {
				httpDefaults(h.HTTPGet)
			}
		}
	}
}

func httpDefaults(h *corev1.HTTPGetAction) {
	if h != nil {
		def(&h.Path, "/")
		def(&h.Scheme, corev1.URISchemeHTTP)
	}
}

// pullPolicy is Always for the tag latest, which an image without tag and digest has.
func pullPolicy(image string) corev1.PullPolicy {
	if strings.Contains(image, "@") {
		return corev1.PullIfNotPresent
	}
	_, tag, tagged := strings.Cut(image[strings.LastIndex(image, "/")+1:], ":")
	if !tagged || tag == "latest" {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

func volumeDefaults(v *corev1.VolumeSource) {
	if *v == (corev1.VolumeSource{}) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	if v.HostPath != nil {
		point(&v.HostPath.Type, corev1.HostPathUnset)
	}
	if v.DownwardAPI != nil {
		point(&v.DownwardAPI.DefaultMode, corev1.DownwardAPIVolumeSourceDefaultMode)
		for i := range v.DownwardAPI.Items {
			if ref := v.DownwardAPI.Items[i].FieldRef; ref != nil {
				def(&ref.APIVersion, "v1")
			}
		}
	}
	if v.Projected != nil {
		point(&v.Projected.DefaultMode, corev1.ProjectedVolumeSourceDefaultMode)
		for _, source := range v.Projected.Sources {
			if source.DownwardAPI == nil {
				continue
			}
			for i := range source.DownwardAPI.Items {
				if ref := source.DownwardAPI.Items[i].FieldRef; ref != nil {
					def(&ref.APIVersion, "v1")
				}
			}
		}
	}
}
