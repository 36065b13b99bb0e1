package podspec

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestResolvConf(t *testing.T) {
	const own = "search example.com corp.example\nnameserver 192.0.2.1\noptions edns0 timeout:1\n"
	const cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local example.com corp.example\nnameserver 10.96.0.10\noptions ndots:5\n"
	tests := []struct {
		name    string
		change  func(*corev1.Pod)
		options func(*Options)
		want    string
		told    string
	}{
		{"ClusterFirst", nil, nil, cluster, ""},
		{"ClusterFirst with the node's network", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, nil, own, ""},
		{"ClusterFirstWithHostNet", func(p *corev1.Pod) {
			p.Spec.HostNetwork, p.Spec.DNSPolicy = true, corev1.DNSClusterFirstWithHostNet
		}, nil, cluster, ""},
		{"Default", func(p *corev1.Pod) { p.Spec.DNSPolicy = corev1.DNSDefault }, nil, own, ""},
		{"None", func(p *corev1.Pod) {
			p.Spec.DNSPolicy = corev1.DNSNone
			p.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.9"}, Searches: []string{"a.example"}}
		}, nil, "search a.example\nnameserver 192.0.2.9\n", ""},
		{"no cluster DNS", nil, func(o *Options) { o.ClusterDNS = nil }, own, "MissingClusterDNS"},
		{"both families, another domain", nil, func(o *Options) {
			o.ClusterDNS = append(o.ClusterDNS, netip.MustParseAddr("fd00:96::a"))
			o.ClusterDomain = "home.arpa"
		}, "search shop.svc.home.arpa svc.home.arpa home.arpa example.com corp.example\nnameserver 10.96.0.10\nnameserver fd00:96::a\noptions ndots:5\n", ""},
		{"dnsConfig is merged", func(p *corev1.Pod) {
			p.Spec.DNSConfig = &corev1.PodDNSConfig{
				Nameservers: []string{"10.96.0.10", "192.0.2.9"}, Searches: []string{"example.com", "new.example"},
				Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: new("2")}, {Name: "rotate"}},
			}
		}, nil, "search shop.svc.cluster.local svc.cluster.local cluster.local example.com corp.example new.example\nnameserver 10.96.0.10\nnameserver 192.0.2.9\noptions ndots:2 rotate\n", ""},
		{"too many servers", func(p *corev1.Pod) {
			p.Spec.DNSPolicy = corev1.DNSNone
			p.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"}}
		}, nil, "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n", "DNSConfigForming"},
		{"the node searches a namespace", nil, func(o *Options) {
			o.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
			text := "nameserver 10.96.0.10\nsearch default.svc.cluster.local svc.Cluster.Local cluster.local. other-cluster.local example.com corp.example\n"
			if err := os.WriteFile(o.ResolvConf, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}, strings.Replace(cluster, "example.com", "other-cluster.local example.com", 1), ""},
		{"the node has none", nil, func(o *Options) { o.ResolvConf = "/nonexistent/resolv.conf" },
			"search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b, told := newBuilderWith(t, newObjects(), func(o *Options) {
				if test.options != nil {
					test.options(o)
				}
			})
			r, err := b.resolvConf(newPod(test.change))
			if err != nil || r.String() != test.want {
				t.Errorf("got %v\n%s\nwant\n%s", err, r, test.want)
			}
			if all := strings.Join(*told, "\n"); !strings.Contains(all, test.told) || test.told == "" && all != "" {
				t.Errorf("told %q, want %q", all, test.told)
			}
		})
	}
}

func TestSearchLimits(t *testing.T) {
	b, told := newBuilder(t, newObjects())
	search := func(domains ...string) []string {
		t.Helper()
		*told = nil
		r, err := b.resolvConf(newPod(func(p *corev1.Pod) {
			p.Spec.DNSPolicy = corev1.DNSNone
			p.Spec.DNSConfig = &corev1.PodDNSConfig{Searches: domains}
		}))
		if err != nil {
			t.Fatal(err)
		}
		return r.searches
	}
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("d%d.example", i))
	}
	if got := search(many...); len(got) != maxSearches || len(*told) != 1 {
		t.Errorf("%d domains, told %q", len(got), *told)
	}
	long := strings.Repeat("x", 254)
	if got := search("a", long, "b"); !slices.Equal(got, []string{"a", "b"}) || len(*told) != 1 {
		t.Errorf("a long domain: %d domains, told %d", len(got), len(*told))
	}
	var wide []string
	for i := range 12 {
		wide = append(wide, fmt.Sprintf("%02d", i)+strings.Repeat("x", 198))
	}
	if got := search(wide...); len(strings.Join(got, " ")) > maxSearchChars || len(got) != 10 || len(*told) != 1 {
		t.Errorf("a wide line: %d domains, told %d", len(got), len(*told))
	}
}

func TestDNSConfigCannotAddLines(t *testing.T) {
	b, _ := newBuilder(t, newObjects())
	for _, config := range []corev1.PodDNSConfig{
		{Searches: []string{"a\nnameserver 192.0.2.66"}},
		{Nameservers: []string{"192.0.2.1\nsearch evil"}},
		{Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: new("1\nsearch evil")}}},
	} {
		if r, err := b.resolvConf(newPod(func(p *corev1.Pod) { p.Spec.DNSConfig = &config })); err == nil {
			t.Errorf("%+v gives\n%s", config, r)
		}
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 1.2.3.4\nsearch a. b .\noptions ndots:1 ndots:2 rotate\n")
	f.Add("; comment\n\tdomain x\nsearch\n")
	f.Fuzz(func(t *testing.T, text string) {
		r := parseResolvConf(text)
		// What is written is read back as the same.
		if again := parseResolvConf(r.String()); again.String() != r.String() {
			t.Errorf("%q: %q becomes %q", text, r, again)
		}
	})
}

func TestHostsOfTheNode(t *testing.T) {
	b, _ := newBuilder(t, newObjects())
	pod := newPod(func(p *corev1.Pod) {
		p.Spec.HostNetwork = true
		p.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.5", Hostnames: []string{"added"}}}
	})
	machine, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Skip("the machine has no hosts file")
	}
	text, err := b.hosts(pod, nil)
	if err != nil || !strings.Contains(text, string(machine)) || !strings.HasSuffix(text, "192.0.2.5\tadded\n") {
		t.Errorf("%v\n%s", err, text)
	}
	pod.Spec.HostAliases[0].Hostnames = []string{"x\n192.0.2.6 evil"}
	if text, err := b.hosts(pod, nil); err == nil {
		t.Errorf("an alias adds lines:\n%s", text)
	}
}

// A container that runs has these files mounted, so they must stay the same files.
func TestEtcFilesKeepTheirIdentity(t *testing.T) {
	b, _ := newBuilder(t, newObjects())
	pod := newPod(nil)
	if err := b.Prepare(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	hosts := filepath.Join(b.dir, "uid-1", etcFolder, "hosts")
	var before os.FileInfo
	for i, ip := range []string{"10.244.1.5", "10.244.1.6"} {
		f := facts()
		f.PodIPs = []netip.Addr{netip.MustParseAddr(ip)}
		if _, err := b.Container(t.Context(), pod, &pod.Spec.Containers[0], f); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(hosts)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && !os.SameFile(before, info) {
			t.Error("the file was replaced")
		}
		before = info
		if text := readString(t, hosts); !strings.Contains(text, ip+"\tweb\n") {
			t.Errorf("the hosts file does not have %s:\n%s", ip, text)
		}
	}
}
