package podspec

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Containers write into volumes, so a path within one may be a symbolic link that they made. The kernel resolves such paths
// and stays beneath the folder (openat2(2), since Linux 5.6).

const (
	beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS
	inRoot  = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
)

// openIn opens a path within a folder.
func openIn(dir, path string, flags int, resolve uint64) (*os.File, error) {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	return openAt(root, path, flags, resolve)
}

func openAt(root *os.File, path string, flags int, resolve uint64) (*os.File, error) {
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path, how)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN): // a rename was under way
			continue
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP):
			return nil, fmt.Errorf("%s: a symbolic link in it leads out of the volume; remove the link: %w", path, err)
		case err != nil:
			return nil, &os.PathError{Op: "openat2", Path: filepath.Join(root.Name(), path), Err: err}
		}
		return os.NewFile(uintptr(fd), filepath.Join(root.Name(), path)), nil
	}
}

// readBeneath reads a file within a folder, up to limit bytes; a longer file is an error.
func readBeneath(dir, path string, limit int64) ([]byte, error) {
	return readIn(dir, path, limit, beneath)
}

// readInRoot reads a file of a container's root, in which an absolute link starts at that root.
func readInRoot(root, path string, limit int64) ([]byte, error) {
	return readIn(root, path, limit, inRoot)
}

func readIn(dir, path string, limit int64, resolve uint64) ([]byte, error) {
	// O_NONBLOCK: a pipe must not hold the agent up.
	f, err := openIn(dir, path, unix.O_RDONLY|unix.O_NONBLOCK, resolve)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: it is not a file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: it is longer than %d bytes", path, limit)
	}
	return data, err
}

// resolveBeneath is the path without symbolic links of something within a folder.
// When mayMake is set, folders that are missing are made, with the folder's own mode.
func resolveBeneath(dir, path string, mayMake bool) (string, error) {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = root.Close() }()
	f, err := openAt(root, path, unix.O_PATH, beneath)
	if errors.Is(err, unix.ENOENT) && mayMake {
		f, err = makeBeneath(root, path)
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	return pathOf(f)
}

// makeBeneath makes the folders of a path one by one; what is there already is followed, but never out of root.
func makeBeneath(root *os.File, path string) (*os.File, error) {
	info, err := root.Stat()
	if err != nil {
		return nil, err
	}
	var reached string
	for part := range strings.SplitSeq(filepath.Clean(path), "/") {
		parent, err := openAt(root, "./"+reached, unix.O_PATH|unix.O_DIRECTORY, beneath)
		if err != nil {
			return nil, err
		}
		err = unix.Mkdirat(int(parent.Fd()), part, 0o700)
		made := err == nil
		if made {
			err = chmodAt(parent, part, info.Mode())
		}
		_ = parent.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, &os.PathError{Op: "mkdirat", Path: filepath.Join(root.Name(), reached, part), Err: err}
		}
		reached = filepath.Join(reached, part)
	}
	return openAt(root, reached, unix.O_PATH|unix.O_DIRECTORY, beneath)
}

// chmodAt gives a folder that was just made its mode, whatever the umask. It follows no link that was put in its place.
func chmodAt(parent *os.File, name string, mode os.FileMode) error {
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	return f.Chmod(mode.Perm())
}

// pathOf is where an open file is now. The kernel knows no symbolic links in it.
func pathOf(f *os.File) (string, error) {
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return "", err
	}
	if strings.HasSuffix(path, " (deleted)") {
		return "", fmt.Errorf("%s was removed meanwhile; it is tried again", f.Name())
	}
	return path, nil
}
