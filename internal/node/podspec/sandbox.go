package podspec

import (
	"fmt"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/component-helpers/resource"

	"github.com/endpointd/endpointd/internal/node/container"
)

// hostnameMax is the length of a host name that the kernel takes (__NEW_UTS_LEN, less one that the kubelet leaves).
const hostnameMax = 63

// Sandbox is what the containers of a pod share. Its Labels are empty.
func (b *Builder) Sandbox(pod *corev1.Pod) (container.Sandbox, error) {
	fail := func(format string, args ...any) (container.Sandbox, error) {
		return container.Sandbox{}, refuse(ReasonSandbox, "pod %s/%s: "+format, append([]any{pod.Namespace, pod.Name}, args...)...)
	}
	if _, err := b.podDir(string(pod.UID)); err != nil {
		return fail("%w", err)
	}
	if err := supportedPod(pod); err != nil {
		return fail("%w", err)
	}
	hostname, _, err := b.hostname(pod)
	if err != nil {
		return fail("%w", err)
	}
	if isTrue(pod.Spec.SetHostnameAsFQDN) {
		if hostname, err = b.fqdn(pod); err != nil {
			return fail("%w", err)
		}
	}
	sysctls, err := b.sysctls(pod)
	if err != nil {
		return container.Sandbox{}, err
	}
	return container.Sandbox{
		UID: string(pod.UID), Namespace: pod.Namespace, Name: pod.Name,
		Hostname:              hostname,
		HostNetwork:           pod.Spec.HostNetwork,
		HostPID:               pod.Spec.HostPID,
		HostIPC:               pod.Spec.HostIPC,
		ShareProcessNamespace: isTrue(pod.Spec.ShareProcessNamespace),
		Sysctls:               sysctls,
		Resources:             b.podResources(pod),
	}, nil
}

// supportedPod refuses what a pod asks for and would silently not get.
func supportedPod(pod *corev1.Pod) error {
	if pod.Spec.OS != nil && pod.Spec.OS.Name != corev1.Linux {
		return fmt.Errorf("spec.os.name is %q: this node runs linux; give the pod a node of that system", pod.Spec.OS.Name)
	}
	if pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers {
		return fmt.Errorf("spec.hostUsers is false: a pod cannot have a user namespace of its own here; leave hostUsers out")
	}
	if len(pod.Spec.ResourceClaims) > 0 {
		return fmt.Errorf("spec.resourceClaims: devices are not assigned here; remove the claims")
	}
	if s := pod.Spec.SecurityContext; s != nil {
		return supportedProfiles("spec.securityContext", s.SeccompProfile, s.AppArmorProfile, s.WindowsOptions)
	}
	return nil
}

// hostname is the pod's, and the domain that makes it a whole name; "" = none.
func (b *Builder) hostname(pod *corev1.Pod) (host, domain string, err error) {
	if pod.Spec.HostNetwork {
		host, err := os.Hostname()
		return host, "", err
	}
	if override := pod.Spec.HostnameOverride; override != nil {
		if wrong := validation.IsDNS1123Subdomain(*override); len(wrong) > 0 {
			return "", "", fmt.Errorf("spec.hostnameOverride %q: %s", *override, strings.Join(wrong, "; "))
		}
		return shortHostname(*override), "", nil
	}
	host = pod.Name
	if pod.Spec.Hostname != "" {
		host = pod.Spec.Hostname
		if wrong := validation.IsDNS1123Label(host); len(wrong) > 0 {
			return "", "", fmt.Errorf("spec.hostname %q: %s", host, strings.Join(wrong, "; "))
		}
	}
	if pod.Spec.Subdomain != "" {
		if wrong := validation.IsDNS1123Label(pod.Spec.Subdomain); len(wrong) > 0 {
			return "", "", fmt.Errorf("spec.subdomain %q: %s", pod.Spec.Subdomain, strings.Join(wrong, "; "))
		}
		domain = pod.Spec.Subdomain + "." + pod.Namespace + ".svc." + b.options.ClusterDomain
	}
	return shortHostname(host), domain, nil
}

// fqdn is the whole name where there is a domain. Unlike a short name it is not cut: half a name is another's.
func (b *Builder) fqdn(pod *corev1.Pod) (string, error) {
	host, domain, err := b.hostname(pod)
	if err != nil || domain == "" {
		return host, err
	}
	name := host + "." + domain
	if len(name) > hostnameMax+1 {
		return "", fmt.Errorf("spec.setHostnameAsFQDN: %q has %d characters and the kernel takes %d; shorten the pod's, the subdomain's or the namespace's name", name, len(name), hostnameMax+1)
	}
	return name, nil
}

func shortHostname(name string) string {
	if len(name) > hostnameMax {
		name = strings.TrimRight(name[:hostnameMax], "-.")
	}
	return name
}

// safeSysctls are those that are the pod's own and harm nobody else
// (https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/, "Safe and Unsafe Sysctls").
func safeSysctls() []string {
	return []string{
		"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
		"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
		"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
		"net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
	}
}

// sysctls are those of the pod, with dots, when each is allowed and belongs to a namespace that is the pod's own.
func (b *Builder) sysctls(pod *corev1.Pod) (map[string]string, error) {
	if pod.Spec.SecurityContext == nil || len(pod.Spec.SecurityContext.Sysctls) == 0 {
		return nil, nil
	}
	values := make(map[string]string, len(pod.Spec.SecurityContext.Sysctls))
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		name := dotted(s.Name)
		var fix string
		switch inNet, inIPC := strings.HasPrefix(name, "net."), ipcSysctl(name); {
		case !inNet && !inIPC:
			fix = "it is the whole machine's; set it there"
		case inNet && pod.Spec.HostNetwork:
			fix = "with hostNetwork it would be the node's; leave one of both out"
		case inIPC && pod.Spec.HostIPC:
			fix = "with hostIPC it would be the node's; leave one of both out"
		case !b.sysctlAllowed(name):
			fix = "it is not among the safe ones and this node allows no others by that name; allow it on the node, or leave it out"
		}
		if fix != "" {
			return nil, refuse(ReasonSysctl, "pod %s/%s: forbidden sysctl: %q: %s", pod.Namespace, pod.Name, s.Name, fix)
		}
		values[name] = s.Value
	}
	return values, nil
}

// dotted is a sysctl's name with dots between its parts. When the first separator is a slash, dots are within parts.
func dotted(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '.' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '/':
			return '.'
		case '.':
			return '/'
		}
		return r
	}, name)
}

func ipcSysctl(name string) bool {
	return strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") || name == "kernel.sem" || strings.HasPrefix(name, "fs.mqueue.")
}

func (b *Builder) sysctlAllowed(name string) bool {
	return slices.ContainsFunc(slices.Concat(safeSysctls(), b.options.UnsafeSysctls), func(allowed string) bool {
		prefix, wildcard := strings.CutSuffix(allowed, "*")
		return name == allowed || wildcard && strings.HasPrefix(name, prefix)
	})
}

// podResources are the limits of all containers together. As with the kubelet, there is one only where each container has one.
func (b *Builder) podResources(pod *corev1.Pod) container.Resources {
	everyCPU, everyMemory := true, true
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		everyCPU = everyCPU && !c.Resources.Limits.Cpu().IsZero()
		everyMemory = everyMemory && !c.Resources.Limits.Memory().IsZero()
	}
	limits := resource.PodLimits(pod, resource.PodResourcesOptions{})
	if own := pod.Spec.Resources; own != nil {
		everyCPU = everyCPU || !own.Limits.Cpu().IsZero()
		everyMemory = everyMemory || !own.Limits.Memory().IsZero()
	}
	requests := resource.PodRequests(pod, resource.PodResourcesOptions{})
	r := container.Resources{CPUShares: shares(requests.Cpu().MilliValue()), PIDs: b.options.PodPIDs}
	if everyCPU {
		r.CPUMillis = quota(limits.Cpu().MilliValue())
	}
	if everyMemory {
		r.MemoryBytes = limits.Memory().Value()
	}
	return r
}

// containerResources are the limits of one container.
func containerResources(c *corev1.Container) container.Resources {
	cpu := c.Resources.Requests.Cpu()
	if _, requested := c.Resources.Requests[corev1.ResourceCPU]; !requested {
		cpu = c.Resources.Limits.Cpu()
	}
	return container.Resources{
		CPUMillis:   quota(c.Resources.Limits.Cpu().MilliValue()),
		CPUShares:   shares(cpu.MilliValue()),
		MemoryBytes: c.Resources.Limits.Memory().Value(),
	}
}

const (
	sharesPerCore        = 1024
	sharesMin, sharesMax = 2, 262144 // the kernel's
	// quotaMin is 1 ms of the usual period of 100 ms, the least that the kernel takes.
	quotaMin = 10
)

// shares is the weight of a CPU request, as cgroup v1's cpu.shares.
func shares(milli int64) int64 {
	if milli > sharesMax*1000/sharesPerCore {
		return sharesMax
	}
	return max(milli*sharesPerCore/1000, sharesMin)
}

// quota is a CPU limit that the kernel takes; zero stays none.
func quota(milli int64) int64 {
	if milli <= 0 {
		return 0
	}
	return max(milli, quotaMin)
}
