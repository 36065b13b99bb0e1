package manifest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// remembered is a file with what an earlier agent understood of it last, if anything.
func (m *Manifest) remembered(name string) *file {
	if m.o.Keep == "" {
		return &file{}
	}
	content, err := read(filepath.Join(m.o.Keep, name))
	if err != nil {
		return &file{}
	}
	pods, err := parse(content, m.o.NodeName)
	if err != nil { // an older version of this program took what this one refuses
		return &file{}
	}
	return &file{content: content, pods: pods, kept: true}
}

// remember writes what was understood of a file, if that is new.
func (m *Manifest) remember(name string) error {
	f := m.files[name]
	if m.o.Keep == "" || f.kept {
		return nil
	}
	path := filepath.Join(m.o.Keep, name)
	err := os.MkdirAll(m.o.Keep, 0o700)
	if err == nil {
		err = os.WriteFile(path+".new", f.content, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("keep a manifest: %w; its pods run all the same", err)
	}
	f.kept = true
	return nil
}

// forget removes what was kept of files that are not there any more.
func (m *Manifest) forget(there map[string]bool) error {
	if m.o.Keep == "" {
		return nil
	}
	entries, err := os.ReadDir(m.o.Keep)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("read the kept manifests: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !there[e.Name()] {
			errs = append(errs, os.Remove(filepath.Join(m.o.Keep, e.Name())))
		}
	}
	return errors.Join(errs...)
}
