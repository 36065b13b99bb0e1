package app

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"
)

// proxyHealth is what kube-proxy answers at /healthz and /livez (pkg/proxy/healthcheck of Kubernetes 1.37), for load balancers and probes.
type proxyHealth struct {
	LastUpdated  time.Time `json:"lastUpdated"`
	CurrentTime  time.Time `json:"currentTime"`
	NodeEligible *bool     `json:"nodeEligible,omitempty"`
}

// healthHandler serves /healthz, /livez and /metrics. Eligible says whether load balancers may send traffic to this node.
func healthHandler(p *plane, eligible func() bool) http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, well bool, h proxyHealth) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if !well {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(h) // the client may have left
	}
	state := func() (bool, proxyHealth) {
		now := time.Now()
		h := proxyHealth{LastUpdated: now, CurrentTime: now}
		err := p.healthy()
		if err != nil {
			p.mu.Lock()
			h.LastUpdated = p.since
			p.mu.Unlock()
		}
		return err == nil, h
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		well, h := state()
		h.NodeEligible = new(eligible())
		answer(w, well && *h.NodeEligible, h)
	})
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		well, h := state()
		answer(w, well, h)
	})
	mux.HandleFunc("GET /metrics", metricsHandler(p))
	return mux
}

// metricsHandler writes the few numbers of a data plane in the text format of Prometheus (exposition format 0.0.4).
func metricsHandler(p *plane) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		s := p.status()
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		write := func(name, kind, help string, value any) {
			fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %v\n", name, help, name, kind, name, value)
		}
		write("endpointd_dataplane_wanted_revision", "gauge", "Revision of the newest Snapshot; 0 is none.", s.Revision)
		write("endpointd_dataplane_applied_revision", "gauge", "Revision of the Snapshot in force; 0 is none.", s.Applied)
		write("endpointd_dataplane_services", "gauge", "Services in force.", s.Services)
		const sync = "endpointd_dataplane_sync_seconds"
		fmt.Fprintf(w, "# HELP %s Time from a Snapshot to its being in force.\n# TYPE %s summary\n%s_sum %v\n%s_count %v\n", sync, sync, sync, s.SyncSeconds, sync, s.Syncs)
	}
}

// serveHealth answers on an address until ctx ends. That another program has the port costs no more than this.
func (p *plane) serveHealth(ctx context.Context, eligible func() bool) error {
	if p.o.health == "" {
		<-ctx.Done()
		return nil
	}
	l, err := net.Listen("tcp", p.o.health)
	if err != nil {
		p.o.log.Warn("no health checks: another proxy may have the port; choose another one with --healthz-bind-address", "err", err)
		<-ctx.Done()
		return nil
	}
	return serveHTTP(ctx, l, healthHandler(p, eligible), p.o.log)
}
