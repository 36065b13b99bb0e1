package app

import (
	"context"
	"log/slog"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/endpointd/endpointd/internal/apiserver"
	"github.com/endpointd/endpointd/internal/reexec"
	"github.com/endpointd/endpointd/internal/sandbox"
)

// RunInside is PID 1 of a sandbox, which RunUp starts.
func RunInside(logger *slog.Logger) error {
	apiserver.RouteKlog(logger)
	return sandbox.Run(sandbox.RunOptions{Logger: logger, Holders: []string{reexec.Pod}, Publish: func(ctx context.Context, p sandbox.Publishing) error {
		config, err := clientcmd.BuildConfigFromFlags("", p.Kubeconfig)
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(withoutWarnings(config))
		if err != nil {
			return err
		}
		n := nodePorts{client: client, open: p.Open, report: p.Report, log: logger}
		return n.run(ctx)
	}})
}
