package app

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/endpointd/endpointd/internal/apiserver/pki"
)

func TestNodeHasTheNameOfItsCertificate(t *testing.T) {
	dir := t.TempDir()
	if _, err := pki.Ensure(filepath.Join(dir, "pki"), pki.Options{Hosts: []string{"localhost"}}); err != nil {
		t.Fatal(err)
	}
	text, err := pki.NodeKubeconfig(filepath.Join(dir, "pki"), "https://127.0.0.1:6443", pki.Node{Name: "vm-1", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7")}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "vm-1.kubeconfig")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	for given, want := range map[string]string{
		"":     "vm-1",
		"vm-1": "vm-1",
		"vm-2": "is that of node vm-1, not of vm-2: leave out --name",
	} {
		a := &agent{o: NodeOptions{Name: given, Kubeconfig: path}}
		err := a.identify(config)
		if got := a.o.Name; err == nil && got != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("--name %q: name %q, error %v; want %s", given, got, err, want)
		}
	}
}
