package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
)

// root is what the container will see, while it is put together.
type root struct {
	spec *Spec
	own  map[uint64]bool // ID of a mount → mount points may be made in it: memory of this container, or a writable volume
	late []string        // mount points of those that become read-only in the end
}

// source is a mount that is open and not attached anywhere yet.
type source struct {
	container.Mount
	fd     int
	dir    bool
	system bool // not asked for: every container has it
}

// makeRoot makes the container's view of the files in the mount namespace that this process has to itself.
func makeRoot(spec *Spec) error {
	c := &spec.Container
	r := &root{spec: spec, own: map[uint64]bool{}}
	// Sources are opened first: while the machine's root is there, and while mounts are still peers of the machine's, which
	// propagation in both directions needs.
	sources := make([]source, 0, len(c.Mounts))
	for _, m := range c.Mounts {
		s, err := openSource(m)
		if err != nil {
			return err
		}
		sources = append(sources, s)
	}
	// From here on nothing that is mounted reaches the machine.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	system, err := openSystem(spec)
	if err != nil {
		return err
	}
	if err := r.enter(sources, system); err != nil {
		return err
	}
	if c.ReadOnlyRootfs && !c.Privileged {
		if err := setReadOnly(unix.AT_FDCWD, "/"); err != nil {
			return fmt.Errorf("make root read-only: %w", err)
		}
		// What was made here takes mount points still.
		for _, dir := range r.late {
			if err := setAttributes(unix.AT_FDCWD, dir, 0, unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}); err != nil {
				return fmt.Errorf("make mount points in %s: %w", dir, err)
			}
		}
	}
	for _, s := range append(system, sources...) {
		if err := r.attach(s); err != nil {
			return err
		}
	}
	if err := r.finish(); err != nil {
		return err
	}
	for _, dir := range r.late {
		if err := setAttributes(unix.AT_FDCWD, dir, 0, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make %s read-only: %w", dir, err)
		}
	}
	return nil
}

// enter changes the root where that is needed: to Rootfs, or to a copy of the machine's root that can have more entries.
func (r *root) enter(sources []source, system []source) error {
	from := r.spec.Container.Rootfs
	base := "/"
	if from != "" {
		base = from
	}
	missing := false
	for _, s := range append(system, sources...) {
		first, _, _ := strings.Cut(strings.TrimPrefix(path.Clean("/"+s.Target), "/"), "/")
		if _, err := os.Lstat(path.Join(base, first)); errors.Is(err, fs.ErrNotExist) {
			missing = true
		}
	}
	if from == "" && !missing {
		return nil
	}
	tree, err := cloneTree(unix.AT_FDCWD, base)
	if err != nil {
		return &Failure{Code: codeOther, Text: fmt.Sprintf("root file system %s: %v: rootfs must be a directory on the node", base, err)}
	}
	stage := r.spec.Stage
	if from != "" {
		if err := setAttributes(tree, "", unix.AT_RECURSIVE, unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
			return fmt.Errorf("root file system %s: %w", base, err)
		}
	}
	if err := moveTo(tree, unix.AT_FDCWD, stage); err != nil {
		return fmt.Errorf("attach root file system %s: %w", base, err)
	}
	_ = unix.Close(tree)
	if missing {
		if err := r.mimic(stage); err != nil {
			return err
		}
		r.late = nil // it is named by its path on the stage; it is "/" now
		if r.spec.Container.ReadOnlyRootfs && !r.spec.Container.Privileged {
			r.late = append(r.late, "/")
		}
	}
	if err := unix.Chdir(stage); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root to %s: %w", base, err)
	}
	// The old root lies on top of the new one now (pivot_root(2), "pivot_root(".", ".")").
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the machine's root: %w", err)
	}
	return unix.Chdir("/")
}

func openSource(m container.Mount) (source, error) {
	s := source{Mount: m, dir: true}
	if !path.IsAbs(m.Target) || path.Clean(m.Target) == "/" {
		return s, &Failure{Code: codeOther, Text: fmt.Sprintf("mount point %q: it must be an absolute path below /", m.Target)}
	}
	if m.Source == "tmpfs" {
		options := map[string]string{"mode": "1777"}
		if m.Size > 0 {
			options["size"] = fmt.Sprint(m.Size)
		}
		fd, err := newMount("tmpfs", options, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
		s.fd = fd
		return s, err
	}
	var err error
	if s.fd, err = cloneTree(unix.AT_FDCWD, m.Source); err != nil {
		hint := "the node cannot open it"
		if errors.Is(err, unix.ENOENT) {
			hint = "it does not exist on the node: create it there, or use hostPath type DirectoryOrCreate"
		}
		return s, &Failure{Code: codeOther, Text: fmt.Sprintf("mount %s at %s: %v: %s", m.Source, m.Target, err, hint)}
	}
	if s.dir, err = isDir(s.fd); err != nil {
		return s, err
	}
	propagation, ok := map[string]uint64{"": unix.MS_PRIVATE, "HostToContainer": unix.MS_SLAVE, "Bidirectional": unix.MS_SHARED}[m.Propagate]
	if !ok {
		return s, fmt.Errorf("mount %s at %s: unknown propagation %q", m.Source, m.Target, m.Propagate)
	}
	if err := setAttributes(s.fd, "", unix.AT_RECURSIVE, unix.MountAttr{Propagation: propagation}); err != nil {
		return s, fmt.Errorf("mount %s at %s: set propagation: %w", m.Source, m.Target, err)
	}
	if m.ReadOnly {
		if err := setReadOnly(s.fd, ""); err != nil {
			return s, fmt.Errorf("mount %s at %s: make read-only: %w", m.Source, m.Target, err)
		}
	}
	return s, nil
}

func (r *root) attach(s source) error {
	defer unix.Close(s.fd) //nolint:errcheck // a descriptor of a mount that is attached or lost
	target, err := r.provide(s.Target, s.dir, maxLinks)
	if err != nil {
		return &Failure{Code: codeOther, Text: fmt.Sprintf("mount point %s: %v", s.Target, err)}
	}
	defer unix.Close(target) //nolint:errcheck // opened for its path alone
	if err := moveTo(s.fd, target, ""); err != nil {
		return fmt.Errorf("mount %s at %s: %w", s.Source, s.Target, err)
	}
	if !s.dir || s.ReadOnly || s.system && s.Source != "tmpfs" {
		return nil
	}
	// As in Kubernetes, a mount point within a writable volume is made there: covering the volume would send what the
	// container writes beside it into memory.
	id, err := mountID(s.fd)
	r.own[id] = true
	return err
}
