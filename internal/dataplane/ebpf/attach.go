package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hook is a program and where it is attached. Those that show clients what they dialled come first.
type hook struct {
	name    string
	attach  ebpf.AttachType
	program *ebpf.Program
	id      ebpf.ProgramID
}

// hooks are what the programs are for.
func hooks(p *programPrograms) ([]hook, error) {
	all := []hook{
		{name: "getpeername4", attach: ebpf.AttachCgroupInet4GetPeername, program: p.Getpeername4},
		{name: "getpeername6", attach: ebpf.AttachCgroupInet6GetPeername, program: p.Getpeername6},
		{name: "recvmsg4", attach: ebpf.AttachCGroupUDP4Recvmsg, program: p.Recvmsg4},
		{name: "recvmsg6", attach: ebpf.AttachCGroupUDP6Recvmsg, program: p.Recvmsg6},
		{name: "connect4", attach: ebpf.AttachCGroupInet4Connect, program: p.Connect4},
		{name: "connect6", attach: ebpf.AttachCGroupInet6Connect, program: p.Connect6},
		{name: "sendmsg4", attach: ebpf.AttachCGroupUDP4Sendmsg, program: p.Sendmsg4},
		{name: "sendmsg6", attach: ebpf.AttachCGroupUDP6Sendmsg, program: p.Sendmsg6},
		{name: "sock_release", attach: ebpf.AttachCgroupInetSockRelease, program: p.SockRelease},
	}
	for i := range all {
		info, err := all[i].program.Info()
		if err != nil {
			return nil, fmt.Errorf("look at program %s: %w", all[i].name, err)
		}
		all[i].id, _ = info.ID() // links have it too
	}
	return all, nil
}

// attached are the links of the programs.
type attached struct {
	dir   string               // of the pins
	links map[string]link.Link // name of the pin → link
}

// ensure has every hook of every cgroup run these programs, and says whether anything was to be done. A hook is never without a program
// in between, if it had one.
func (a *attached) ensure(cgroups []string, hooks []hook) (changed bool, err error) {
	for _, cgroup := range cgroups {
		id, err := cgroupID(cgroup)
		if err != nil {
			return changed, err
		}
		for _, h := range hooks {
			done, err := a.one(cgroup, id, h)
			changed = changed || done
			if err != nil {
				return changed, fmt.Errorf("attach %s to %s: %w", h.name, cgroup, err)
			}
		}
	}
	return changed, nil
}

// cgroupID is the kernel's number of a cgroup, which is never used again for another.
func cgroupID(path string) (uint64, error) {
	if err := onFilesystem(path, unix.CGROUP2_SUPER_MAGIC); err != nil {
		return 0, fmt.Errorf("cgroup: %w", err)
	}
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return 0, fmt.Errorf("cgroup: %w", &fs.PathError{Op: "stat", Path: path, Err: err})
	}
	return s.Ino, nil
}

// one ensures one hook of one cgroup.
func (a *attached) one(cgroup string, id uint64, h hook) (changed bool, err error) {
	name := fmt.Sprintf("%s%s-%d", linkPrefix, h.name, id)
	path := filepath.Join(a.dir, name)
	l := a.links[name]
	if l == nil {
		l, err = link.LoadPinnedLink(path, nil)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("open pinned link %s: %w", path, err)
		}
		if err == nil {
			a.links[name] = l
		}
	}
	if a.links[name] != nil {
		runs, err := running(l, id)
		switch {
		case err != nil:
			return false, err
		case runs == h.id:
			return repin(path, l)
		case runs != 0:
			if err := l.Update(h.program); err != nil {
				return false, err
			}
			_, err := repin(path, l)
			return true, err
		}
		// Somebody has detached it.
		delete(a.links, name)
		if err := errors.Join(l.Close(), unpin(path)); err != nil {
			return false, err
		}
	}
	l, err = link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: h.attach, Program: h.program})
	if err != nil {
		return false, err
	}
	if err := l.Pin(path); err != nil {
		return false, errors.Join(fmt.Errorf("pin %s: %w", path, err), l.Close())
	}
	a.links[name] = l
	return true, nil
}

// running is which program a link runs at a cgroup; 0 if none there.
func running(l link.Link, id uint64) (ebpf.ProgramID, error) {
	info, err := l.Info()
	if err != nil {
		return 0, fmt.Errorf("look at link: %w", err)
	}
	at := info.Cgroup()
	if at == nil || at.CgroupId != id {
		return 0, nil
	}
	return info.Program, nil
}

// tidy removes pins of ours that are of no use any more: of maps that were replaced, of links at other cgroups.
func (a *attached) tidy(maps map[string]*ebpf.Map) error {
	names, err := pinned(a.dir)
	if err != nil {
		return fmt.Errorf("read pins: %w", err)
	}
	var errs []error
	for _, name := range names {
		if a.links[name] == nil && maps[name] == nil {
			errs = append(errs, removePin(filepath.Join(a.dir, name)))
		}
	}
	return errors.Join(errs...)
}

// close lets go of the links; what is pinned stays in force.
func (a *attached) close() error {
	var errs []error
	for _, l := range a.links {
		errs = append(errs, l.Close())
	}
	a.links = map[string]link.Link{}
	return errors.Join(errs...)
}

// pinsExist says whether a folder for pins is one.
func pinsExist(dir string) error {
	if dir == "" {
		return errors.New("no folder for pins")
	}
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	return onFilesystem(dir, unix.BPF_FS_MAGIC)
}
