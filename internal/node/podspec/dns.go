package podspec

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// What a resolv.conf may have (k8s.io/kubernetes/pkg/apis/core/validation): resolvers of old C libraries crash on more.
const (
	maxServers     = 3
	maxSearches    = 32
	maxSearchChars = 2048
	maxDomain      = 253
	maxResolvConf  = 10 << 20 // bytes that are read of the node's own
)

// clusterOptions have a name with fewer dots than five be looked for in the search domains first, so that service.namespace works.
const clusterOptions = "ndots:5"

// resolvConf is the content of a resolv.conf.
type resolvConf struct {
	servers, searches, options []string
}

// parseResolvConf reads one as resolvers do: servers add up, the last search line counts, options add up by name.
func parseResolvConf(text string) resolvConf {
	var r resolvConf
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			r.servers = append(r.servers, fields[1])
		case "search", "domain":
			r.searches = nil
			for _, domain := range fields[1:] {
				// With and without the last dot it is the same domain; the root alone is searched anyway.
				if domain = strings.TrimRight(domain, "."); domain != "" {
					r.searches = append(r.searches, domain)
				}
			}
		case "options":
			for _, option := range fields[1:] {
				r.setOption(option)
			}
		}
	}
	return r
}

// setOption adds an option, or replaces the one of the same name.
func (r *resolvConf) setOption(option string) {
	name, _, _ := strings.Cut(option, ":")
	i := slices.IndexFunc(r.options, func(o string) bool {
		have, _, _ := strings.Cut(o, ":")
		return have == name
	})
	if i < 0 {
		r.options = append(r.options, option)
		return
	}
	r.options[i] = option
}

func (r resolvConf) String() string {
	var b strings.Builder
	if len(r.searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.searches, " "))
	}
	for _, server := range r.servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(r.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.options, " "))
	}
	return b.String()
}

// resolvConf is that of a pod, by its dnsPolicy and dnsConfig.
func (b *Builder) resolvConf(pod *corev1.Pod) (resolvConf, error) {
	var r resolvConf
	policy := pod.Spec.DNSPolicy
	if policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork {
		policy = corev1.DNSDefault
	}
	if policy != corev1.DNSNone {
		text, err := readText(b.options.ResolvConf, maxResolvConf)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return resolvConf{}, fmt.Errorf("the node's resolver configuration: %w", err)
		}
		r = parseResolvConf(text)
	}
	cluster := policy != corev1.DNSNone && policy != corev1.DNSDefault
	if cluster && len(b.options.ClusterDNS) == 0 {
		b.tell(pod, "MissingClusterDNS", "this node has no address of a cluster DNS server, so the pod gets the policy Default instead of %s", policy)
		cluster = false
	}
	if cluster {
		r.servers = nil
		for _, a := range b.options.ClusterDNS {
			r.servers = append(r.servers, a.String())
		}
		services := "svc." + b.options.ClusterDomain
		r.searches = slices.Concat([]string{pod.Namespace + "." + services, services, b.options.ClusterDomain}, outside(r.searches, b.options.ClusterDomain))
		r.options = []string{clusterOptions}
	}
	if own := pod.Spec.DNSConfig; own != nil {
		r.servers = append(r.servers, own.Nameservers...)
		r.searches = append(r.searches, own.Searches...)
		for _, o := range own.Options {
			option := o.Name
			if o.Value != nil && *o.Value != "" {
				option += ":" + *o.Value
			}
			r.setOption(option)
		}
	}
	return b.limited(pod, r)
}

// outside are the domains that are not the cluster's. A node that resolves Services itself may search those of a namespace, and a pod must not
// find that namespace's Services by their short names.
func outside(searches []string, cluster string) []string {
	below := "." + strings.ToLower(cluster)
	return slices.DeleteFunc(slices.Clone(searches), func(domain string) bool { return strings.HasSuffix("."+strings.ToLower(domain), below) })
}

// limited leaves out what is too much for resolvers, and tells.
func (b *Builder) limited(pod *corev1.Pod, r resolvConf) (resolvConf, error) {
	r.servers, r.searches = unique(r.servers), unique(r.searches)
	for _, word := range slices.Concat(r.servers, r.searches, r.options) {
		if strings.ContainsAny(word, " \t\r\n\x00") {
			return resolvConf{}, fmt.Errorf("spec.dnsConfig: %q has white space in it, which would end the entry; remove it", word)
		}
	}
	if len(r.servers) > maxServers {
		r.servers = r.servers[:maxServers]
		b.tell(pod, "DNSConfigForming", "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: %s", strings.Join(r.servers, " "))
	}
	kept, length := []string(nil), -1
	for _, domain := range r.searches[:min(len(r.searches), maxSearches)] {
		if len(domain) > maxDomain {
			continue
		}
		if length+1+len(domain) > maxSearchChars {
			break
		}
		kept, length = append(kept, domain), length+1+len(domain)
	}
	if len(kept) < len(r.searches) {
		b.tell(pod, "DNSConfigForming", "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: %s", strings.Join(kept, " "))
	}
	r.searches = kept
	return r, nil
}

// unique is the list with the first of equal ones.
func unique(list []string) []string {
	var kept []string
	for _, s := range list {
		if !slices.Contains(kept, s) {
			kept = append(kept, s)
		}
	}
	return kept
}

// readText reads a file of the node, up to limit bytes.
func readText(path string, limit int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit))
	return string(data), err
}
