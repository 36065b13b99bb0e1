package rivals

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"

	"github.com/endpointd/endpointd/internal/dataplane/dptest"
)

// TestPrograms attaches programs with others' names to a cgroup that was made for it, and finds them.
func TestPrograms(t *testing.T) {
	dptest.NeedBPF(t)
	cgroup, err := os.MkdirTemp(ownCgroup(t), "rivals-") //nolint:usetesting // a cgroup, which no folder of the test can be
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Remove(cgroup); err != nil {
			t.Error(err)
		}
	}()
	attach := func(name string, at ebpf.AttachType) {
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: name, Type: ebpf.CGroupSockAddr, AttachType: at, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = program.Close() }()
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: at, Program: program})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	p := newPlace(t)
	where := elsewhere(t)
	where.cgroups = []string{cgroup}
	attach("somebodys", ebpf.AttachCGroupInet4Connect)
	if got := p.find(where); len(got) != 0 {
		t.Errorf("found %v", got)
	}
	attach("cil_sock4_connect", ebpf.AttachCGroupInet4Connect)
	attach("calico_connect_v6", ebpf.AttachCGroupInet6Connect)
	want := []string{
		"Calico (eBPF): BPF program calico_connect_ at " + cgroup, "Cilium: BPF program cil_sock4_conne at " + cgroup,
	}
	if diff := cmp.Diff(want, p.find(where)); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
}

// ownCgroup is the folder of this process's cgroup, version 2; dptest made it.
func ownCgroup(t *testing.T) string {
	t.Helper()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mounts.Close() }()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		if fields := strings.Fields(before); len(fields) > 4 && strings.HasPrefix(after, "cgroup2 ") {
			for line := range strings.Lines(string(own)) {
				if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
					return filepath.Join(fields[4], path)
				}
			}
		}
	}
	t.Fatal("no cgroup of version 2 is mounted")
	return ""
}
