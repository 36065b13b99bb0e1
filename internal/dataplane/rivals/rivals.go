// Package rivals notices other programs that forward Services on this machine, and names them.
//
// What it is: [Find] looks for what kube-proxy, Cilium, Calico and kube-router leave in a kernel. Two that translate the same addresses disagree sooner or
// later, and who looks for the reason sees only one of them.
//
// In: nftables and links over netlink, files of /proc and /sys, and where the privileges allow, cgroup programs by name. Out: names, what gave them away, and what
// to do.
//
// Invariants: looking changes nothing and loads no module: what would create a table of iptables is only asked where the table is there already, and nftables is
// ours too. decide is pure; observe.go looks.
//
// It refuses to touch what it finds.
//
// How to test: go test ./internal/dataplane/rivals makes such tables in network namespaces of its own.
package rivals

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// A Rival is another program that forwards Services, or its remains, which do so without it.
type Rival struct {
	Name string // of the program
	Sign string // what gave it away
	Fix  string // what its owner can do
}

// String is one line for a log or a person.
func (r Rival) String() string { return fmt.Sprintf("%s (%s): %s", r.Name, r.Sign, r.Fix) }

// Find looks in the network namespace of the calling thread and at the machine's BPF. The error joins what could not be looked at; what was found
// otherwise is good. It takes some milliseconds, and in proportion to the tables of iptables where there are any.
func Find(ctx context.Context) ([]Rival, error) {
	f, err := machine().observe(ctx)
	return decide(f), err
}

// facts are what was seen.
type facts struct {
	tables   []string          // of nftables: "ip kube-proxy"
	chains   []string          // of iptables, by where they are: "KUBE-SERVICES in nftables table ip nat"
	links    []string          // names
	virtual  int               // servers of IPVS
	pinned   []string          // names of pinned BPF maps
	programs map[string]string // name of a BPF program → how it is attached
}

const (
	fixKubeProxy = "stop kube-proxy on this node (in most clusters its DaemonSet in kube-system), then run kube-proxy --cleanup once, or restart the machine"
	fixCilium    = "set kubeProxyReplacement and socketLB.enabled to false in Cilium, or let Cilium forward and do not run endpointd node here"
	fixCalico    = "set bpfEnabled to false in Calico's FelixConfiguration, or let Calico forward and do not run endpointd node here"
	fixRouter    = "start kube-router with --run-service-proxy=false, then run kube-router --cleanup-config once"
	fixIPVS      = "see with ipvsadm -Ln whether addresses of Services are among them, and stop what made those"
)

// decide says who that is, in the order of names.
func decide(f facts) []Rival {
	found := map[Rival][]string{} // without Sign → signs
	add := func(name, fix, sign string) {
		r := Rival{Name: name, Fix: fix}
		if !slices.Contains(found[r], sign) {
			found[r] = append(found[r], sign)
		}
	}
	for _, table := range f.tables {
		if table == "ip kube-proxy" || table == "ip6 kube-proxy" {
			add("kube-proxy (nftables)", fixKubeProxy, "nftables table "+table)
		}
	}
	for _, chain := range f.chains {
		name, _, _ := strings.Cut(chain, " ")
		switch name { // those of the kubelet, and of others that only filter or masquerade, are no rivals
		case "KUBE-SERVICES":
			add("kube-proxy (iptables)", fixKubeProxy, "chain "+chain)
		case "KUBE-ROUTER-SERVICES":
			add("kube-router", fixRouter, "chain "+chain)
		}
	}
	ipvs := false
	for _, link := range f.links {
		switch link {
		case "kube-ipvs0":
			ipvs = true
			add("kube-proxy (IPVS)", fixKubeProxy, "interface "+link)
		case "kube-dummy-if":
			ipvs = true
			add("kube-router", fixRouter, "interface "+link)
		case "cilium_host", "cilium_net":
			add("Cilium", fixCilium, "interface "+link)
		case "bpfin.cali", "bpfout.cali":
			add("Calico (eBPF)", fixCalico, "interface "+link)
		}
	}
	if f.virtual > 0 && !ipvs {
		add("IPVS", fixIPVS, fmt.Sprintf("%d virtual servers in /proc/net/ip_vs", f.virtual))
	}
	for _, name := range f.pinned {
		switch {
		case strings.HasPrefix(name, "cilium_lb4_services"), strings.HasPrefix(name, "cilium_lb6_services"):
			add("Cilium", fixCilium, "pinned BPF map "+name)
		case strings.HasPrefix(name, "cali_v4_nat_fe"), strings.HasPrefix(name, "cali_v6_nat_fe"):
			add("Calico (eBPF)", fixCalico, "pinned BPF map "+name)
		}
	}
	for name, where := range f.programs {
		switch { // the kernel keeps 15 bytes of a name
		case strings.HasPrefix(name, "cil_sock"):
			add("Cilium", fixCilium, "BPF program "+name+" at "+where)
		case strings.HasPrefix(name, "calico_"), strings.HasPrefix(name, "cali_"):
			add("Calico (eBPF)", fixCalico, "BPF program "+name+" at "+where)
		}
	}
	var rivals []Rival
	for r, signs := range found {
		slices.Sort(signs)
		r.Sign = strings.Join(signs, ", ")
		rivals = append(rivals, r)
	}
	slices.SortFunc(rivals, func(a, b Rival) int { return strings.Compare(a.Name, b.Name) })
	return rivals
}
