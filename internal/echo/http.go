package echo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The bounds on what a client may send, in bytes and time.
const (
	maxHeader     = 16 << 10
	maxBody       = 1 << 20
	maxStreams    = 64 // of one HTTP/2 connection
	maxWindow     = 64 << 10
	headerTimeout = 10 * time.Second
	bodyTimeout   = 30 * time.Second
	idleTimeout   = 2 * time.Minute
)

// web is the HTTP server.
type web struct {
	who    identity
	state  *state
	server *http.Server
	exit   chan<- int
	log    *slog.Logger // nil = no line for each request
}

func newWeb(o *options, s *state, exit chan<- int, log *slog.Logger) *web {
	w := &web{who: o.who, state: s, exit: exit}
	if o.log {
		w.log = log
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	w.server = &http.Server{
		Handler: w, Protocols: protocols, ConnState: s.connection,
		MaxHeaderBytes: maxHeader, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: maxWindow, MaxReceiveBufferPerConnection: maxWindow,
		},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // what clients do wrong is not ours to report
	}
	return w
}

// ServeHTTP implements http.Handler.
func (h *web) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.log != nil {
		h.log.Info("request", "method", r.Method, "path", r.URL.Path, "client", r.RemoteAddr, "proto", r.Proto)
	}
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		h.grpc(w, r)
		return
	}
	leave := h.state.enter()
	defer leave()
	switch r.URL.Path {
	case "/control":
		h.control(w, r)
	case "/fail":
		h.fail(w, r)
	case "/exit":
		h.end(w, r)
	case "/drain":
		h.drain(w, r)
	default:
		h.answer(w, r)
	}
}

// answer is everything that is no order.
func (h *web) answer(w http.ResponseWriter, r *http.Request) {
	v := h.state.view()
	wait := v.Delay
	if r.URL.Path == "/slow" {
		d, ok := duration(w, r, "d", time.Second)
		if !ok {
			return
		}
		wait += d
	}
	if !sleep(r.Context(), wait) {
		return
	}
	v = h.state.view() // as it is when we answer
	switch r.URL.Path {
	case "/healthz":
		verdict(w, v.Healthy, "healthy")
	case "/readyz":
		verdict(w, v.Ready, "ready")
	default:
		h.echo(w, r, v)
	}
}

// sleep waits, and says whether anybody still wants the answer.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func verdict(w http.ResponseWriter, is bool, what string) {
	if !is {
		http.Error(w, "not "+what, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// told is what the server tells about itself and the request.
type told struct {
	identity
	Client  string      `json:"client"`
	Server  string      `json:"server"`
	Method  string      `json:"method"`
	Path    string      `json:"path"`
	Proto   string      `json:"proto"`
	Host    string      `json:"host"`
	Headers http.Header `json:"headers"`
	Bytes   int64       `json:"bytes"` // of the body
	view
}

func (h *web) echo(w http.ResponseWriter, r *http.Request, v view) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // not every connection can
	n, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		code := http.StatusBadRequest
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			code = http.StatusRequestEntityTooLarge
		}
		http.Error(w, err.Error(), code)
		return
	}
	t := told{
		identity: h.who, Client: r.RemoteAddr, Method: r.Method, Path: r.URL.RequestURI(), Proto: r.Proto, Host: r.Host,
		Headers: r.Header, Bytes: n, view: v,
	}
	if at, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		t.Server = at.String()
	}
	body, kind := t.text(), "text/plain; charset=utf-8"
	if strings.Contains(r.Header.Get("Accept"), "json") {
		kind = "application/json"
		if body, err = json.Marshal(t); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		body = append(body, '\n')
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(v.Status)
	_, _ = w.Write(body) // a client that left is no concern
}

// text has the pod's name in its first line, alone.
func (t told) text() []byte {
	b := []byte(t.Pod + "\n")
	for _, line := range [][2]string{
		{"namespace", t.Namespace}, {"node", t.Node}, {"ip", t.IP}, {"server", t.Server}, {"client", t.Client},
		{"request", t.Method + " " + t.Path + " " + t.Proto}, {"host", t.Host}, {"bytes", strconv.FormatInt(t.Bytes, 10)},
		{"ready", strconv.FormatBool(t.Ready)}, {"healthy", strconv.FormatBool(t.Healthy)},
	} {
		if line[1] != "" {
			b = fmt.Appendf(b, "%s: %s\n", line[0], line[1])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.Headers)) {
		for _, value := range t.Headers[name] {
			b = fmt.Appendf(b, "header %s: %s\n", name, value)
		}
	}
	return b
}
