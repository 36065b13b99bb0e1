package podspec

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A volume whose content comes from the API looks like this, as with the kubelet:
//
//	..2026_01_02_15_04_05.123456789/    what is shown; never changed once it is shown
//	..data -> ..2026_01_02_15_04_05.123456789
//	key -> ..data/key                   one for each first part of a path
//
// Replacing ..data, which rename(2) does atomically, changes all files at once.
const (
	dataLink  = "..data"
	dataNext  = "..data_tmp"
	ownPrefix = ".."
	timeForm  = "..2006_01_02_15_04_05.000000000"
)

// payloadDirMode is that of the volume and of the folders in it. Who may come here is decided by the pod's own folder; a file says itself
// who may read it.
const payloadDirMode = 0o755

// writeAtomically has the folder show the content, and says whether that is something new.
func writeAtomically(dir string, content payload, group *int64, now time.Time) (changed bool, err error) {
	if err := makeDir(dir, group); err != nil {
		return false, err
	}
	current, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	same := false
	if current != "" {
		if same, err = shows(filepath.Join(dir, current), content); err != nil {
			return false, err
		}
	}
	if !same {
		// What an attempt before left would be in the way.
		if err := removeOwn(dir, current); err != nil {
			return false, err
		}
		next, err := writeNext(dir, content, group, now)
		if err == nil {
			err = swap(dir, next)
		}
		if err != nil {
			return false, errors.Join(err, removeOwn(dir, current))
		}
		current = next
	}
	// Also when nothing is new: the attempt before may have ended half-way.
	if err := link(dir, content); err != nil {
		return !same, err
	}
	return !same, removeOwn(dir, current)
}

// makeDir makes a folder with the mode and group that those of a volume have.
func makeDir(dir string, group *int64) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	mode := os.FileMode(payloadDirMode)
	if group != nil {
		if err := chown(dir, -1, *group); err != nil {
			return err
		}
		mode |= os.ModeSetgid
	}
	return os.Chmod(dir, mode)
}

// shows says whether a folder holds exactly the content: bytes, modes and owners.
func shows(dir string, content payload) (bool, error) {
	left := maps.Clone(content)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		want, there := left[name]
		delete(left, name)
		if !there || !e.Type().IsRegular() {
			return errDiffers
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		owner, _ := info.Sys().(*syscall.Stat_t)
		if info.Mode() != want.mode || info.Size() != int64(len(want.data)) ||
			want.uid >= 0 && int64(owner.Uid) != want.uid || want.gid >= 0 && int64(owner.Gid) != want.gid {
			return errDiffers
		}
		data, err := os.ReadFile(path)
		if err == nil && !bytes.Equal(data, want.data) {
			return errDiffers
		}
		return err
	})
	if errors.Is(err, errDiffers) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && len(left) == 0, err
}

var errDiffers = errors.New("the folder shows something else")

// writeNext writes the content into a new folder, and is its name.
func writeNext(dir string, content payload, group *int64, now time.Time) (string, error) {
	name := now.UTC().Format(timeForm)
	for n := 0; ; n++ { // a clock may stand still, or go back
		err := os.Mkdir(filepath.Join(dir, name), 0o700)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		name = fmt.Sprintf("%s.%d", now.UTC().Format(timeForm), n)
	}
	root := filepath.Join(dir, name)
	if err := makeDir(root, group); err != nil {
		return "", err
	}
	for _, path := range slices.Sorted(maps.Keys(content)) {
		parent := root
		parts := strings.Split(path, "/")
		for _, part := range parts[:len(parts)-1] {
			parent = filepath.Join(parent, part)
			if err := makeDir(parent, group); err != nil {
				return "", err
			}
		}
		if err := writeFile(filepath.Join(root, path), content[path]); err != nil {
			return "", err
		}
	}
	return name, nil
}

// writeFile makes a file that nobody else can open before it has its owner and mode.
func writeFile(path string, f payloadFile) error {
	if err := os.WriteFile(path, f.data, 0o600); err != nil {
		return err
	}
	if f.uid >= 0 || f.gid >= 0 {
		if err := chown(path, f.uid, f.gid); err != nil {
			return err
		}
	}
	return os.Chmod(path, f.mode)
}

// swap has the volume show another folder.
func swap(dir, next string) error {
	temporary := filepath.Join(dir, dataNext)
	if err := os.Symlink(next, temporary); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(dir, dataLink))
}

// link makes the names that containers see, and removes those that lead nowhere any more.
func link(dir string, content payload) error {
	names := map[string]bool{}
	for path := range content {
		name, _, _ := strings.Cut(path, "/")
		names[name] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch {
		case strings.HasPrefix(e.Name(), ownPrefix):
		case names[e.Name()]:
			delete(names, e.Name())
		default:
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for name := range names {
		if err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// removeOwn removes all folders that are not the one shown.
func removeOwn(dir, current string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); strings.HasPrefix(name, ownPrefix) && name != dataLink && name != current {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}
