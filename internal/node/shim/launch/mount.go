package launch

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// open resolves within the root and follows no link of /proc, which could lead out of it.
func open(name string, flags uint64) (int, error) {
	return unix.Openat2(unix.AT_FDCWD, name, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
}

func isDir(fd int) (bool, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return false, err
	}
	return stat.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// mountID tells mounts of one file system apart (Linux 5.8).
func mountID(fd int) (uint64, error) {
	var stat unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &stat)
	return stat.Mnt_id, err
}

// cloneTree opens a copy of the mounts at and below a path, attached nowhere.
func cloneTree(dir int, name string) (int, error) {
	return unix.OpenTree(dir, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
}

// moveTo attaches a tree at a path, or at the directory itself when name is empty.
func moveTo(tree, dir int, name string) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if name == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	return unix.MoveMount(tree, "", dir, name, flags)
}

func setReadOnly(dir int, name string) error {
	return setAttributes(dir, name, unix.AT_RECURSIVE, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

func setAttributes(dir int, name string, flags uint, attributes unix.MountAttr) error {
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return unix.MountSetattr(dir, name, flags, &attributes)
}

// newMount makes a file system, attached nowhere.
func newMount(kind string, options map[string]string, attributes int) (int, error) {
	context, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make a %s: %w", kind, err)
	}
	defer unix.Close(context) //nolint:errcheck // of no use afterwards
	if err := unix.FsconfigSetString(context, "source", kind); err != nil {
		return -1, fmt.Errorf("make a %s: %w", kind, err)
	}
	for name, value := range options {
		if err := unix.FsconfigSetString(context, name, value); err != nil {
			return -1, fmt.Errorf("make a %s: %s=%s: %w", kind, name, value, err)
		}
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return -1, fmt.Errorf("make a %s: %w", kind, err)
	}
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return -1, fmt.Errorf("make a %s: %w", kind, err)
	}
	return fd, nil
}

// chownLike is best effort: an owner that the user namespace does not know stays root.
func chownLike(dir string, like os.FileInfo) {
	if stat, ok := like.Sys().(*syscall.Stat_t); ok {
		_ = unix.Chown(dir, int(stat.Uid), int(stat.Gid))
	}
}
