package manifest

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// findings collects what is wrong with a pod, each with the path of the field.
type findings []error

func (f *findings) addf(format string, args ...any) { *f = append(*f, fmt.Errorf(format, args...)) }

func (f *findings) name(field, value string, check func(string) []string) {
	for _, wrong := range check(value) {
		f.addf("%s %q: %s", field, value, wrong)
	}
}

// validate finds what would make a pod not run. The API server looks closer, when it gets the mirror pod.
func validate(p *corev1.Pod) error {
	f := &findings{}
	f.name("metadata.name", p.Name, validation.IsDNS1123Subdomain)
	f.name("metadata.namespace", p.Namespace, validation.IsDNS1123Label)
	for key, value := range p.Labels {
		f.name("metadata.labels", key, validation.IsQualifiedName)
		f.name("metadata.labels["+key+"]", value, validation.IsValidLabelValue)
	}
	s := &p.Spec
	if len(s.Containers) == 0 {
		f.addf("spec.containers: at least one is needed")
	}
	switch s.RestartPolicy {
	case corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever:
	default:
		f.addf("spec.restartPolicy %q: want Always, OnFailure or Never", s.RestartPolicy)
	}
	if *s.TerminationGracePeriodSeconds < 0 {
		f.addf("spec.terminationGracePeriodSeconds: must not be negative")
	}
	if s.Hostname != "" {
		f.name("spec.hostname", s.Hostname, validation.IsDNS1123Label)
	}
	if len(s.EphemeralContainers) > 0 {
		f.addf("spec.ephemeralContainers: a pod cannot begin with them")
	}
	volumes := f.volumes(s.Volumes)
	f.containers(s, volumes)
	f.references(s)
	return errors.Join(*f...)
}

func (f *findings) volumes(all []corev1.Volume) map[string]bool {
	names := map[string]bool{}
	for i, v := range all {
		at := fmt.Sprintf("spec.volumes[%d]", i)
		f.name(at+".name", v.Name, validation.IsDNS1123Label)
		if names[v.Name] {
			f.addf("%s.name %q: is there twice", at, v.Name)
		}
		names[v.Name] = true
		if v.HostPath != nil && !path.IsAbs(v.HostPath.Path) {
			f.addf("%s.hostPath.path %q: must begin with /", at, v.HostPath.Path)
		}
	}
	return names
}

func (f *findings) containers(s *corev1.PodSpec, volumes map[string]bool) {
	names, hostPorts := map[string]bool{}, map[string]bool{}
	check := func(at string, c *corev1.Container, init bool) {
		f.name(at+".name", c.Name, validation.IsDNS1123Label)
		if names[c.Name] {
			f.addf("%s.name %q: is there twice", at, c.Name)
		}
		names[c.Name] = true
		if strings.TrimSpace(c.Image) != c.Image || c.Image == "" {
			f.addf("%s.image %q: must be a name without spaces around it", at, c.Image)
		}
		for i, e := range c.Env {
			if e.Name == "" || strings.Contains(e.Name, "=") {
				f.addf("%s.env[%d].name %q: must be a name without =", at, i, e.Name)
			}
		}
		f.ports(at, c.Ports, hostPorts)
		targets := map[string]bool{}
		for i, m := range c.VolumeMounts {
			at := fmt.Sprintf("%s.volumeMounts[%d]", at, i)
			if !volumes[m.Name] {
				f.addf("%s.name %q: no such volume", at, m.Name)
			}
			if m.MountPath == "" || targets[m.MountPath] {
				f.addf("%s.mountPath %q: must be given, and once", at, m.MountPath)
			}
			targets[m.MountPath] = true
		}
		sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		if init && !sidecar && (c.LivenessProbe != nil || c.ReadinessProbe != nil || c.StartupProbe != nil || c.Lifecycle != nil) {
			f.addf("%s: an init container without restartPolicy Always has no probes and no lifecycle", at)
		}
		f.probe(at+".livenessProbe", c.LivenessProbe, true)
		f.probe(at+".readinessProbe", c.ReadinessProbe, false)
		f.probe(at+".startupProbe", c.StartupProbe, true)
	}
	for i := range s.InitContainers {
		check(fmt.Sprintf("spec.initContainers[%d]", i), &s.InitContainers[i], true)
	}
	for i := range s.Containers {
		check(fmt.Sprintf("spec.containers[%d]", i), &s.Containers[i], false)
	}
}

func (f *findings) ports(at string, ports []corev1.ContainerPort, hostPorts map[string]bool) {
	names := map[string]bool{}
	for i, p := range ports {
		at := fmt.Sprintf("%s.ports[%d]", at, i)
		for _, wrong := range validation.IsValidPortNum(int(p.ContainerPort)) {
			f.addf("%s.containerPort %d: %s", at, p.ContainerPort, wrong)
		}
		if p.Name != "" {
			f.name(at+".name", p.Name, validation.IsValidPortName)
			if names[p.Name] {
				f.addf("%s.name %q: is there twice", at, p.Name)
			}
			names[p.Name] = true
		}
		if !slices.Contains([]corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}, p.Protocol) {
			f.addf("%s.protocol %q: want TCP, UDP or SCTP", at, p.Protocol)
		}
		if p.HostPort == 0 {
			continue
		}
		for _, wrong := range validation.IsValidPortNum(int(p.HostPort)) {
			f.addf("%s.hostPort %d: %s", at, p.HostPort, wrong)
		}
		key := fmt.Sprintf("%s:%d/%s", p.HostIP, p.HostPort, p.Protocol)
		if hostPorts[key] {
			f.addf("%s.hostPort %d: is there twice", at, p.HostPort)
		}
		hostPorts[key] = true
	}
}

func (f *findings) probe(at string, p *corev1.Probe, once bool) {
	if p == nil {
		return
	}
	handlers := 0
	for _, given := range []bool{p.Exec != nil, p.HTTPGet != nil, p.TCPSocket != nil, p.GRPC != nil} {
		if given {
			handlers++
		}
	}
	if handlers != 1 {
		f.addf("%s: needs one of exec, httpGet, tcpSocket and grpc, has %d", at, handlers)
	}
	if min(p.InitialDelaySeconds, p.TimeoutSeconds, p.PeriodSeconds, p.SuccessThreshold, p.FailureThreshold) < 0 {
		f.addf("%s: times and thresholds must not be negative", at)
	}
	if once && p.SuccessThreshold != 1 {
		f.addf("%s.successThreshold %d: must be 1", at, p.SuccessThreshold)
	}
}

// references finds what can only be had from the API. A static pod runs without it, and its mirror pod may not name such
// things (Kubernetes: "Static Pods").
func (f *findings) references(s *corev1.PodSpec) {
	refuse := func(at string, is bool) {
		if is {
			f.addf("%s: a static pod cannot use objects of the API; write what it needs into the pod, or into files for hostPath", at)
		}
	}
	refuse("spec.serviceAccountName", s.ServiceAccountName != "" || s.DeprecatedServiceAccount != "")
	refuse("spec.imagePullSecrets", len(s.ImagePullSecrets) > 0)
	refuse("spec.resourceClaims", len(s.ResourceClaims) > 0)
	for i, v := range s.Volumes {
		at := fmt.Sprintf("spec.volumes[%d]", i)
		refuse(at, v.ConfigMap != nil || v.Secret != nil || v.PersistentVolumeClaim != nil || v.Ephemeral != nil || v.CSI != nil)
		if v.Projected == nil {
			continue
		}
		for j, source := range v.Projected.Sources {
			refuse(fmt.Sprintf("%s.projected.sources[%d]", at, j), source.DownwardAPI == nil)
		}
	}
	check := func(list string, all []corev1.Container) {
		for i, c := range all {
			at := fmt.Sprintf("%s[%d]", list, i)
			refuse(at+".envFrom", len(c.EnvFrom) > 0)
			for j, e := range c.Env {
				from := e.ValueFrom
				refuse(fmt.Sprintf("%s.env[%d].valueFrom", at, j), from != nil && (from.ConfigMapKeyRef != nil || from.SecretKeyRef != nil))
			}
		}
	}
	check("spec.initContainers", s.InitContainers)
	check("spec.containers", s.Containers)
}
