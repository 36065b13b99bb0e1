package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaces of a node, which live as long as they are held.
type namespaces struct {
	net, mount, uts *os.File
}

// onThread runs f on a thread that ends with it, so f may change what belongs to the thread: namespaces. The main thread is
// spared, because /proc/self is what it is.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := onThread(f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// newNamespaces makes them for a node of the given name, and lets setup run inside.
func newNamespaces(name string, setup func() error) (*namespaces, error) {
	n := &namespaces{}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("node %s: new namespaces: %w", name, err)
		}
		if err := unix.Sethostname([]byte(name)); err != nil {
			return fmt.Errorf("node %s: host name: %w", name, err)
		}
		var err error
		if n.net, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if n.mount, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
			return err
		}
		if n.uts, err = os.Open("/proc/thread-self/ns/uts"); err != nil {
			return err
		}
		return setup()
	})
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *namespaces) close() {
	for _, f := range []*os.File{n.net, n.mount, n.uts} {
		if f != nil {
			_ = f.Close() // read only
		}
	}
}

// within runs f on a thread that has joined; nil is where we are.
func (n *namespaces) within(f func() error) error {
	if n == nil {
		return f()
	}
	return onThread(func() error {
		// A thread may join a mount namespace only with a working folder and root of its own.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("join namespaces: %w", err)
		}
		for _, f := range []*os.File{n.net, n.uts, n.mount} {
			if err := unix.Setns(int(f.Fd()), 0); err != nil {
				return fmt.Errorf("join %s: %w", f.Name(), err)
			}
		}
		return f()
	})
}

// privateMounts makes later mounts ours alone, and /proc that of our PID namespace.
func privateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		// AppArmor lets everybody make a user namespace, and then do nothing in it.
		return missing(fmt.Errorf("make mounts private: %w", err))
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		if errors.Is(err, syscall.EPERM) {
			return fmt.Errorf("mount /proc: %w: parts of this machine's /proc are hidden, as in many containers: run it outside of one, or as root with CAP_SYS_ADMIN", err)
		}
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// bindFile shows file at target, which must exist.
func bindFile(file, target string) error {
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", file, target, err)
	}
	return nil
}
