package pki_test

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/endpointd/endpointd/internal/apiserver/etcd"
	"github.com/endpointd/endpointd/internal/apiserver/pki"
)

// Servers that start at the same moment on one etcd end with one CA; a later one takes it.
func TestJoinOnEtcd(t *testing.T) {
	server, err := etcd.Start(t.Context(), etcd.Options{Dir: filepath.Join(t.TempDir(), "etcd")})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := etcd.Open(etcd.External{Servers: server.Endpoints()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // a test
	store := etcd.Store{Client: client}

	dirs := make([]string, 4)
	var servers sync.WaitGroup
	for i := range dirs {
		dirs[i] = filepath.Join(t.TempDir(), "pki")
		servers.Go(func() {
			if err := pki.Join(t.Context(), dirs[i], store, pki.Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	servers.Wait()
	// One that was cut short after its first file.
	late := t.TempDir()
	copyFile(t, filepath.Join(dirs[0], "ca.key"), filepath.Join(late, "ca.key"))
	dirs = append(dirs, late, dirs[0])
	for _, dir := range dirs {
		if err := pki.Join(t.Context(), dir, store, pki.Options{}); err != nil {
			t.Fatal(err)
		}
		if _, err := pki.Ensure(dir, pki.Options{}); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"ca.crt", "ca.key", "serviceaccount.key"} {
			if !bytes.Equal(read(t, filepath.Join(dir, name)), read(t, filepath.Join(dirs[0], name))) {
				t.Errorf("%s differs between servers", name)
			}
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if err := os.WriteFile(to, read(t, from), 0o600); err != nil {
		t.Fatal(err)
	}
}
