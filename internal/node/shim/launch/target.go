package launch

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links that lead nowhere are followed, as the kernel does with those that lead somewhere.
const maxLinks = 40

// provide opens a mount point within the root, and makes one of the right kind when there is none.
func (r *root) provide(target string, dir bool, links int) (int, error) {
	target = path.Clean(target)
	fd, err := open(target, unix.O_PATH)
	if err == nil {
		return r.checked(fd, dir)
	}
	if !errors.Is(err, unix.ENOENT) {
		return -1, err
	}
	if links == 0 {
		return -1, unix.ELOOP
	}
	parent, err := r.provide(path.Dir(target), true, links)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent) //nolint:errcheck // opened for its path alone
	where := "/"             // also before there is a /proc
	if path.Dir(target) != "/" {
		if where, err = nameOf(parent); err != nil {
			return -1, err
		}
	}
	base := path.Base(target)
	// A link that leads nowhere, such as /etc/resolv.conf of systemd: what it names is provided.
	if link, err := os.Readlink(path.Join(where, base)); err == nil {
		if !path.IsAbs(link) {
			link = path.Join(where, link)
		}
		return r.provide(link, dir, links-1)
	}
	if err := r.makeIn(where, base, dir); err != nil {
		return -1, err
	}
	return open(path.Join(where, base), unix.O_PATH)
}

func (r *root) checked(fd int, dir bool) (int, error) {
	is, err := isDir(fd)
	switch {
	case err == nil && is == dir:
		return fd, nil
	case err == nil && is:
		err = errors.New("it is a directory in the container, but the source is a file")
	case err == nil:
		err = errors.New("it is a file in the container, but the source is a directory")
	}
	return -1, errors.Join(err, unix.Close(fd))
}

// makeIn makes a file or directory. On a file system that is not ours it covers the parent first.
func (r *root) makeIn(parent, base string, dir bool) error {
	fd, err := open(parent, unix.O_PATH)
	if err != nil {
		return err
	}
	id, err := mountID(fd)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	if !r.own[id] {
		if err := r.mimic(parent); err != nil {
			return err
		}
	}
	return makeEntry(path.Join(parent, base), dir)
}

func makeEntry(name string, dir bool) error {
	if dir {
		return os.Mkdir(name, 0o755)
	}
	file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return file.Close()
}

// mimic covers a directory with one in memory that has the same entries, each a mount of the original, and can have more.
// So a mount point is made without a trace on the machine's file systems, read-only ones included.
func (r *root) mimic(dir string) error {
	original, err := open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(original), dir)
	defer file.Close() //nolint:errcheck // read only
	entries, err := file.ReadDir(-1)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	trees := make([]int, len(entries))
	for i, entry := range entries {
		trees[i] = -1
		if entry.Type()&(os.ModeSymlink|os.ModeDevice) != 0 {
			continue // made anew
		}
		if trees[i], err = cloneTree(original, entry.Name()); err != nil {
			return fmt.Errorf("keep %s in sight: %w", path.Join(dir, entry.Name()), err)
		}
	}
	if err := r.cover(dir, info); err != nil {
		return err
	}
	for i, entry := range entries {
		name := path.Join(dir, entry.Name())
		switch {
		case entry.Type()&os.ModeDevice != 0:
			if err := copyDevice(original, entry.Name(), name); err != nil {
				return fmt.Errorf("keep %s in sight: %w", name, err)
			}
			continue
		case trees[i] < 0:
			if err := copyLink(original, entry.Name(), name); err != nil {
				return err
			}
			continue
		}
		if err := makeEntry(name, entry.IsDir()); err != nil {
			return err
		}
		if err := moveTo(trees[i], unix.AT_FDCWD, name); err != nil {
			return fmt.Errorf("keep %s in sight: %w", name, err)
		}
		_ = unix.Close(trees[i])
	}
	return nil
}

func copyLink(dir int, entry, name string) error {
	link := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, entry, link)
	if err != nil {
		return err
	}
	return os.Symlink(string(link[:n]), name)
}

// copyDevice makes a node of the same device: /dev has a hundred of them, and a mount each would cost every start
// milliseconds. Where nodes are not allowed, in a user namespace, it is a mount of the original. A mounted ptmx does not find
// the terminals in the folder beside it (devpts(5)), so there it is the one of that folder.
func copyDevice(dir int, entry, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, entry, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	err := unix.Mknod(name, st.Mode, int(st.Rdev)) //nolint:gosec // device numbers have 32 bits here
	if err == nil {
		return errors.Join(unix.Lchown(name, int(st.Uid), int(st.Gid)), unix.Chmod(name, st.Mode&0o7777))
	}
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if entry == "ptmx" {
		return os.Symlink("pts/ptmx", name)
	}
	tree, err := cloneTree(dir, entry)
	if err != nil {
		return err
	}
	defer unix.Close(tree) //nolint:errcheck // a descriptor of a mount that is attached or lost
	if err := makeEntry(name, false); err != nil {
		return err
	}
	return moveTo(tree, unix.AT_FDCWD, name)
}

// cover mounts an empty file system in memory over dir, with the owner and mode of what is there.
func (r *root) cover(dir string, like os.FileInfo) error {
	mode := strconv.FormatUint(uint64(like.Mode().Perm()), 8)
	fd, err := newMount("tmpfs", map[string]string{"mode": mode}, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // a descriptor of a mount that is attached or lost
	if err := moveTo(fd, unix.AT_FDCWD, dir); err != nil {
		return err
	}
	id, err := mountID(fd)
	if err != nil {
		return err
	}
	r.own[id] = true
	chownLike(dir, like)
	if r.spec.Container.ReadOnlyRootfs && !r.spec.Container.Privileged {
		r.late = append(r.late, dir)
	}
	return nil
}

// nameOf gives the path of what fd is open on, without links.
func nameOf(fd int) (string, error) {
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}
