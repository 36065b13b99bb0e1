// Package apitest puts controllertest's API behind HTTP on connections in memory, for tests of what the node agent does
// when the API is slow, silent or away.
//
// In: requests of ordinary clients ([Server.Client]), which use client-go's real transport. Out: the answers of
// a controllertest.API, and what the test has asked for: [Server.Down], [Server.Up], [Server.Hang], [Server.Delay].
//
// Invariants: no socket and no real time is used, so it works within testing/synctest; Close ends everything.
//
// It refuses what controllertest refuses, kinds that client-go's scheme does not know, and streamed initial lists, as
// an API server without that feature.
//
// Test it with go test in this folder.
package apitest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
)

// Server is the API. Make it with [New].
type Server struct {
	api     *controllertest.API
	backend *fake.Clientset // its requests are everybody's
	http    *http.Server
	conns   chan net.Conn // dialled, to be accepted
	closed  chan struct{}
	served  sync.WaitGroup

	mu         sync.Mutex // guards the fields below
	down       bool
	hang       func(*http.Request) bool // nil = none
	delay      time.Duration
	open       map[net.Conn]bool // both ends' server side
	transports []*http.Transport
	requests   map[string]int // "METHOD /path" → number
}

// New starts a server that answers from api.
func New(api *controllertest.API) *Server {
	s := &Server{
		api: api, backend: api.Client(), conns: make(chan net.Conn), closed: make(chan struct{}),
		open: map[net.Conn]bool{}, requests: map[string]int{},
	}
	s.http = &http.Server{Handler: http.HandlerFunc(s.serve)}
	s.served.Go(func() { _ = s.http.Serve(listener{s}) })
	return s
}

// Client makes a client with connections of its own.
func (s *Server) Client() kubernetes.Interface {
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx) }}
	s.mu.Lock()
	s.transports = append(s.transports, t)
	s.mu.Unlock()
	config := &rest.Config{Host: "http://api.test", QPS: -1, ContentConfig: rest.ContentConfig{ContentType: runtime.ContentTypeJSON}}
	client, err := kubernetes.NewForConfigAndClient(config, &http.Client{Transport: t})
	if err != nil {
		panic(fmt.Sprintf("client of the API in memory: %v", err)) // a fault of this package
	}
	return client
}

// Down makes the server go away: connections end, new ones are refused.
func (s *Server) Down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = true
	for conn := range s.open {
		_ = conn.Close()
	}
	clear(s.open)
}

// Up ends Down.
func (s *Server) Up() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = false
}

// Hang leaves requests without an answer for as long as the client waits; nil ends it for those that come later.
func (s *Server) Hang(which func(*http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hang = which
}

// Delay makes every answer come late.
func (s *Server) Delay(by time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = by
}

// Requests counts the requests that arrived, by "METHOD /path".
func (s *Server) Requests() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.requests)
}

// Close ends all connections and waits for the server.
func (s *Server) Close() {
	close(s.closed)
	_ = s.http.Close()
	s.Down()
	s.mu.Lock()
	transports := s.transports
	s.mu.Unlock()
	for _, t := range transports {
		t.CloseIdleConnections()
	}
	s.served.Wait()
}

func (s *Server) dial(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	ours, theirs := net.Pipe()
	select {
	case s.conns <- ours:
	case <-s.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[ours] = true
	return theirs, nil
}

type listener struct{ s *Server }

func (l listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.s.conns:
		return c, nil
	case <-l.s.closed:
		return nil, net.ErrClosed
	}
}

func (l listener) Close() error   { return nil }
func (l listener) Addr() net.Addr { return &net.TCPAddr{} }

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests[r.Method+" "+r.URL.Path]++
	hang, delay := s.hang != nil && s.hang(r), s.delay
	s.mu.Unlock()
	body, err := io.ReadAll(r.Body) // all of it, or the server does not notice when the client leaves
	if err != nil {
		return
	}
	if hang {
		select {
		case <-r.Context().Done():
		case <-s.closed:
		}
		return
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return
		case <-s.closed:
			return
		}
	}
	p, err := parse(r.URL)
	if err != nil {
		answer(w, nil, apierrors.NewBadRequest(err.Error()))
		return
	}
	if p.options.Watch {
		s.watch(w, r, p)
		return
	}
	action, err := actionOf(r.Method, p, body)
	if err != nil {
		answer(w, nil, apierrors.NewBadRequest(err.Error()))
		return
	}
	obj, err := s.backend.Invokes(action, nil)
	answer(w, obj, err)
}

// request is what a URL asks for.
type request struct {
	gvr                    schema.GroupVersionResource
	kind                   schema.GroupVersionKind
	namespace, name, under string // under: the subresource
	options                metav1.ListOptions
}

// parse reads /api/v1/… and /apis/GROUP/VERSION/….
func parse(u *url.URL) (request, error) {
	var p request
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		p.gvr.Version, parts = parts[1], parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		p.gvr.Group, p.gvr.Version, parts = parts[1], parts[2], parts[3:]
	default:
		return p, fmt.Errorf("apitest serves no %s", u.Path)
	}
	if parts[0] == "namespaces" && len(parts) > 2 {
		p.namespace, parts = parts[1], parts[2:]
	}
	parts = append(parts, "", "")
	p.gvr.Resource, p.name, p.under = parts[0], parts[1], parts[2]
	if err := scheme.ParameterCodec.DecodeParameters(u.Query(), schema.GroupVersion{Version: "v1"}, &p.options); err != nil {
		return p, fmt.Errorf("query of %s: %w", u.Path, err)
	}
	for kind := range scheme.Scheme.KnownTypes(p.gvr.GroupVersion()) {
		gvk := p.gvr.GroupVersion().WithKind(kind)
		if plural, _ := meta.UnsafeGuessKindToResource(gvk); plural == p.gvr {
			p.kind = gvk
			return p, nil
		}
	}
	return p, fmt.Errorf("apitest knows no %s", p.gvr)
}

func actionOf(method string, p request, body []byte) (clienttesting.Action, error) {
	var obj runtime.Object
	if method == http.MethodPost || method == http.MethodPut {
		var err error
		if obj, _, err = scheme.Codecs.UniversalDeserializer().Decode(body, &p.kind, nil); err != nil {
			return nil, fmt.Errorf("body: %w", err)
		}
	}
	switch method {
	case http.MethodGet:
		if p.name == "" {
			return clienttesting.NewListActionWithOptions(p.gvr, p.kind, p.namespace, p.options), nil
		}
		return clienttesting.NewGetAction(p.gvr, p.namespace, p.name), nil
	case http.MethodPost:
		return clienttesting.NewCreateAction(p.gvr, p.namespace, obj), nil
	case http.MethodPut:
		return clienttesting.NewUpdateSubresourceAction(p.gvr, p.under, p.namespace, obj), nil
	case http.MethodDelete:
		var o metav1.DeleteOptions
		if len(body) > 0 {
			if err := json.Unmarshal(body, &o); err != nil {
				return nil, fmt.Errorf("delete options: %w", err)
			}
		}
		return clienttesting.NewDeleteActionWithOptions(p.gvr, p.namespace, p.name, o), nil
	case http.MethodPatch:
		var subresources []string
		if p.under != "" {
			subresources = []string{p.under}
		}
		return clienttesting.NewPatchSubresourceAction(p.gvr, p.namespace, p.name, types.StrategicMergePatchType, body,
			subresources...), nil
	}
	return nil, fmt.Errorf("apitest does not %s", method)
}

func answer(w http.ResponseWriter, obj runtime.Object, err error) {
	code := http.StatusOK
	if err != nil {
		status := apierrors.APIStatus(apierrors.NewInternalError(err))
		_ = errors.As(err, &status)
		s := status.Status()
		obj, code = &s, int(s.Code)
	}
	if obj == nil {
		obj = &metav1.Status{Status: metav1.StatusSuccess}
	}
	b, err := encode(obj)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(b)
}

// encode writes JSON with apiVersion and kind.
func encode(obj runtime.Object) ([]byte, error) {
	if s, ok := obj.(*metav1.Status); ok {
		s = s.DeepCopy()
		s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
		return json.Marshal(s)
	}
	kinds, _, err := scheme.Scheme.ObjectKinds(obj)
	if err != nil {
		return nil, err
	}
	return runtime.Encode(scheme.Codecs.LegacyCodec(kinds[0].GroupVersion()), obj)
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, p request) {
	if p.options.SendInitialEvents != nil {
		answer(w, nil, apierrors.NewInvalid(schema.GroupKind{Group: "meta.k8s.io", Kind: "ListOptions"}, "", nil))
		return
	}
	events, err := s.backend.InvokesWatch(clienttesting.NewWatchActionWithOptions(p.gvr, p.namespace, p.options))
	if err != nil {
		answer(w, nil, err)
		return
	}
	defer events.Stop()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	_ = flush.Flush()
	for {
		select {
		case e, ok := <-events.ResultChan():
			if !ok || write(w, e) != nil || flush.Flush() != nil {
				return
			}
		case <-r.Context().Done():
			return
		case <-s.closed:
			return
		}
	}
}

func write(w io.Writer, e watch.Event) error {
	b, err := encode(e.Object)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(metav1.WatchEvent{Type: string(e.Type), Object: runtime.RawExtension{Raw: b}})
}
