package app

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/endpointd/endpointd/internal/apiserver"
	"github.com/endpointd/endpointd/internal/fdstore"
	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/node/traffic"
	"github.com/endpointd/endpointd/internal/node/watch"
)

// DNSOptions are those of `endpointd dns`.
type DNSOptions struct {
	NamesOptions
	Kubeconfig string // "" = the service account of the pod that this process runs in
	Healthz    string // address of health checks and metrics, host:port; "" = none
	Logger     *slog.Logger
	// Ready is called once, when the cluster's names are answered.
	Ready func(listen []netip.AddrPort)
}

// RunDNS answers the names of any Kubernetes cluster until ctx ends. It reads Services, EndpointSlices, Nodes, ServiceCIDRs and, one by one, pods,
// and writes nothing.
func RunDNS(ctx context.Context, o DNSOptions) error {
	kept := fdstore.Inherit()
	apiserver.RouteKlog(o.Logger)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(agentGC)
	}
	config, err := access(o.Kubeconfig, "endpointd-dns", "give that of a user with the role of deploy/dns.yaml")
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(watch.Connection(config))
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", o.Kubeconfig, err)
	}
	var addrs []netip.Addr
	for _, l := range o.Listen {
		if !l.Addr().IsUnspecified() {
			addrs = append(addrs, l.Addr())
		}
	}
	n, err := newNames(ctx, namesOptions{NamesOptions: o.NamesOptions, servers: addrs, podExists: podByAddr(client), kept: kept, log: o.Logger})
	if err != nil {
		return err
	}
	return o.serve(ctx, n, client)
}

// serve has everything run until ctx ends.
func (o *DNSOptions) serve(ctx context.Context, n *names, client kubernetes.Interface) error {
	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var work sync.WaitGroup
	defer work.Wait()
	ready := make(chan struct{})
	var t *traffic.Traffic
	t = traffic.New(traffic.Options{
		Client: client, Addrs: []netip.Addr{netip.IPv4Unspecified()}, Logger: o.Logger, // it is no node, and has no NodePorts
		Interfaces: func() ([]netip.Addr, error) { return nil, nil },
		Set: func(s *model.Snapshot) {
			n.set(s)
			select {
			case <-ready:
			default:
				close(ready)
			}
		},
		Wait:       func(context.Context, uint64) error { return nil },
		Programmed: n.programmed,
		NodeChanged: func(was, now *corev1.Node) {
			if was == nil || now == nil || !samePeer(was, now) {
				n.setNodes(t.Nodes().List())
			}
		},
	})
	for what, f := range map[string]func(context.Context) error{"DNS": n.run, "watch of Services": t.Run, "health checks": o.health(n, ready)} {
		work.Go(func() {
			if err := f(running); running.Err() == nil {
				fail(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	work.Go(func() { trimMemory(running) })
	work.Go(func() { dropPages(running) })
	select {
	case <-ready:
		o.Ready(n.server.Addrs())
		tellReady(n.o.kept, o.Logger)
	case <-running.Done():
	}
	<-running.Done()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(running)
}

// health serves /healthz, /readyz and /metrics.
func (o *DNSOptions) health(n *names, ready <-chan struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		if o.Healthz == "" {
			<-ctx.Done()
			return nil
		}
		l, err := net.Listen("tcp", o.Healthz)
		if err != nil {
			return fmt.Errorf("%w: choose another one with --healthz-bind-address", err)
		}
		mux := http.NewServeMux()
		mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
		mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
			select {
			case <-ready:
				_, _ = fmt.Fprintln(w, "ok")
			default:
				http.Error(w, "the API has not told everything yet", http.StatusServiceUnavailable)
			}
		})
		mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
			_ = n.server.WriteMetrics(w) // the client may have left
		})
		return serveHTTP(ctx, l, &http.Server{Handler: mux, ReadHeaderTimeout: debugHeader, WriteTimeout: debugAnswer, IdleTimeout: debugAnswer, MaxHeaderBytes: 16 << 10})
	}
}

// podByAddr asks the API for pods. Only a pod's first address can be asked for.
func podByAddr(client kubernetes.Interface) func(ctx context.Context, namespace string, addr netip.Addr) (bool, error) {
	return func(ctx context.Context, namespace string, addr netip.Addr) (bool, error) {
		pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{FieldSelector: "status.podIP=" + addr.String(), ResourceVersion: "0"})
		if err != nil {
			return false, fmt.Errorf("is there a pod with %s in %s: %w", addr, namespace, err)
		}
		for i := range pods.Items {
			if p := pods.Items[i].Status.Phase; p != corev1.PodSucceeded && p != corev1.PodFailed {
				return true, nil
			}
		}
		return false, nil
	}
}
