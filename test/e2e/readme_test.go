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

// TestReadme runs the commands of the README's main job. Between the lines there is only the wait that a person's hands are.
func TestReadme(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Program("kubectl"))
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
	const server = "bin/endpointd server "
	started := false
	for line := range strings.Lines(section) {
		command, isCommand := strings.CutPrefix(line, "    ")
		if !isCommand || strings.HasPrefix(command, "make build") {
			continue
		}
		if strings.HasPrefix(command, server) {
			started = true
			command = strings.Replace(command, " &", " >$DIR.log 2>&1 &", 1) +
				"pid=$!; trap 'kill -KILL $pid 2>/dev/null || true' EXIT\n" +
				"until grep -q 'endpointd is ready' $DIR.log; do kill -0 $pid; sleep 0.02; done\n"
		}
		switch { // the endpoints follow within milliseconds, kubectl within tens of them
		case strings.HasPrefix(command, "kubectl get ep some-service"):
			command = "kubectl wait endpoints/some-service --for=jsonpath='{.subsets[0].addresses[0].ip}'=10.1.0.11 --timeout=20s\n" + command
		case strings.HasPrefix(command, "kubectl apply -f examples/my-service.yaml"):
			command += "until kubectl get endpointslices -l kubernetes.io/service-name=my-service -o name | grep -q .; do :; done\n"
		}
		commands.WriteString(command)
	}
	if !started {
		t.Fatalf("no %q in the README", server)
	}
	dir := filepath.Join(t.TempDir(), "data")
	text := strings.NewReplacer("/tmp/endpointd", dir, "127.0.0.1:6443", freePort(t)).Replace(commands.String())
	out := script(t, "DIR="+dir+"\n"+text+"\nwait $pid")
	for _, want := range []string{"some-service 10.1.0.11:8080", "Endpoints: 10.1.0.11:8080", "192.0.2.45"} {
		if !strings.Contains(squeeze(out), want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

// TestDemo runs what make demo runs; it checks its own results.
func TestDemo(t *testing.T) {
	t.Parallel()
	if out := script(t, "hack/demo.sh"); !strings.Contains(out, "exit code 0") {
		t.Errorf("the demo ended with\n%s", out)
	}
}
