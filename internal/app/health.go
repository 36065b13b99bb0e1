package app

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/dataplane/healthcheck"
)

// serveHealth answers /healthz, /livez and /metrics on an address until ctx ends. That another program has the port costs no more than this.
func (p *plane) serveHealth(ctx context.Context) error {
	if p.o.listen == "" {
		<-ctx.Done()
		return nil
	}
	l, err := net.Listen("tcp", p.o.listen)
	if err != nil {
		p.o.log.Warn("no health checks and metrics: another proxy may have the port; choose another one with --healthz-bind-address", "err", err)
		<-ctx.Done()
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("/", p.health.Handler())
	mux.HandleFunc("GET /metrics", metricsHandler(p))
	return serveHTTP(ctx, l, healthcheck.NewHTTP(mux))
}

// setEligible says whether load balancers may send to the node. A nil Node does not exist.
func (p *plane) setEligible(n *corev1.Node) {
	p.health.SetEligible(n != nil && n.DeletionTimestamp.IsZero() &&
		!slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == healthcheck.ToBeDeleted }))
}

// metricsHandler writes the few numbers of a data plane in the text format of Prometheus (exposition format 0.0.4).
func metricsHandler(p *plane) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		s := p.status()
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		write := func(name, help string, value any) {
			fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s gauge\n%s %v\n", name, help, name, name, value)
		}
		write("endpointd_dataplane_wanted_revision", "Revision of the newest Snapshot; 0 is none.", s.Revision)
		write("endpointd_dataplane_applied_revision", "Revision of the Snapshot in force; 0 is none.", s.Applied)
		write("endpointd_dataplane_late_seconds", "Age of the oldest Snapshot that is not in force; 0 if all are.", s.LateSeconds)
		write("endpointd_dataplane_services", "Services in force.", s.Services)
		const sync = "endpointd_dataplane_sync_seconds"
		fmt.Fprintf(w, "# HELP %s Time from a Snapshot to its being in force.\n# TYPE %s summary\n%s_sum %v\n%s_count %v\n", sync, sync, sync, s.SyncSeconds, sync, s.Syncs)
		if p.names != nil {
			_ = p.names.server.WriteMetrics(w) // the client may have left
		}
	}
}
