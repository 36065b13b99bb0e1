package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	kubeversion "k8s.io/component-base/version"
)

// version is set by the build with -ldflags -X, which needs a variable.
var version = "v0.0.0-dev"

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "endpointd %s (Kubernetes %s, %s, %s/%s)\n",
				version, kubernetesVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// kubernetesVersion is what the build set, or else that of the linked module.
func kubernetesVersion() string {
	v := kubeversion.Get().GitVersion
	if !strings.HasPrefix(v, "v0.0.0-") {
		return v
	}
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range build.Deps {
			if dep.Path == "k8s.io/kubernetes" {
				return dep.Version
			}
		}
	}
	return "v" + kubeversion.DefaultKubeBinaryVersion // a test binary
}
