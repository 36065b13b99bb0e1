package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/node/container"
)

// Pods is what the server asks of the agent. It is called concurrently and must not block; what it returns is not
// modified by either side.
type Pods interface {
	// Lookup gives a pod with its status as the agent sees it now, not as the API last heard of it. Its UID is the
	// runtime's, also of a static pod.
	Lookup(namespace, name string) (*corev1.Pod, bool)
	// List gives all pods of the node.
	List() []*corev1.Pod
	// NetNS is the path of a pod's network namespace, "" if it has none of its own or does not run.
	NetNS(uid string) string
}

// Runtime is the part of container.Runtime that has to do with streams, and has its contract. Besides, Exec ends the command
// when its context ends, and does not wait for Stdin to end once the command has.
type Runtime interface {
	Exec(ctx context.Context, o container.ExecOptions, s container.Streams) (code int, err error)
	Attach(ctx context.Context, pod, name string, s container.Streams) error
	LogFile(pod, name string, attempt int) string
}

// Options are a server's parts. Pods, Runtime, TLS and Logger are needed.
type Options struct {
	Pods    Pods
	Runtime Runtime
	Logger  *slog.Logger

	// TLS has the server's certificate (GetCertificate lets it be renewed) and the CAs of its clients (ClientCAs, or both
	// through GetConfigForClient). Serve sees to it that certificates of clients are verified and the version is at least 1.2.
	TLS *tls.Config
	// Authorize decides who may do what. nil = Trusted.
	Authorize Authorizer

	// Dial connects to an address, a literal IP and a port, within a network namespace, "" = the agent's. nil = DialIn.
	Dial func(ctx context.Context, netns, address string) (net.Conn, error)

	Healthy func() error                             // what /healthz says; nil = always healthy
	Metrics http.Handler                             // /metrics and below; nil = there are none
	Stats   func(ctx context.Context) (Stats, error) // /stats/summary; nil = there is none
	// Peers answers other nodes' questions, below PeersPath. It sees to it that only nodes ask; here they only need a certificate. nil =
	// there are none to ask.
	Peers http.Handler

	MaxStreams  int           // that are open at a time, each forwarded connection counted; zero = 1000
	IdleTimeout time.Duration // after which a stream without a byte is closed; zero = 4 hours, as a kubelet's
}

const (
	defaultMaxStreams  = 1000
	defaultIdleTimeout = 4 * time.Hour
	readHeaderTimeout  = 10 * time.Second
	keepAliveTimeout   = 2 * time.Minute
	maxHeaderBytes     = 1 << 20 // a command to execute is part of the URL
	// endGrace is how long streams may take to end, and answers to be read, after the server's context has.
	endGrace = 3 * time.Second
)

// Server serves a node's API. Make one with New.
type Server struct {
	o       Options
	handler http.Handler
	slots   chan struct{} // has an item for each open stream
	active  tracker       // requests
}

// New makes a server. It does nothing until Serve.
func New(o Options) *Server {
	if o.Authorize == nil {
		o.Authorize = Trusted
	}
	if o.Dial == nil {
		o.Dial = DialIn
	}
	if o.MaxStreams == 0 {
		o.MaxStreams = defaultMaxStreams
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = defaultIdleTimeout
	}
	s := &Server{o: o, slots: make(chan struct{}, o.MaxStreams)}
	s.handler = s.track(authenticated(s.split(s.guard(s.routes()))))
	return s
}

// split hands over what nodes ask each other.
func (s *Server) split(rest http.Handler) http.Handler {
	if s.o.Peers == nil {
		return rest
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, PeersPath) {
			s.o.Peers.ServeHTTP(w, r)
			return
		}
		rest.ServeHTTP(w, r)
	})
}

// Handler is the API with its authentication, which reads the TLS state of a request.
func (s *Server) Handler() http.Handler { return s.handler }

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.containerLogs)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{container}", s.exec)
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{uid}/{container}", s.exec)
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{container}", s.attach)
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{uid}/{container}", s.attach)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}", s.portForward)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}/{uid}", s.portForward)
	}
	mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", s.run)
	mux.HandleFunc("POST /run/{namespace}/{pod}/{uid}/{container}", s.run)
	mux.HandleFunc("GET /pods", s.pods)
	mux.HandleFunc("GET /pods/", s.pods)
	mux.HandleFunc("GET /healthz", s.healthz)
	if s.o.Metrics != nil {
		mux.Handle("GET /metrics", s.o.Metrics)
		mux.Handle("GET /metrics/", s.o.Metrics)
	}
	if s.o.Stats != nil {
		mux.HandleFunc("GET /stats/summary", s.summary)
	}
	return mux
}

// Serve answers on l until ctx ends, and closes l. It returns when all streams have ended, with nil after ctx.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	config, err := s.tlsConfig()
	if err != nil {
		_ = l.Close() // the error of the configuration is the one to tell
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := &http.Server{
		Handler:           s.handler,
		TLSConfig:         config,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       keepAliveTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		// Handshakes that failed and the like: the clients' faults.
		ErrorLog: slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.ServeTLS(l, "", "") }()
	select {
	case <-ctx.Done():
		err = s.shutdown(server)
		if served := <-failed; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(served, err)
		}
	case err = <-failed:
		cancel() // whatever reads or runs for a client ends now
		err = errors.Join(err, s.shutdown(server))
	}
	if err != nil {
		err = fmt.Errorf("node API on %s: %w", l.Addr(), err)
	}
	s.active.wait()
	return err
}

// shutdown lets answers be read for a while.
func (s *Server) shutdown(server *http.Server) error {
	grace, stop := context.WithTimeout(context.Background(), endGrace)
	defer stop()
	if err := server.Shutdown(grace); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return server.Close() // those who did not
}

func (s *Server) tlsConfig() (*tls.Config, error) {
	given := s.o.TLS
	if given == nil || len(given.Certificates) == 0 && given.GetCertificate == nil && given.GetConfigForClient == nil {
		return nil, errors.New("node API: no certificate: set Certificates or GetCertificate")
	}
	if given.ClientCAs == nil && given.GetConfigForClient == nil {
		// With none Go would take the machine's CAs, and anybody with a certificate of theirs.
		return nil, errors.New("node API: no CA for clients: set ClientCAs to the cluster's")
	}
	return tighten(given), nil
}

// tighten has clients' certificates verified. They are not required in the handshake, so that who has none is told why.
func tighten(given *tls.Config) *tls.Config {
	config := given.Clone()
	config.ClientAuth = tls.VerifyClientCertIfGiven
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	config.NextProtos = []string{"h2", "http/1.1"} // net/http adds them only to the first of two configurations
	if choose := given.GetConfigForClient; choose != nil {
		config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if err != nil || chosen == nil {
				return nil, err
			}
			if chosen.ClientCAs == nil {
				return nil, errors.New("node API: no CA for clients: set ClientCAs to the cluster's")
			}
			return tighten(chosen), nil
		}
	}
	return config
}

// track counts a request until it was answered.
func (s *Server) track(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.active.begin() {
			writeError(w, http.StatusServiceUnavailable, "the node's API is ending")
			return
		}
		defer s.active.end()
		next.ServeHTTP(w, r)
	})
}

// acquire takes one of the slots for streams.
func (s *Server) acquire() (release func(), ok bool) {
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, true
	default:
		return nil, false
	}
}

func (s *Server) tooMany(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	writeError(w, http.StatusTooManyRequests, "this node has %d streams open, which is the limit: close some", cap(s.slots))
}

// writeError answers with a text alone, as a kubelet does: kube-apiserver makes an API status of it.
func writeError(w http.ResponseWriter, code int, format string, args ...any) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	fmt.Fprintf(w, format, args...)
}
