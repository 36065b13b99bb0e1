package rivals

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/testkit"
)

func TestDecide(t *testing.T) {
	for _, test := range []struct {
		name string
		f    facts
		want []string // name: sign
	}{
		{"nothing", facts{}, nil},
		{
			"what is no rival", facts{
				tables: []string{"ip filter", "ip nat", "inet endpointd-services", "ip6 kube-proxy-of-mine"},
				chains: []string{
					"KUBE-KUBELET-CANARY in nftables table ip nat (iptables-nft)", "KUBE-MARK-MASQ in legacy iptables table nat",
					"KUBE-FIREWALL in legacy iptables table nat", "KUBE-ROUTER-INPUT in legacy iptables table nat",
				},
				links: []string{"lo", "eth0", "docker0", "cali0123456789a"}, pinned: []string{"cilium_policy", "endpointd"},
				programs: map[string]string{"sd_devices": "/sys/fs/cgroup", "endpointd_conne": "/sys/fs/cgroup"},
			}, nil,
		},
		{"kube-proxy, nftables", facts{tables: []string{"ip6 kube-proxy", "ip kube-proxy"}}, []string{
			"kube-proxy (nftables): nftables table ip kube-proxy, nftables table ip6 kube-proxy",
		}},
		{"kube-proxy, iptables", facts{chains: []string{"KUBE-SERVICES in legacy iptables table nat"}}, []string{
			"kube-proxy (iptables): chain KUBE-SERVICES in legacy iptables table nat",
		}},
		{"kube-proxy, IPVS", facts{links: []string{"kube-ipvs0"}, virtual: 3}, []string{"kube-proxy (IPVS): interface kube-ipvs0"}},
		{"IPVS of nobody knows whom", facts{virtual: 3}, []string{"IPVS: 3 virtual servers in /proc/net/ip_vs"}},
		{"kube-router", facts{links: []string{"kube-dummy-if"}, virtual: 3}, []string{"kube-router: interface kube-dummy-if"}},
		{
			"Cilium", facts{
				links: []string{"cilium_net", "cilium_host"}, pinned: []string{"cilium_lb4_services_v2"},
				programs: map[string]string{"cil_sock4_conne": "/run/cilium/cgroupv2"},
			}, []string{
				"Cilium: BPF program cil_sock4_conne at /run/cilium/cgroupv2, interface cilium_host, interface cilium_net, pinned BPF map cilium_lb4_services_v2",
			},
		},
		{
			"Calico", facts{links: []string{"bpfin.cali"}, pinned: []string{"cali_v4_nat_fe3"}, programs: map[string]string{"calico_connect_": "/sys/fs/cgroup"}},
			[]string{"Calico (eBPF): BPF program calico_connect_ at /sys/fs/cgroup, interface bpfin.cali, pinned BPF map cali_v4_nat_fe3"},
		},
		{"several", facts{links: []string{"cilium_host"}, tables: []string{"ip kube-proxy"}}, []string{
			"Cilium: interface cilium_host", "kube-proxy (nftables): nftables table ip kube-proxy",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, r := range decide(test.f) {
				got = append(got, r.Name+": "+r.Sign)
				if r.Fix == "" || !strings.HasPrefix(r.String(), r.Name+" (") {
					t.Errorf("%q does not say what to do", r)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("rivals (-want +got):\n%s", diff)
			}
		})
	}
}

// find looks in a place.
func (p *place) find(where places) []string {
	p.t.Helper()
	var found []string
	p.do(func() error {
		f, err := where.observe(p.t.Context())
		for _, r := range decide(f) {
			found = append(found, r.Name+": "+r.Sign)
		}
		return err
	})
	return found
}

// elsewhere are the machine's places without those that are not of a network namespace.
func elsewhere(t *testing.T) places {
	return places{proc: "/proc/thread-self", globals: filepath.Join(t.TempDir(), "none")}
}

func (p *place) tables(make func(c *nftables.Conn)) {
	p.t.Helper()
	p.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		make(c)
		return c.Flush()
	})
}

func TestNothing(t *testing.T) {
	p := newPlace(t)
	if got := p.find(elsewhere(t)); len(got) != 0 {
		t.Errorf("found %v in an empty namespace", got)
	}
	for _, names := range []string{"ip_tables_names", "ip6_tables_names"} {
		p.do(func() error {
			content, err := os.ReadFile("/proc/thread-self/net/" + names)
			if err == nil && len(content) != 0 {
				t.Errorf("looking made tables: %s has %q", names, content)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
	}
	p.tables(func(c *nftables.Conn) {
		tables, err := c.ListTables()
		if err != nil || len(tables) != 0 {
			t.Errorf("looking made tables: %v, %v", tables, err)
		}
	})
}

func TestNftables(t *testing.T) {
	p := newPlace(t)
	p.tables(func(c *nftables.Conn) {
		c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "kube-proxy"})
		c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "kube-proxy"})
		nat := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv6, Name: "nat"})
		c.AddChain(&nftables.Chain{Table: nat, Name: "KUBE-SERVICES"})
		c.AddChain(&nftables.Chain{Table: nat, Name: "KUBE-KUBELET-CANARY"})
		other := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv6, Name: "other"})
		c.AddChain(&nftables.Chain{Table: other, Name: "KUBE-ROUTER-SERVICES"})
	})
	want := []string{
		"kube-proxy (iptables): chain KUBE-SERVICES in nftables table ip6 nat (iptables-nft)",
		"kube-proxy (nftables): nftables table ip kube-proxy",
	}
	if diff := cmp.Diff(want, p.find(elsewhere(t))); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
}

func TestLinks(t *testing.T) {
	p := newPlace(t)
	p.do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cilium_host"}, PeerName: "kube-ipvs0"})
	})
	want := []string{"Cilium: interface cilium_host", "kube-proxy (IPVS): interface kube-ipvs0"}
	if diff := cmp.Diff(want, p.find(elsewhere(t))); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
}

// legacyNAT is what many kernels lack: the tables of iptables-legacy.
func legacyNAT() testkit.Feature {
	return testkit.Feature{Name: "iptables-legacy", Probe: func(context.Context) error { return errors.New("the kernel has no legacy nat table") }}
}

// TestLegacy puts a chain into the legacy nat table, as kube-proxy did, and finds it.
func TestLegacy(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6], func(t *testing.T) {
			p := newPlace(t)
			var supported bool
			p.do(func() (err error) {
				supported, err = withLegacyChain(v6, "KUBE-SERVICES")
				return err
			})
			if !supported {
				testkit.Need(t, legacyNAT())
			}
			tool := map[bool]string{false: "iptables", true: "ip6tables"}[v6]
			want := []string{"kube-proxy (iptables): chain KUBE-SERVICES in legacy " + tool + " table nat"}
			if diff := cmp.Diff(want, p.find(elsewhere(t))); diff != "" {
				t.Errorf("found (-want +got):\n%s", diff)
			}
		})
	}
}

// withLegacyChain replaces the nat table of the thread's namespace by one with a chain more. It is false if the kernel has no such tables.
func withLegacyChain(v6 bool, name string) (bool, error) {
	family, level, offsets := unix.AF_INET, unix.SOL_IP, offsetsAfter4
	if v6 {
		family, level, offsets = unix.AF_INET6, unix.SOL_IPV6, offsetsAfter6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return false, err
	}
	defer func() { _ = unix.Close(fd) }()
	info := make([]byte, infoSize)
	copy(info, "nat")
	if err := getsockopt(fd, level, getInfo, info); err != nil { // makes the table
		return false, nil //nolint:nilerr // means that there is none
	}
	size := binary.NativeEndian.Uint32(info[sizeAt:])
	entries := make([]byte, entriesTop+int(size))
	copy(entries, "nat")
	binary.NativeEndian.PutUint32(entries[tableName:], size)
	if err := getsockopt(fd, level, getEntries, entries); err != nil {
		return false, err
	}
	entries = entries[entriesTop:]

	// An entry matches everything and has one target.
	head := (offsets+4+4+7)&^7 + 16 // with comefrom and counters
	put := func(b []byte, target []byte) []byte {
		e := make([]byte, head)
		binary.NativeEndian.PutUint16(e[offsets:], uint16(head))
		binary.NativeEndian.PutUint16(e[offsets+2:], uint16(head+len(target)))
		return append(append(b, e...), target...)
	}
	begins := make([]byte, targetData+32)
	binary.NativeEndian.PutUint16(begins, uint16(len(begins)))
	copy(begins[targetNameAt:], "ERROR")
	copy(begins[targetData:], name)
	returns := make([]byte, targetData+8)
	binary.NativeEndian.PutUint16(returns, uint16(len(returns)))
	goBack := int32(-5) // XT_RETURN: -NF_REPEAT-1
	binary.NativeEndian.PutUint32(returns[targetData:], uint32(goBack))

	last := len(entries) - head - len(begins) // the last entry is an ERROR too
	table := append([]byte{}, entries[:last]...)
	table = put(put(table, begins), returns)
	table = append(table, entries[last:]...)

	replace := make([]byte, 0, len(table)+infoSize+16)
	replace = append(replace, info[:tableName+4]...) // name, valid_hooks
	count := binary.NativeEndian.Uint32(info[infoSize-8:])
	replace = binary.NativeEndian.AppendUint32(replace, count+2)
	replace = binary.NativeEndian.AppendUint32(replace, uint32(len(table)))
	replace = append(replace, info[tableName+4:tableName+44]...) // hook_entry, underflow
	replace = binary.NativeEndian.AppendUint32(replace, count)
	counters := make([]byte, 16*(count+1))
	for len(replace)%8 != 0 {
		replace = append(replace, 0)
	}
	replace = binary.NativeEndian.AppendUint64(replace, uint64(uintptr(unsafe.Pointer(&counters[0]))))
	replace = append(replace, table...)
	const setReplace = 64
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), setReplace,
		uintptr(unsafe.Pointer(&replace[0])), uintptr(len(replace)), 0)
	runtime.KeepAlive(counters)
	if errno != 0 {
		return false, fmt.Errorf("replace the nat table: %w", errno)
	}
	return true, nil
}

// TestFiles are the signs in /proc and /sys, from files like the kernel's.
func TestFiles(t *testing.T) {
	p := newPlace(t)
	where := places{proc: t.TempDir(), globals: t.TempDir(), cgroups: []string{t.TempDir(), "/nowhere"}}
	if err := os.Mkdir(filepath.Join(where.proc, "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{
		where.proc + "/net/ip_vs": "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n" +
			"TCP  0A600001:01BB rr \n  -> 0A010001:01BB      Masq    1      0          0         \nUDP  0A60000A:0035 rr \n",
		where.globals + "/cilium_lb6_services_v2": "", where.globals + "/cilium_policy_1": "",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"Cilium: pinned BPF map cilium_lb6_services_v2", "IPVS: 2 virtual servers in /proc/net/ip_vs"}
	if diff := cmp.Diff(want, p.find(where)); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
}

// TestMachine holds that Find works where it will: with what the machine has, as somebody who may not see everything.
func TestMachine(t *testing.T) {
	p := newPlace(t)
	p.do(func() error {
		_, err := Find(t.Context())
		return err
	})
}

// FuzzChains holds that no table of the kernel makes the reader panic or turn in circles.
func FuzzChains(f *testing.F) {
	f.Add(make([]byte, 200), false)
	f.Add([]byte{}, true)
	entry := make([]byte, 112+32+32)
	binary.NativeEndian.PutUint16(entry[offsetsAfter4:], 112)
	binary.NativeEndian.PutUint16(entry[offsetsAfter4+2:], uint16(len(entry)))
	copy(entry[112+targetNameAt:], "ERROR")
	copy(entry[112+targetData:], "KUBE-SERVICES")
	f.Add(append(entry, entry...), false)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		chains, err := chainsOf(b, v6)
		for _, c := range chains {
			if !strings.HasPrefix(c, "KUBE-") {
				t.Errorf("chain %q", c)
			}
		}
		if err == nil && len(b) > 0 && len(b) < offsetsAfter4+4 {
			t.Errorf("%d bytes pass for a table", len(b))
		}
	})
}
