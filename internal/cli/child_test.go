package cli

import (
	"os"
	"os/exec"
	"testing"
)

// rerun runs one test of this binary in a process of its own, with more environment.
func rerun(t *testing.T, test string, env ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+test+"$")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
