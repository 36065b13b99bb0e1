package rivals

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// places are where observe looks.
type places struct {
	proc    string   // /proc/thread-self: that of the process is in the namespace of its first thread
	globals string   // folder of pinned maps
	cgroups []string // roots of cgroup v2 hierarchies; those that are missing are left out
}

func machine() places {
	return places{
		proc: "/proc/thread-self", globals: "/sys/fs/bpf/tc/globals",
		cgroups: []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/run/cilium/cgroupv2"},
	}
}

// observe collects what can be seen; the error joins what could not.
func (p places) observe(ctx context.Context) (facts, error) {
	var f facts
	var failed []error
	for _, look := range []func(*facts) error{p.nftables, p.legacy, p.links, p.ipvs, p.pinned, p.programs} {
		if err := ctx.Err(); err != nil {
			return f, errors.Join(append(failed, err)...)
		}
		if err := look(&f); err != nil {
			failed = append(failed, err)
		}
	}
	return f, errors.Join(failed...)
}

// natFamilies are the families that iptables has a nat table in.
func natFamilies() map[nftables.TableFamily]string {
	return map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}
}

// nftables sees tables, and chains of iptables-nft.
func (p places) nftables(f *facts) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("look at nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range tables {
		family, known := natFamilies()[t.Family]
		if !known {
			continue
		}
		f.tables = append(f.tables, family+" "+t.Name)
		if t.Name != "nat" {
			continue
		}
		chains, err := c.ListChainsOfTableFamily(t.Family)
		if err != nil {
			return fmt.Errorf("list nftables chains: %w", err)
		}
		for _, chain := range chains {
			if chain.Table.Name == "nat" && strings.HasPrefix(chain.Name, "KUBE-") {
				f.chains = append(f.chains, fmt.Sprintf("%s in nftables table %s nat (iptables-nft)", chain.Name, family))
			}
		}
	}
	return nil
}

// legacy sees chains of iptables-legacy. Asking for a table would make it, and load its module: it must be there already.
func (p places) legacy(f *facts) error {
	var failed []error
	for _, v6 := range []bool{false, true} {
		names := map[bool]string{false: "ip_tables_names", true: "ip6_tables_names"}[v6]
		content, err := os.ReadFile(filepath.Join(p.proc, "net", names))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("look for iptables-legacy: %w", err))
			continue
		}
		for table := range strings.FieldsSeq(string(content)) {
			if table != "nat" {
				continue
			}
			chains, err := legacyChains(v6, table)
			if err != nil {
				failed = append(failed, fmt.Errorf("read the legacy iptables table %s: %w", table, err))
			}
			for _, chain := range chains {
				f.chains = append(f.chains, chain+" in legacy "+map[bool]string{false: "iptables", true: "ip6tables"}[v6]+" table "+table)
			}
		}
	}
	return errors.Join(failed...)
}

func (p places) links(f *facts) error {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // one that comes or goes meanwhile is not one of those sought
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		f.links = append(f.links, l.Attrs().Name)
	}
	return nil
}

// ipvs counts the lines of virtual servers: they begin with a protocol, and those of real servers with an arrow.
func (p places) ipvs(f *facts) error {
	file, err := os.Open(filepath.Join(p.proc, "net", "ip_vs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for IPVS: %w", err)
	}
	defer func() { _ = file.Close() }() // read only
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		switch kind, _, _ := strings.Cut(lines.Text(), " "); kind {
		case "TCP", "UDP", "SCTP", "FWM":
			f.virtual++
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read IPVS: %w", err)
	}
	return nil
}

func (p places) pinned(f *facts) error {
	entries, err := os.ReadDir(p.globals)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil // who may not look there cannot run BPF either; links and programs tell as much
	}
	if err != nil {
		return fmt.Errorf("look for pinned BPF maps: %w", err)
	}
	for _, e := range entries {
		f.pinned = append(f.pinned, e.Name())
	}
	return nil
}

// programs sees what is attached to connect at the roots of cgroups. Without CAP_BPF there is nothing to see, and no error.
func (p places) programs(f *facts) error {
	f.programs = map[string]string{}
	for _, path := range p.cgroups {
		if err := connectPrograms(path, f.programs); err != nil {
			return err
		}
	}
	return nil
}

func connectPrograms(path string, found map[string]string) error {
	var kind unix.Statfs_t
	if err := unix.Statfs(path, &kind); err != nil || kind.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil // not on this machine
	}
	cgroup, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("look for BPF programs: %w", err)
	}
	defer func() { _ = cgroup.Close() }() // read only
	for _, at := range []ebpf.AttachType{ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect} {
		result, err := link.QueryPrograms(link.QueryOptions{Target: int(cgroup.Fd()), Attach: at})
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) || errors.Is(err, ebpf.ErrNotSupported) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for BPF programs at %s: %w", path, err)
		}
		for _, attached := range result.Programs {
			name, err := programName(attached.ID)
			if err != nil {
				return fmt.Errorf("look for BPF programs at %s: %w", path, err)
			}
			if name != "" {
				found[name] = path
			}
		}
	}
	return nil
}

// programName is "" if the program is gone, or may not be looked at.
func programName(id ebpf.ProgramID) (string, error) {
	program, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = program.Close() }() // closes a descriptor, and the program stays
	info, err := program.Info()
	if err != nil {
		return "", err
	}
	return info.Name, nil
}
