package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane"
)

// MountPins makes a folder that programs and maps can be pinned in, for [Options].Pins: a bpffs of its own is mounted there, unless the folder is in one
// already. It stays mounted: pins that outlive the agent are what it is for. It must be called in the mount namespace that the next agent will be in.
func MountPins(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a folder for pins: %w", err)
	}
	if onFilesystem(dir, unix.BPF_FS_MAGIC) == nil {
		return nil
	}
	if err := unix.Mount("bpffs", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return &dataplane.UnsupportedError{Feature: "a bpffs mounted at " + dir, MinKernel: "4.4", Why: err}
	}
	return nil
}

// RemovePins takes out of the kernel what an agent left pinned in a folder, as [Proxier.Remove] does, but without being able to load programs. For an agent
// that uses eBPF no more: what is pinned would go on leading clients to what were endpoints once.
func RemovePins(dir string) error {
	names, err := pinned(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pins: %w", err)
	}
	var errs []error
	for _, name := range names { // links come before the maps that they need
		errs = append(errs, removePin(filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}

// Pins of links begin with linkPrefix, those of maps with mapPrefix. A bpffs takes no names with a dot.
const (
	linkPrefix = "link-"
	mapPrefix  = "map-"
)

// pinned lists our pins in a folder, sorted.
func pinned(dir string) ([]string, error) {
	found, err := os.ReadDir(dir)
	var names []string
	for _, f := range found {
		if strings.HasPrefix(f.Name(), linkPrefix) || strings.HasPrefix(f.Name(), mapPrefix) {
			names = append(names, f.Name())
		}
	}
	return names, err
}

// removePin removes a pin of ours. A link is detached first: without pins it would end, but some time later.
func removePin(path string) error {
	if strings.HasPrefix(filepath.Base(path), linkPrefix) {
		l, err := link.LoadPinnedLink(path, nil)
		if err == nil {
			err = errors.Join(l.Detach(), l.Close())
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, link.ErrNotSupported) {
			return fmt.Errorf("detach %s: %w", path, err)
		}
	}
	return unpin(path)
}

func unpin(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove pin: %w", err)
	}
	return nil
}

// onFilesystem says why a folder is not on a file system of that type.
func onFilesystem(dir string, magic int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if int64(s.Type) != magic { //nolint:unconvert // it is 32 bits wide on some machines
		return fmt.Errorf("%s is on another file system (type %#x)", dir, s.Type)
	}
	return nil
}
