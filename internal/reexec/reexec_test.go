package reexec_test

import (
	"os/exec"
	"strings"
	"testing"
)

// TestLight holds that the small processes stay so: what this package imports initialises before it, in each of them.
func TestLight(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	imports := strings.Fields(string(out))
	if len(imports) < 3 {
		t.Fatalf("too few imports to be true: %v", imports)
	}
	for _, path := range imports {
		if heavy(path) {
			t.Errorf("reexec imports %s: it initialises too late, or costs each pod too much; keep to the standard library", path)
		}
	}
	for _, path := range []string{"k8s.io/api/core/v1", "google.golang.org/grpc", "github.com/spf13/cobra", "github.com/endpointd/endpointd/internal/app"} {
		if !heavy(path) {
			t.Errorf("%s passes for light", path)
		}
	}
}

// heavy says whether an import path is not one of the few that are known to be small and early.
func heavy(path string) bool {
	const module = "github.com/endpointd/endpointd/internal/"
	for _, light := range []string{"golang.org/x/sys/unix", module + "reexec", module + "echo", module + "node/container", module + "node/shim"} {
		if path == light || strings.HasPrefix(path, light+"/") {
			return false
		}
	}
	return true
}
