package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/testkit"
)

// script runs a script of bash in the root of the repository, as a user with an empty home would.
func script(t *testing.T, text string) string {
	t.Helper()
	testkit.Binary(t)
	root, err := testkit.Root()
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", text)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "KUBECONFIG=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// TestReadme runs the commands of the README's main job, with a folder and a port of the test's own. Between the lines
// there is only the wait that a person's hands are.
func TestReadme(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	testkit.Need(t, testkit.Program("kubectl"))
	testkit.Need(t, testkit.Program("curl"))
	root, err := testkit.Root()
	check(t, err)
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	check(t, err)
	_, section, found := strings.Cut(string(readme), "\n## The main job\n")
	if !found {
		t.Fatal("the README has no section The main job")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var commands strings.Builder
	const up = "bin/endpointd up "
	for line := range strings.Lines(section) {
		command, isCommand := strings.CutPrefix(line, "    ")
		if !isCommand || strings.HasPrefix(command, "make build") {
			continue
		}
		switch { // the endpoints follow within milliseconds, kubectl within tens of them
		case strings.HasPrefix(command, up):
			command = strings.Replace(command, up, up+"--listen 127.0.0.1:0 ", 1) +
				"trap 'bin/endpointd down --data-dir /tmp/endpointd >/dev/null 2>&1 || true' EXIT\n"
		case strings.HasPrefix(command, "kubectl apply -f examples/my-service.yaml"):
			command += "until kubectl get endpointslices -l kubernetes.io/service-name=my-service -o name | grep -q .; do :; done\n"
		}
		commands.WriteString(command)
	}
	for _, want := range []string{up, "bin/endpointd down "} {
		if !strings.Contains(commands.String(), want) {
			t.Fatalf("no %q in the README", want)
		}
	}
	dir := filepath.Join(t.TempDir(), "data")
	out := squeeze(script(t, strings.ReplaceAll(commands.String(), "/tmp/endpointd", dir)))
	for _, want := range []string{
		"endpointd is ready: https://127.0.0.1:", "node-2 Ready",
		"client: 10.200.0.12:", "some-run-1", // an answer of the pod to a client on node-2
		"database-vm condition met", "10.200.0.1", "192.0.2.45",
		dir + ": ended",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

// TestDemo runs what make demo runs; it checks its own results.
func TestDemo(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	if out := script(t, "hack/demo.sh"); !strings.Contains(out, "Done: no process, namespace or file is left.") {
		t.Errorf("the demo ended with\n%s", out)
	}
}
