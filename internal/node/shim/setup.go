package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
)

// prepare makes the namespaces of the pod what its Sandbox asks for.
func prepare(s *container.Sandbox) error {
	if !s.HostNetwork {
		if s.Hostname != "" {
			if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
				return fmt.Errorf("set hostname %q: %w", s.Hostname, err)
			}
		}
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring up lo: %w", err)
		}
		if _, given := s.Sysctls[unprivilegedPort]; !given {
			// As containerd does: ports are the pod's own, so any user may listen on 80.
			_ = writeSysctl(unprivilegedPort, "0")
		}
	}
	for name, value := range s.Sysctls {
		if err := allowSysctl(name, s); err != nil {
			return err
		}
		if err := writeSysctl(name, value); err != nil {
			return fmt.Errorf("set sysctl %s=%s: %w", name, value, err)
		}
	}
	return nil
}

const unprivilegedPort = "net.ipv4.ip_unprivileged_port_start"

// allowSysctl refuses what is not the pod's own: the rest would change the machine.
func allowSysctl(name string, s *container.Sandbox) error {
	ipc := []string{"kernel.shmmax", "kernel.shmall", "kernel.shmmni", "kernel.shm_rmid_forced", "kernel.msgmax", "kernel.msgmnb",
		"kernel.msgmni", "kernel.sem"}
	slashes := strings.ContainsAny(name, "/\x00") || strings.Contains(name, "..")
	switch {
	case slashes:
		return fmt.Errorf("sysctl %q: write its name with dots, such as net.core.somaxconn", name)
	case strings.HasPrefix(name, "net."):
		if s.HostNetwork {
			return fmt.Errorf("sysctl %s: not with hostNetwork, it would change the node's network", name)
		}
	case slices.Contains(ipc, name), strings.HasPrefix(name, "fs.mqueue."):
		if s.HostIPC {
			return fmt.Errorf("sysctl %s: not with hostIPC, it would change the node", name)
		}
	default:
		return fmt.Errorf("sysctl %s: it has no value of its own in a pod; use one of net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*", name)
	}
	return nil
}

func writeSysctl(name, value string) error {
	file := path.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("this kernel does not have it")
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// loopbackUp is what a new network namespace lacks.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return err
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
