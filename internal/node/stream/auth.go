package stream

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Who may do everything here without asking the API.
const (
	// APIServerName and APIServerGroup are the common name and the organization of the certificate with which
	// endpointd's API server calls nodes.
	APIServerName  = "endpointd-apiserver"
	APIServerGroup = "endpointd:apiservers"

	mastersGroup = "system:masters"
)

const (
	allowedFor = 5 * time.Minute  // as a kubelet's authorization-webhook-cache-authorized-ttl
	deniedFor  = 30 * time.Second // as its cache-unauthorized-ttl
	maxCached  = 1000             // verdicts
)

// Attributes are what a client wants to do.
type Attributes struct {
	User   string
	Groups []string
	Verb   string // of the API: get, create…
	// Subresources are those of the node of which one is enough, as KEP-2862 (fine-grained kubelet authorization) orders them.
	Subresources []string
}

// An Authorizer says whether a client may do something. It is called concurrently.
type Authorizer func(ctx context.Context, a Attributes) (allowed bool, err error)

// Trusted allows everything to cluster administrators and to endpointd's API server, and nothing to others.
func Trusted(_ context.Context, a Attributes) (bool, error) {
	apiServer := a.User == APIServerName && slices.Contains(a.Groups, APIServerGroup)
	return apiServer || slices.Contains(a.Groups, mastersGroup), nil
}

// Reviewer is the part of a client of the API that Review needs: AuthorizationV1().SubjectAccessReviews().
type Reviewer interface {
	Create(ctx context.Context, review *authorizationv1.SubjectAccessReview, o metav1.CreateOptions) (*authorizationv1.SubjectAccessReview, error)
}

// Review allows what Trusted does, and else asks the API about the node's subresources. Answers are remembered for
// 5 minutes if yes and half a minute if no. While the API does not answer, what is not remembered is an error.
func Review(node string, reviews Reviewer) Authorizer {
	c := &verdicts{now: time.Now, known: map[verdictKey]verdict{}}
	return func(ctx context.Context, a Attributes) (bool, error) {
		if ok, err := Trusted(ctx, a); ok || err != nil {
			return ok, err
		}
		for _, subresource := range a.Subresources {
			key := verdictKey{a.User, strings.Join(a.Groups, "\x00"), a.Verb, subresource}
			allowed, known := c.get(key)
			if !known {
				var err error
				if allowed, err = ask(ctx, reviews, node, subresource, a); err != nil {
					return false, err
				}
				c.put(key, allowed)
			}
			if allowed {
				return true, nil
			}
		}
		return false, nil
	}
}

func ask(ctx context.Context, reviews Reviewer, node, subresource string, a Attributes) (bool, error) {
	review, err := reviews.Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: a.User, Groups: a.Groups,
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: a.Verb, Version: "v1", Resource: "nodes", Subresource: subresource, Name: node,
		},
	}}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("ask the API whether user %q may %s nodes/%s of %s: %w", a.User, a.Verb, subresource, node, err)
	}
	return review.Status.Allowed && !review.Status.Denied, nil
}

type verdictKey struct{ user, groups, verb, subresource string }

type verdict struct {
	allowed bool
	until   time.Time
}

// verdicts remembers what the API said.
type verdicts struct {
	now   func() time.Time
	mu    sync.Mutex // guards known
	known map[verdictKey]verdict
}

func (c *verdicts) get(key verdictKey) (allowed, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.known[key]
	return v.allowed, ok && c.now().Before(v.until)
}

func (c *verdicts) put(key verdictKey, allowed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= maxCached {
		clear(c.known) // asking again is cheaper than an order of age
	}
	ttl := deniedFor
	if allowed {
		ttl = allowedFor
	}
	c.known[key] = verdict{allowed, c.now().Add(ttl)}
}

// PeersPath is where what nodes ask each other begins.
const PeersPath = "/endpointd/"

// authenticated lets through who has a verified certificate with a name.
func authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || r.TLS.PeerCertificates[0].Subject.CommonName == "" {
			writeError(w, http.StatusUnauthorized, "Unauthorized")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// guard lets through who has the right to do what is asked. It comes after authenticated.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		subject := r.TLS.PeerCertificates[0].Subject
		a := Attributes{
			User: subject.CommonName, Groups: append(slices.Clone(subject.Organization), "system:authenticated"),
			Verb: verbOf(r.Method), Subresources: subresourcesOf(r.URL.Path),
		}
		allowed, err := s.o.Authorize(r.Context(), a)
		if err != nil {
			s.o.Logger.WarnContext(r.Context(), "a client of the node's API could not be authorized", "user", a.User, "err", err)
			writeError(w, http.StatusInternalServerError, "Authorization error (user=%s, verb=%s, resource=nodes, subresource(s)=%v)", a.User, a.Verb, a.Subresources)
			return
		}
		if !allowed {
			writeError(w, http.StatusForbidden, "Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)", a.User, a.Verb, a.Subresources)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func verbOf(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead:
		return "get"
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	default:
		return strings.ToLower(method)
	}
}

// subresourcesOf names what a path needs: https://kubernetes.io/docs/reference/access-authn-authz/kubelet-authn-authz/.
func subresourcesOf(path string) []string {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch first {
	case "stats", "metrics":
		return []string{first}
	case "pods", "healthz":
		return []string{first, "proxy"}
	default:
		return []string{"proxy"}
	}
}
