package peers

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// Path is where nodes ask, with the resourceVersion as a parameter of this name.
const (
	Path      = "/endpointd/v1/acknowledge"
	parameter = "resourceVersion"
)

// How nodes are known: "Using Node Authorization" of the Kubernetes documentation.
const (
	nodesGroup     = "system:nodes"
	nodeUserPrefix = "system:node:"
)

const (
	defaultPatience = 3 * time.Second
	defaultWaiters  = 1000
)

// HandlerOptions of NewHandler. Wait is needed.
type HandlerOptions struct {
	// Wait returns nil when this node's data planes have applied all EndpointSlices up to a resourceVersion, or the error of ctx
	// when that ends. It is called concurrently.
	Wait func(ctx context.Context, resourceVersion string) error
	// Patience is how long a question waits for its answer; zero = 3 s.
	Patience time.Duration
	// Waiters is how many questions may wait at a time; zero = 1000.
	Waiters int
}

type handler struct {
	o     HandlerOptions
	slots chan struct{} // has an item for each question that waits
}

// NewHandler answers GET Path?resourceVersion=N to nodes: 204 when it is so, 202 if it was not in time and may be asked again. It reads who
// asks from the request's TLS state, which the server must have verified.
func NewHandler(o HandlerOptions) http.Handler {
	if o.Patience == 0 {
		o.Patience = defaultPatience
	}
	if o.Waiters == 0 {
		o.Waiters = defaultWaiters
	}
	return &handler{o: o, slots: make(chan struct{}, o.Waiters)}
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		refuse(w, http.StatusUnauthorized, "Unauthorized")
		return
	}
	subject := r.TLS.VerifiedChains[0][0].Subject
	if !slices.Contains(subject.Organization, nodesGroup) || !strings.HasPrefix(subject.CommonName, nodeUserPrefix) {
		refuse(w, http.StatusForbidden, fmt.Sprintf("Forbidden (user=%s): only nodes ask what nodes have applied", subject.CommonName))
		return
	}
	if r.URL.Path != Path {
		refuse(w, http.StatusNotFound, "404 page not found")
		return
	}
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		refuse(w, http.StatusMethodNotAllowed, "ask with GET")
		return
	}
	version := r.URL.Query().Get(parameter)
	if !valid(version) {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("%s %.100q: give the decimal number of an object's resourceVersion", parameter, version))
		return
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusTooManyRequests, fmt.Sprintf("this node has %d such questions waiting, which is the limit", cap(h.slots)))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.o.Patience)
	defer cancel()
	switch err := h.o.Wait(ctx, version); {
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
	case r.Context().Err() != nil: // the client has left, or this node is ending
		refuse(w, http.StatusServiceUnavailable, "the node's API is ending")
	default:
		w.WriteHeader(http.StatusAccepted)
	}
}

func refuse(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text)) // a client that has left needs no answer
}

// maxVersion is far more than the digits of etcd's 64 bits.
const maxVersion = 128

// valid reports whether a text is a resourceVersion that can be compared (KEP-5504): a decimal number above zero.
func valid(version string) bool {
	_, err := resourceversion.CompareResourceVersion(version, version)
	return err == nil && len(version) <= maxVersion
}
