package podspec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// makeEmptyDir makes the folder of an emptyDir, or leaves the one that is there as it is.
func (b *Builder) makeEmptyDir(pod *corev1.Pod, v *corev1.Volume) error {
	dir, err := b.podDir(string(pod.UID))
	if err != nil {
		return err
	}
	path := filepath.Join(dir, v.Name)
	switch medium := v.EmptyDir.Medium; medium {
	case corev1.StorageMediumDefault, corev1.StorageMediumMemory:
	default:
		return fmt.Errorf("emptyDir.medium %q is not supported here: use \"\" (the disk) or Memory", medium)
	}
	mode, group := os.FileMode(0o777), fsGroup(pod)
	if m := v.EmptyDir.Mode; m != nil {
		mode = fileMode(*m)
	}
	if group != nil {
		mode |= os.ModeSetgid | 0o770
	}
	inMemory := v.EmptyDir.Medium == corev1.StorageMediumMemory
	if inMemory {
		if mounted, err := isMount(path); mounted || err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	} else if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		// Its mode is the containers' own by now: a database may have closed it to others.
		return err
	}
	// Made beside its place, so that one that was not finished is not taken for one that was.
	unfinished := filepath.Join(dir, unfinishedPrefix+v.Name)
	if err := discard(unfinished); err != nil {
		return err
	}
	if err := os.Mkdir(unfinished, 0o700); err != nil {
		return err
	}
	if err := own(unfinished, mode, group); err != nil {
		return err
	}
	if err := os.Rename(unfinished, path); err != nil || !inMemory {
		return err
	}
	if err := mountMemory(path, b.memorySize(pod, v)); err != nil {
		return fmt.Errorf("emptyDir in memory: %w; the agent needs the right to mount: use the medium \"\" if it has not", err)
	}
	if err := own(path, mode, group); err != nil {
		return errors.Join(err, unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	}
	return nil
}

// unfinishedPrefix is before the name of a volume that is being made. A volume's name is a DNS label and has no dot.
const unfinishedPrefix = ".new-"

// discard removes an empty folder that an attempt before left.
func discard(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// own gives a folder its group and mode, whatever the umask.
func own(path string, mode os.FileMode, group *int64) error {
	if group != nil {
		if err := chown(path, -1, *group); err != nil {
			return err
		}
	}
	return os.Chmod(path, mode)
}

// memorySize is the least of what the volume, the pod and the node allow, in bytes; zero = none does, and the kernel takes
// half of the memory.
func (b *Builder) memorySize(pod *corev1.Pod, v *corev1.Volume) int64 {
	allocatable := b.allocatable()
	sizes := []int64{b.podResources(pod).MemoryBytes, allocatable.Memory().Value()}
	if v.EmptyDir.SizeLimit != nil {
		sizes = append(sizes, v.EmptyDir.SizeLimit.Value())
	}
	sizes = slices.DeleteFunc(sizes, func(n int64) bool { return n <= 0 })
	if len(sizes) == 0 {
		return 0
	}
	return slices.Min(sizes)
}

func mountMemory(path string, size int64) error {
	data := "mode=0777"
	if size > 0 {
		data += ",size=" + strconv.FormatInt(size, 10)
	}
	return os.NewSyscallError("mount tmpfs", unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data))
}

// isMount says whether something is mounted at a path.
func isMount(path string) (bool, error) {
	var own, parent unix.Stat_t
	if err := unix.Lstat(path, &own); err != nil {
		return false, err
	}
	if err := unix.Lstat(filepath.Dir(path), &parent); err != nil {
		return false, err
	}
	return own.Dev != parent.Dev, nil
}

// unmountBelow unmounts what Prepare mounted in a pod's folder. The folder itself may be a mount point: it is not ours.
func unmountBelow(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !e.IsDir() {
			continue
		}
		for {
			mounted, err := isMount(path)
			if err != nil {
				return err
			}
			if !mounted {
				break
			}
			// Detached: a container that is about to end may still hold it.
			if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return &os.PathError{Op: "unmount", Path: path, Err: err}
			}
		}
	}
	return nil
}

// fsGroup is the group that the pod's volumes belong to; nil = the agent's.
func fsGroup(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

// chown gives a file an owner and a group; -1 leaves one as it is.
func chown(path string, uid, gid int64) error {
	err := os.Lchown(path, int(uid), int(gid))
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("user %s and group %s: they do not exist in the user namespace that the agent runs in: run it as root, or leave fsGroup and runAsUser out: %w", idText(uid), idText(gid), err)
	}
	return err
}

func idText(id int64) string {
	if id < 0 {
		return "(own)"
	}
	return strconv.FormatInt(id, 10)
}

// fileMode is a mode of the API, in which the set-user bits are where POSIX has them.
func fileMode(mode int32) os.FileMode {
	m := os.FileMode(mode) & os.ModePerm
	for bit, is := range map[int32]os.FileMode{unix.S_ISUID: os.ModeSetuid, unix.S_ISGID: os.ModeSetgid, unix.S_ISVTX: os.ModeSticky} {
		if mode&bit != 0 {
			m |= is
		}
	}
	return m
}

// validPath refuses a path of a file in a volume that would lie outside of it, or where the volume keeps its own.
func validPath(path string) error {
	switch {
	case path == "" || filepath.IsAbs(path) || filepath.Clean(path) != path || slices.Contains(strings.Split(path, "/"), ".."):
		return fmt.Errorf("path %q: it must lie within the volume: not start with /, and have no .. or empty part", path)
	case strings.HasPrefix(path, ".."):
		return fmt.Errorf("path %q: it must not start with .., which is how the volume marks its own files", path)
	case len(path) > unix.PathMax-1 || slices.ContainsFunc(strings.Split(path, "/"), func(s string) bool { return len(s) > 255 }):
		return fmt.Errorf("path %.60q…: it is longer than the kernel takes (%d, a part 255)", path, unix.PathMax-1)
	case strings.ContainsRune(path, 0):
		return fmt.Errorf("path %q: it has a NUL byte in it", path)
	}
	return nil
}
