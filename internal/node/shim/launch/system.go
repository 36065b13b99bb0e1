package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
)

const harmless = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// openSystem opens the file systems that every container gets, in the order in which they are attached. They are made while the
// machine's root is there: a user namespace may mount a new /proc only while it sees a whole one.
func openSystem(spec *Spec) ([]source, error) {
	var system []source
	add := func(target string, fd int, err error) error {
		if err == nil {
			system = append(system, source{Mount: container.Mount{Source: target, Target: target}, fd: fd, dir: true, system: true})
		}
		return err
	}
	rootfs := spec.Container.Rootfs != ""
	switch {
	case spec.FreshProc:
		fd, err := newMount("proc", nil, harmless)
		if err := add("/proc", fd, err); err != nil {
			return nil, err
		}
	case rootfs:
		fd, err := cloneTree(unix.AT_FDCWD, "/proc")
		if err := add("/proc", fd, err); err != nil {
			return nil, fmt.Errorf("the machine's /proc: %w", err)
		}
	}
	if rootfs {
		fd, err := openSys(spec.Container.Privileged)
		if err := add("/sys", fd, err); err != nil {
			return nil, fmt.Errorf("the machine's /sys: %w", err)
		}
		devices, err := openDevices(spec)
		if err != nil {
			return nil, err
		}
		system = append(system, devices...)
	}
	if spec.FreshIPC && !(rootfs && spec.Container.Privileged) {
		if _, err := os.Stat("/dev/shm"); err == nil || rootfs {
			fd, err := newMount("tmpfs", map[string]string{"mode": "1777", "size": "64m"}, harmless)
			if err := add("/dev/shm", fd, err); err != nil {
				return nil, err
			}
		}
		if _, err := os.Stat("/dev/mqueue"); err == nil {
			// Some kernels have none; then there are no message queues to be kept apart.
			if fd, err := newMount("mqueue", nil, harmless); err == nil {
				_ = add("/dev/mqueue", fd, nil)
			}
		}
	}
	return system, nil
}

func openSys(writable bool) (int, error) {
	fd, err := cloneTree(unix.AT_FDCWD, "/sys")
	if err != nil || writable {
		return fd, err
	}
	return fd, setReadOnly(fd, "")
}

// openDevices opens what /dev of a container with a root of its own consists of.
func openDevices(spec *Spec) ([]source, error) {
	if spec.Container.Privileged {
		fd, err := cloneTree(unix.AT_FDCWD, "/dev")
		return []source{{Mount: container.Mount{Source: "/dev", Target: "/dev"}, fd: fd, dir: true, system: true}}, err
	}
	fd, err := newMount("tmpfs", map[string]string{"mode": "755", "size": "64k"}, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, err
	}
	devices := []source{{Mount: container.Mount{Source: "tmpfs", Target: "/dev"}, fd: fd, dir: true, system: true}}
	// Mounts of the machine's nodes work in a user namespace too, where mknod is refused.
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		device := path.Join("/dev", name)
		fd, err := cloneTree(unix.AT_FDCWD, device)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("the machine's %s: %w", device, err)
		}
		devices = append(devices, source{Mount: container.Mount{Source: device, Target: device}, fd: fd, system: true})
	}
	fd, err = newMount("devpts", map[string]string{"ptmxmode": "0666", "mode": "0620"}, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, err
	}
	return append(devices, source{Mount: container.Mount{Source: "devpts", Target: "/dev/pts"}, fd: fd, dir: true, system: true}), nil
}

// finish adds the links in /dev, and guards the parts of /proc that are the machine's.
func (r *root) finish() error {
	c := &r.spec.Container
	if c.Rootfs != "" && !c.Privileged {
		links := map[string]string{
			"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
			"ptmx": "pts/ptmx",
		}
		for name, to := range links {
			if err := os.Symlink(to, path.Join("/dev", name)); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	if c.Privileged || !r.spec.FreshProc {
		return nil
	}
	// Root of the container without CAP_SYS_ADMIN may write there by file mode alone, and it is the machine that changes.
	for _, name := range []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"} {
		fd, err := cloneTree(unix.AT_FDCWD, name)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("guard %s: %w", name, err)
		}
		if err := setReadOnly(fd, ""); err != nil {
			return fmt.Errorf("guard %s: %w", name, err)
		}
		if err := moveTo(fd, unix.AT_FDCWD, name); err != nil {
			return fmt.Errorf("guard %s: %w", name, err)
		}
		_ = unix.Close(fd)
	}
	return nil
}
