// Package healthcheck tells load balancers whether they should send to this node.
//
// What it is: two things of kube-proxy that clouds rely on. [Server] answers on the healthCheckNodePort of each Service with externalTrafficPolicy
// Local: 200 if this node has endpoints of it, else 503. [Proxy] is the proxy's own /healthz and /livez, for Services with the policy Cluster (KEP-3836).
// Status, headers and bodies are those of Kubernetes 1.37 (pkg/proxy/healthcheck).
//
// In: Snapshots that are in force. Out: HTTP on the node's addresses.
//
// Invariants: the latest Snapshot wins, and an answer is of it, whoever opened the listener. A port that is taken is named, tried again, and hurts no other.
// A client costs a bounded amount of memory and time.
//
// It refuses to decide who is healthy: the counts are model's.
//
// How to test: go test ./internal/dataplane/healthcheck listens on loopback.
package healthcheck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/endpointd/endpointd/internal/model"
)

// Options are those of a [Server].
type Options struct {
	// Healthy says whether the data plane follows, for example [Proxy.Healthy]; nil = always.
	Healthy func() bool
	// Failed, if not nil, is called once for a Service that loses listeners, or cannot have them, with the first of them. It must not block.
	Failed func(Failure)
	// Logger may be nil.
	Logger *slog.Logger
}

// Pauses before a listener that could not be opened is tried again.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// Server has one listener for each Service with a healthCheckNodePort and each address of the node. Its methods may be called concurrently.
type Server struct {
	options Options
	wake    chan struct{} // holds one token if there is a Snapshot that Run has not seen

	conns sync.WaitGroup // connections

	mu      sync.Mutex // guards what follows
	latest  *model.Snapshot
	follows *model.Snapshot             // what ports is of
	ports   map[model.ServiceKey]uint16 // of the Services that have one
	failing map[place]*Failure          // listeners that could not be opened
}

// A place is where a listener belongs.
type place struct {
	service model.ServiceKey
	addr    netip.AddrPort
}

// A Failure is a listener that could not be opened.
type Failure struct {
	Service model.ServiceKey
	UID     string // the Service's
	Addr    netip.AddrPort
	Err     error
}

// New returns a Server; it listens nowhere before Run.
func New(o Options) *Server {
	if o.Healthy == nil {
		o.Healthy = func() bool { return true }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{options: o, wake: make(chan struct{}, 1), ports: map[model.ServiceKey]uint16{}, failing: map[place]*Failure{}}
}

// Set says what is in force, and returns at once. One that is older than what was Set before is ignored.
func (s *Server) Set(now *model.Snapshot) {
	s.mu.Lock()
	if s.latest == nil || now.Revision > s.latest.Revision {
		s.latest = now
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default: // one look sees both
	}
}

// Failing are the listeners that are missing now, by Service and address.
func (s *Server) Failing() []Failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Failure
	for _, f := range s.failing {
		all = append(all, *f)
	}
	slices.SortFunc(all, func(a, b Failure) int { return cmp.Or(a.Service.Compare(b.Service), a.Addr.Compare(b.Addr)) })
	return all
}

// Run listens until ctx ends; then it closes everything, and returns nil.
func (s *Server) Run(ctx context.Context) error {
	open := map[place]*listener{}
	defer func() {
		for _, l := range open {
			l.close()
		}
		s.conns.Wait()
	}()
	retry := time.NewTimer(0)
	<-retry.C
	defer retry.Stop()
	pause := firstRetry
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			pause = firstRetry
		case <-retry.C:
			pause = min(2*pause, lastRetry)
		}
		if s.reconcile(ctx, open) {
			retry.Reset(pause)
		} else {
			retry.Stop()
		}
	}
}

// reconcile makes open what it should be, and says whether anything is missing.
func (s *Server) reconcile(ctx context.Context, open map[place]*listener) (missing bool) {
	want := s.want()
	for p, l := range open {
		if !want[p] || l.ended() {
			l.close()
			delete(open, p)
		}
	}
	failing := map[place]*Failure{}
	for p := range want {
		if open[p] != nil {
			continue
		}
		l, err := s.listen(ctx, p)
		if err != nil {
			failing[p] = &Failure{Service: p.service, Addr: p.addr, Err: fmt.Errorf("service %s: health check on %s: %w; "+
				"stop what has the port, or make the Service anew with another healthCheckNodePort", p.service, p.addr, err)}
			continue
		}
		open[p] = l
	}
	s.mu.Lock()
	before := s.failing
	s.failing = failing
	for p, f := range failing {
		if service := s.latest.Service(p.service); service != nil {
			f.UID = service.UID
		}
	}
	s.mu.Unlock()
	s.tell(before)
	return len(failing) > 0
}

// tell says which listeners are missing that were not before.
func (s *Server) tell(before map[place]*Failure) {
	told := map[model.ServiceKey]bool{}
	for _, f := range s.Failing() {
		if b := before[place{service: f.Service, addr: f.Addr}]; b != nil && b.Err.Error() == f.Err.Error() {
			continue
		}
		s.options.Logger.Warn("a load balancer cannot ask for a Service's health, trying again",
			"component", "healthcheck", "service", f.Service.String(), "err", f.Err)
		if s.options.Failed != nil && !told[f.Service] {
			told[f.Service] = true
			s.options.Failed(f)
		}
	}
}

// want are the listeners that the latest Snapshot asks for.
func (s *Server) want() map[place]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.latest == nil {
		return nil
	}
	if s.latest != s.follows {
		s.follow(s.latest.Changed(s.follows))
		s.follows = s.latest
	}
	want := map[place]bool{}
	for service, port := range s.ports {
		for _, addr := range s.latest.Network.NodePortAddrs {
			want[place{service: service, addr: netip.AddrPortFrom(addr, port)}] = true
		}
	}
	return want
}

// follow updates ports, with s.mu held.
func (s *Server) follow(changed iter.Seq[model.ServiceKey]) {
	for key := range changed {
		delete(s.ports, key)
		if service := s.latest.Service(key); service != nil && service.HealthCheckNodePort != 0 {
			s.ports[key] = service.HealthCheckNodePort
		}
	}
}

// A listener is open and serves.
type listener struct {
	http *http.Server
	done chan struct{} // closed when it does not serve any more
}

func (s *Server) listen(ctx context.Context, p place) (*listener, error) {
	network := "tcp4"
	if p.addr.Addr().Is6() {
		network = "tcp6"
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, network, p.addr.String())
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err // the address is named already
		}
		return nil, err
	}
	open := &listener{http: NewHTTP(s.handler(p)), done: make(chan struct{})}
	open.http.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			s.conns.Add(1)
		case http.StateClosed, http.StateHijacked:
			s.conns.Done()
		default:
		}
	}
	go func() {
		defer close(open.done)
		if err := open.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.options.Logger.Error("a health check ended", "component", "healthcheck", "service", p.service.String(), "err", err)
		}
	}()
	return open, nil
}

func (l *listener) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

func (l *listener) close() {
	_ = l.http.Close() // its error is that of a socket that is closed anyway
	<-l.done
}

// Bounds of a client: a health check has no body, few headers, and is asked again soon.
const (
	headerTime = 5 * time.Second
	answerTime = 10 * time.Second
	idleTime   = 2 * time.Minute // load balancers ask every few seconds to a minute
	headerSize = 8 << 10         // bytes
)

// NewHTTP returns a server for h that bounds what a client can take.
func NewHTTP(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: headerTime, ReadTimeout: answerTime, WriteTimeout: answerTime,
		IdleTimeout: idleTime, MaxHeaderBytes: headerSize, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
}

// handler answers for a Service.
func (s *Server) handler(p place) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		latest := s.latest
		s.mu.Unlock()
		count := 0
		if service := latest.Service(p.service); service != nil && service.HealthCheckNodePort == p.addr.Port() {
			count = service.LocalEndpoints
		}
		healthy := s.options.Healthy()
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(count))
		answer(w, count != 0 && healthy, fmt.Appendf(nil, body, p.service.Namespace, p.service.Name, count, healthy))
	})
}

// body is what Kubernetes answers, to the byte.
const body = `{
	"service": {
		"namespace": %q,
		"name": %q
	},
	"localEndpoints": %d,
	"serviceProxyHealthy": %v
}`

func answer(w http.ResponseWriter, good bool, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	status := http.StatusServiceUnavailable
	if good {
		status = http.StatusOK
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client's loss
}
