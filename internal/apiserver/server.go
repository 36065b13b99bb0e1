package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/rest"

	"github.com/endpointd/endpointd/internal/apiserver/etcd"
	"github.com/endpointd/endpointd/internal/apiserver/inprocess"
)

// Server is one API server. Several on one etcd work together.
type Server struct {
	generic   *genericapiserver.GenericAPIServer
	loopback  *inprocess.Transport
	crds      *apiextensions.CustomResourceDefinitions
	informers informers.SharedInformerFactory
	log       *slog.Logger
	ready     chan struct{}

	mu      sync.Mutex // guards stopped, and work against a start after the wait
	stopped bool
	work    sync.WaitGroup // what spawn started
}

const (
	// shutdownGrace is how long Run waits for open watches, then for connections, to end by themselves.
	shutdownGrace = 2 * time.Second
	// startGrace is how long Run goes on starting when ctx ends before it is ready. Upstream ends the process, with a
	// dump of all goroutines, when it is interrupted in a post-start hook.
	startGrace = 5 * time.Second
)

// New composes a server. It talks to etcd, so that a wrong address is an error here and not a server that never gets
// ready, and it starts what caches etcd; Run serves. ctx bounds New only.
func New(ctx context.Context, o Options) (*Server, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	RouteKlog(o.Logger)
	external := etcd.External{Servers: o.Etcd.Servers, CAFile: o.Etcd.CAFile, CertFile: o.Etcd.CertFile, KeyFile: o.Etcd.KeyFile}
	if err := etcd.Check(ctx, external); err != nil {
		return nil, err
	}
	b := &builder{options: o}
	s, err := b.build()
	if err != nil {
		b.destroy()
		return nil, fmt.Errorf("api server: %w", err)
	}
	return s, nil
}

// Ready is closed when requests are served and /readyz is good: see the package comment for what that includes.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// LoopbackConfig is a client configuration with all rights for this process: protobuf, no rate limit, no deprecation
// warnings in the log. Requests work once Run is running. The result is the caller's.
func (s *Server) LoopbackConfig() *rest.Config {
	c := rest.CopyConfig(s.generic.LoopbackClientConfig)
	c.WarningHandler = rest.NoWarnings{}
	return c
}

// Run serves until ctx ends, then takes this server out of the endpoints of the kubernetes Service, lets requests
// finish, and returns when what it started has ended; clients that keep their connection cost about a second. It is
// called once and owns the listener.
func (s *Server) Run(ctx context.Context) error {
	prepared := s.generic.PrepareRun()
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	s.spawn(func() { s.watchReady(running) })
	s.spawn(func() {
		defer stop()
		select {
		case <-ctx.Done():
		case <-running.Done():
			return
		}
		select {
		case <-s.ready:
		case <-time.After(startGrace):
		}
	})
	err := prepared.RunWithContext(running)
	stop()
	s.informers.Shutdown()
	s.crds.Informers.Shutdown()
	s.loopback.Close()
	s.wait()
	if err != nil {
		return fmt.Errorf("api server: %w", err)
	}
	return nil
}

// spawn runs f; Run waits for it. Once Run is at its end nothing starts any more.
func (s *Server) spawn(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.work.Go(f)
	}
}

func (s *Server) wait() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.work.Wait()
}

// watchReady closes s.ready when /readyz is good. Upstream has no signal for the end of all post-start hooks, only
// the handler; it is asked directly, without a connection, so asking often costs next to nothing.
func (s *Server) watchReady(ctx context.Context) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		var answer status
		request := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/readyz"}, Header: http.Header{}}
		s.generic.Handler.NonGoRestfulMux.ServeHTTP(&answer, request.WithContext(ctx))
		if answer.code == http.StatusOK {
			close(s.ready)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// status is a ResponseWriter that keeps only the status code.
type status struct {
	header http.Header
	code   int
}

func (s *status) Header() http.Header {
	if s.header == nil {
		s.header = http.Header{}
	}
	return s.header
}

func (s *status) WriteHeader(code int) {
	if s.code == 0 {
		s.code = code
	}
}

func (s *status) Write(p []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	return len(p), nil
}
