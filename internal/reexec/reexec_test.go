package reexec_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestLight holds that the small processes stay so: what this package imports initialises before it, in each of them.
func TestLight(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{.ImportPath}}{{if .Standard}} std{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	imports := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(imports) < 20 {
		t.Fatalf("too few imports to be true: %v", imports)
	}
	for _, path := range imports {
		if heavy(path) {
			t.Errorf("reexec imports %s: it initialises too late, or costs each pod too much; keep to the standard library without net", path)
		}
	}
	for _, path := range []string{
		"k8s.io/api/core/v1", "google.golang.org/grpc", "github.com/spf13/cobra", "github.com/endpointd/endpointd/internal/app",
		"net std", "net/http std", "runtime/debug std", "vendor/golang.org/x/net/idna std", "github.com/endpointd/endpointd/internal/echo",
	} {
		if !heavy(path) {
			t.Errorf("%s passes for light", path)
		}
	}
}

// heavy says whether a line of the list is not one of the packages that are known to be small and early.
func heavy(line string) bool {
	const module = "github.com/endpointd/endpointd/internal/"
	path, standard := strings.CutSuffix(line, " std")
	if standard {
		// The standard library's own copies of golang.org/x lie below vendor/, which sorts after k8s.io. Other packages are ready late
		// because hardly anything that initialises early needs them.
		late := slices.Contains([]string{"net", "path/filepath", "runtime/debug", "os/exec", "log"}, path)
		return late || strings.HasPrefix(path, "net/") || strings.HasPrefix(path, "vendor/") || strings.HasPrefix(path, "log/")
	}
	for _, light := range []string{"golang.org/x/sys/unix", module + "reexec", module + "node/container", module + "node/shim", module + "pages"} {
		if path == light || strings.HasPrefix(path, light+"/") {
			return false
		}
	}
	return true
}
