package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubeconfigs of other clusters may use them
	componentcli "k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"

	"github.com/endpointd/endpointd/internal/app"
)

func newKubectl(streams IO) *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl",
		Short: "The stock kubectl, which finds the server's kubeconfig by itself",
		Long: `The stock kubectl. It takes the kubeconfig from the first of:
  --kubeconfig FILE
  --data-dir DIR     that of the server with this data folder
  $KUBECONFIG
  that of the server with the default data folder, if there is one
  ~/.kube/config`,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			args, err := useKubeconfig(args, dataDir())
			if err != nil {
				return err
			}
			runKubectl(args, streams)
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			args, err := useKubeconfig(args, dataDir())
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			return completeKubectl(args, toComplete)
		},
	}
}

// runKubectl does what upstream's main does. Errors end the process, as kubectl's own exit codes and texts.
func runKubectl(args []string, streams IO) {
	// As upstream: what runs before the flags are parsed, plugins above all, should log already.
	_, _ = logs.GlogSetter(cmd.GetLogVerbosity(append([]string{"kubectl"}, args...)))
	if err := componentcli.RunNoErrOutput(kubectl(args, streams)); err != nil {
		kubectlutil.CheckErr(err)
	}
}

func kubectl(args []string, streams IO) *cobra.Command {
	ioStreams := genericiooptions.IOStreams{In: streams.In, Out: streams.Out, ErrOut: streams.Err}
	// The rates are kubectl's own.
	flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50)
	k := cmd.NewDefaultKubectlCommandWithArgs(cmd.KubectlOptions{
		PluginHandler: cmd.NewDefaultPluginHandler(plugin.ValidPluginFilenamePrefixes),
		Arguments:     append([]string{"kubectl"}, args...),
		ConfigFlags:   flags.WithWarningPrinter(ioStreams),
		IOStreams:     ioStreams,
	})
	k.SetArgs(args)
	return k
}

// completeKubectl asks kubectl's own completion, which prints a suggestion a line and last the directive, ":4".
func completeKubectl(args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	var out bytes.Buffer
	k := kubectl(append(append([]string{cobra.ShellCompRequestCmd}, args...), toComplete), IO{Out: &out, Err: &bytes.Buffer{}})
	k.SetOut(&out)
	k.SetErr(&bytes.Buffer{})
	if err := k.Execute(); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	text := strings.TrimSuffix(out.String(), "\n")
	last := strings.LastIndex(text, ":")
	if last < 0 {
		return nil, cobra.ShellCompDirectiveError
	}
	directive, err := strconv.Atoi(text[last+1:])
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	if last == 0 {
		return nil, cobra.ShellCompDirective(directive)
	}
	return strings.Split(strings.TrimSuffix(text[:last], "\n"), "\n"), cobra.ShellCompDirective(directive)
}

// useKubeconfig takes --data-dir out of kubectl's arguments and points $KUBECONFIG, which plugins see too, to the right
// file. What follows "--" belongs to the command of exec, run or debug.
func useKubeconfig(args []string, defaultDir string) ([]string, error) {
	const flag = "--data-dir"
	var rest []string
	dir, explicit := "", false
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			rest = append(rest, args[i:]...)
			break
		}
		switch {
		case arg == flag:
			i++
			if i == len(args) {
				return nil, usageError{errors.New("flag needs an argument: " + flag)}
			}
			dir = args[i]
		case strings.HasPrefix(arg, flag+"="):
			dir = strings.TrimPrefix(arg, flag+"=")
		default:
			explicit = explicit || arg == "--kubeconfig" || strings.HasPrefix(arg, "--kubeconfig=")
			rest = append(rest, arg)
		}
	}
	switch {
	case explicit:
		return rest, nil
	case dir != "":
		file := app.Kubeconfig(dir)
		if _, err := os.Stat(file); err != nil {
			return nil, fmt.Errorf("%w: start a server with --data-dir %s first", err, dir)
		}
		return rest, os.Setenv("KUBECONFIG", file)
	case os.Getenv("KUBECONFIG") != "":
		return rest, nil
	}
	if file := app.Kubeconfig(defaultDir); readable(file) {
		return rest, os.Setenv("KUBECONFIG", file)
	}
	return rest, nil
}

func readable(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}
