package testkit

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// Kubectl runs commands against one server: the stock kubectl of PATH or the one that is built in.
type Kubectl struct {
	// Name tells the two apart in subtests: "kubectl" or "endpointd kubectl".
	Name string

	t      testing.TB
	server *ServerProcess
	argv   []string // program and leading arguments
	stdin  string
}

// Output is what a command printed.
type Output struct {
	Stdout, Stderr string
}

// Kubectl is the stock kubectl; the test is skipped, as [Need] says, where there is none.
func (s *ServerProcess) Kubectl() Kubectl {
	s.t.Helper()
	Need(s.t, Program("kubectl"))
	return Kubectl{Name: "kubectl", t: s.t, server: s, argv: []string{"kubectl"}}
}

// BuiltinKubectl is `endpointd kubectl`.
func (s *ServerProcess) BuiltinKubectl() Kubectl {
	return Kubectl{Name: "endpointd kubectl", t: s.t, server: s, argv: []string{s.options.Binary, "kubectl"}}
}

// In returns a copy that reports to another test, such as a subtest.
func (k Kubectl) In(t testing.TB) Kubectl {
	k.t = t
	return k
}

// WithInput returns a copy whose commands read text from standard input, for `apply -f -`.
func (k Kubectl) WithInput(text string) Kubectl {
	k.stdin = text
	return k
}

// Run runs a command and returns its standard output. The test fails if the command does.
func (k Kubectl) Run(args ...string) string {
	k.t.Helper()
	out, err := k.Try(args...)
	if err != nil {
		k.t.Fatal(err)
	}
	return out.Stdout
}

// Command returns a command that is not started yet, for a test that reads along while it runs. It is killed when
// the test ends; whoever starts it waits for it.
func (k Kubectl) Command(args ...string) *exec.Cmd {
	argv := append(k.argv[1:len(k.argv):len(k.argv)], args...)
	cmd := exec.CommandContext(k.t.Context(), k.argv[0], argv...)
	cmd.Env = append(environment(k.server.home), "KUBECONFIG="+k.server.Kubeconfig)
	cmd.Stdin = strings.NewReader(k.stdin)
	return cmd
}

// Try runs a command that may fail. The error holds the command and what it printed on standard error.
func (k Kubectl) Try(args ...string) (Output, error) {
	cmd := k.Command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", k.Name, strings.Join(args, " "), err, stderr.String())
	}
	return Output{Stdout: stdout.String(), Stderr: stderr.String()}, err
}
