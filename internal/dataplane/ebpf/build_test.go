package ebpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/endpointd/endpointd/internal/testkit"
)

// What is checked in is what the sources compile to.
func TestCompiledProgramsMatchTheirSource(t *testing.T) {
	testkit.Need(t, testkit.Program("clang-16"))
	testkit.Need(t, testkit.Program("llvm-strip-16"))
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "./build.sh", dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v\n%s", err, out)
	}
	built, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(built) != 4 {
		t.Fatalf("built %v, %v; want Go and an object for both byte orders", built, err)
	}
	for _, path := range built {
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Base(path))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the sources make (%v); run build.sh and commit what it writes", filepath.Base(path), err)
		}
	}
}
