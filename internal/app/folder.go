package app

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// folder is a data folder that this process holds:
//
//	admin.kubeconfig  for kubectl; mode 0600
//	etcd/             the state, when etcd is embedded
//	pki/              keys and certificates
//	server.lock       held while a server runs; its pid inside
type folder struct {
	path string
	lock *os.File
}

func (f *folder) etcd() string       { return filepath.Join(f.path, "etcd") }
func (f *folder) pki() string        { return PKI(f.path) }
func (f *folder) kubeconfig() string { return Kubeconfig(f.path) }

// Kubeconfig is where a server with the given data folder writes its administrator's kubeconfig.
func Kubeconfig(dataDir string) string { return filepath.Join(dataDir, "admin.kubeconfig") }

// PKI is where a server with the given data folder keeps its keys and certificates.
func PKI(dataDir string) string { return filepath.Join(dataDir, "pki") }

// openFolder makes the folder with mode 0700 and locks it. The kernel releases the lock with the process, so a killed
// server leaves nothing to clean up.
func openFolder(path string) (*folder, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, folderError(path, err)
	}
	lock, err := lockFolder(path, "server.lock")
	if err != nil {
		return nil, err
	}
	return &folder{path: path, lock: lock}, nil
}

// lockFolder makes a folder with mode 0700 and takes the lock of this name in it.
func lockFolder(path, name string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, folderError(path, err)
	}
	lock, err := os.OpenFile(filepath.Join(path, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, folderError(path, err)
	}
	if err := take(lock); err != nil {
		_ = lock.Close()
		return nil, folderError(path, err)
	}
	return lock, nil
}

// Close gives the folder back.
func (f *folder) Close() { _ = f.lock.Close() }

// errInUse names the process that holds the lock.
type errInUse struct{ pid string }

func (e errInUse) Error() string { return "in use by another endpointd (pid " + e.pid + ")" }

func take(lock *os.File) error {
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		pid, err := io.ReadAll(io.LimitReader(lock, 20))
		if err != nil || len(pid) == 0 {
			pid = []byte("unknown")
		}
		return errInUse{strings.TrimSpace(string(pid))}
	}
	if err := lock.Truncate(0); err != nil {
		return err
	}
	_, err := lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func folderError(path string, err error) error {
	step := "choose another one with --data-dir"
	switch {
	case errors.As(err, new(errInUse)):
		step = "stop that one, or choose another folder with --data-dir"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		step = fmt.Sprintf("make it writable for this user (uid %d), or choose another one with --data-dir", os.Getuid())
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		step = "free some space there, or choose another one with --data-dir"
	}
	return fmt.Errorf("data folder %s: %w: %s", path, err, step)
}
