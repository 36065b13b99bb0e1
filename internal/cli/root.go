// Package cli is the command line: one file a subcommand, which turns flags into the options of a composition root.
//
// In: arguments and streams. Out: an exit code, and on standard error one line for every error.
//
// Invariants: exit code 0 is success, 1 a failure, 2 wrong usage; an error line begins with "endpointd: " and says
// what to do; standard output carries only what was asked for. `endpointd kubectl` is the exception: everything there is
// as the stock kubectl has it.
//
// It refuses to hold logic: flags are parsed and checked here, and used elsewhere.
//
// To test it: go test ./internal/cli. It links k8s.io/kubernetes, so the first build takes minutes.
package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

const (
	exitFailure = 1
	exitUsage   = 2
)

// IO are the streams of a command.
type IO struct {
	In       io.Reader
	Out, Err io.Writer
}

// Main runs the command line without the program's name and returns the exit code.
func Main(args []string, streams IO) int {
	parsed := false
	root := newRoot(streams)
	root.SetArgs(args)
	// Cobra has no type for its errors about usage, but finds them all before it comes here.
	root.PersistentPreRun = func(*cobra.Command, []string) { parsed = true }
	cmd, err := root.ExecuteC()
	if err == nil {
		return 0
	}
	// A line is a line, also of joined errors.
	text := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
	if exit, is := errors.AsType[exitError](err); is {
		if exit.err != nil {
			fmt.Fprintf(streams.Err, "endpointd: %s\n", text)
		}
		return exit.code
	}
	var usage usageError
	if parsed && !errors.As(err, &usage) {
		fmt.Fprintf(streams.Err, "endpointd: %s\n", text)
		return exitFailure
	}
	// Cobra suggests similar commands in further lines; the first says it all.
	text, _, _ = strings.Cut(text, "; ; ")
	fmt.Fprintf(streams.Err, "endpointd: %s: see %s --help\n", text, cmd.CommandPath())
	return exitUsage
}

// usageError is a wrong flag value.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// flagError names the flag.
func flagError(flag, format string, args ...any) error {
	return usageError{fmt.Errorf("--%s: %w", flag, fmt.Errorf(format, args...))}
}

func newRoot(streams IO) *cobra.Command {
	root := &cobra.Command{
		Use:           "endpointd",
		Short:         "Kubernetes Services and Endpoints as one small program",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true // completion.go has it
	root.DisableSuggestions = true
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.Err)
	root.AddCommand(newUp(streams), newExec(streams), newStatus(streams), newDown(streams), newDebug(streams), newInside(streams), newServer(streams), newNode(streams), newDNS(streams), newKubeconfig(streams), newKubectl(streams), newVersion(), newCompletion())
	return root
}

// defaultDataDir is the system's state folder for root, and the user's otherwise (XDG Base Directory Specification).
func defaultDataDir(uid int, getenv func(string) string) string {
	if uid == 0 {
		return "/var/lib/endpointd"
	}
	state := getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) { // the specification says to ignore relative paths
		state = filepath.Join(getenv("HOME"), ".local", "state")
	}
	return filepath.Join(state, "endpointd")
}

func dataDir() string { return defaultDataDir(os.Getuid(), os.Getenv) }
