package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
)

// reviews answers as an API that lets some users do some things.
type reviews struct {
	mu      sync.Mutex      // guards all below
	allowed map[string]bool // "user verb subresource" → yes
	asked   []string
	err     error
}

func (f *reviews) Create(_ context.Context, review *authorizationv1.SubjectAccessReview, _ metav1.CreateOptions) (*authorizationv1.SubjectAccessReview, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := review.Spec.ResourceAttributes
	if a.Resource != "nodes" || a.Name != "node-1" || a.Group != "" {
		return nil, fmt.Errorf("asked about %+v", a)
	}
	what := review.Spec.User + " " + a.Verb + " " + a.Subresource
	f.asked = append(f.asked, what)
	if f.err != nil {
		return nil, f.err
	}
	review.Status.Allowed = f.allowed[what]
	return review, nil
}

func TestWhoMayDoWhat(t *testing.T) {
	api := &reviews{allowed: map[string]bool{
		"operator get proxy": true, "operator create proxy": true, "scraper get metrics": true, "lister get pods": true,
	}}
	r := newRig(t, func(o *Options) {
		o.Authorize = Review("node-1", api)
		o.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "up 1") })
	})
	stranger := newAuthority(t)
	as := func(name string, groups ...string) *rest.Config { return r.ca.client(t, r.address, name, groups...) }
	anonymous := as("unused")
	anonymous.CertData, anonymous.KeyData = nil, nil
	const get, post = http.MethodGet, http.MethodPost
	for _, c := range []struct {
		name         string
		who          *rest.Config
		method, path string
		code         int
	}{
		{"anonymous", anonymous, get, "/pods", 401},
		{"anonymous, even health", anonymous, get, "/healthz", 401},
		{"administrator", r.admin, get, "/pods", 200},
		{"API server", as(APIServerName, APIServerGroup), get, "/healthz", 200},
		{"the API server's name alone", as(APIServerName), get, "/pods", 403},
		{"a node", as("system:node:node-2", "system:nodes"), get, "/pods", 403},
		{"no name", as("", "system:masters"), get, "/pods", 401},
		{"allowed by the API", as("operator"), get, "/containerLogs/default/none/app", 404},
		{"allowed by the API to create", as("operator"), post, "/run/default/none/app", 404},
		{"metrics alone", as("scraper"), get, "/metrics", 200},
		{"metrics alone, asked for logs", as("scraper"), get, "/containerLogs/default/web/app", 403},
		{"metrics alone, by a way round", as("scraper"), get, "/metrics/../containerLogs/default/web/app", 307},
		{"pods alone", as("lister"), get, "/pods", 200},
		{"pods alone, asked for exec", as("lister"), get, "/exec/default/web/app?command=x&output=1", 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), c.method, c.who.Host+c.path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			client := httpClient(t, c.who)
			client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
			if response.StatusCode != c.code {
				t.Errorf("got %d, want %d", response.StatusCode, c.code)
			}
		})
	}
	t.Run("a certificate of another CA", func(t *testing.T) {
		config := stranger.client(t, r.address, "admin", "system:masters")
		config.CAData = r.admin.CAData
		if response, err := httpClient(t, config).Get(config.Host + "/pods"); err == nil {
			_ = response.Body.Close()
			t.Errorf("got %d, want no handshake", response.StatusCode)
		}
	})
}

func TestOldTLSIsRefused(t *testing.T) {
	r := newRig(t, nil)
	config, err := rest.TLSConfigFor(r.admin)
	if err != nil {
		t.Fatal(err)
	}
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if conn, err := tls.Dial("tcp", r.address, config); err == nil {
		_ = conn.Close()
		t.Error("TLS 1.1 was accepted")
	}
}

func TestServeNeedsCertificates(t *testing.T) {
	ca := newAuthority(t)
	for want, config := range map[string]*tls.Config{
		"no certificate":    {ClientCAs: ca.pool()},
		"no CA for clients": {Certificates: []tls.Certificate{ca.server(t)}},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := New(Options{TLS: config}).Serve(t.Context(), l); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestVerdictsAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &reviews{allowed: map[string]bool{"yes get proxy": true}}
		authorize := Review("node-1", api)
		ask := func(user string, want bool, asked int) {
			t.Helper()
			got, err := authorize(t.Context(), Attributes{User: user, Verb: "get", Subresources: []string{"proxy"}})
			if err != nil || got != want || len(api.asked) != asked {
				t.Errorf("user %s: got %t, %v, the API was asked %d times; want %t, %d", user, got, err, len(api.asked), want, asked)
			}
		}
		ask("yes", true, 1)
		ask("no", false, 2)
		<-time.After(deniedFor - time.Second)
		ask("yes", true, 2)
		ask("no", false, 2)
		<-time.After(2 * time.Second)
		ask("no", false, 3)
		<-time.After(allowedFor)
		ask("yes", true, 4)

		api.err = errors.New("the API is away")
		ask("yes", true, 4)
		if ok, err := authorize(t.Context(), Attributes{User: "new", Verb: "get", Subresources: []string{"proxy"}}); ok || err == nil {
			t.Errorf("without the API a new user got %t, %v", ok, err)
		}
		if ok, err := authorize(t.Context(), Attributes{User: "root", Groups: []string{"system:masters"}}); !ok || err != nil {
			t.Errorf("without the API an administrator got %t, %v", ok, err)
		}
	})
}

func TestCertificatesMayChange(t *testing.T) {
	next := newAuthority(t)
	var current sync.Map // "ca" → the authority of now
	r := newRig(t, func(o *Options) {
		first := o.TLS
		o.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			if ca, ok := current.Load("ca"); ok {
				ca := ca.(*authority)
				return &tls.Config{Certificates: []tls.Certificate{ca.server(t)}, ClientCAs: ca.pool()}, nil
			}
			return first, nil
		}}
	})
	if code, _ := do(t, r.admin, http.MethodGet, "/healthz"); code != http.StatusOK {
		t.Errorf("before: got %d", code)
	}
	current.Store("ca", next)
	admin := next.client(t, r.address, "admin", "system:masters")
	if code, _ := do(t, admin, http.MethodGet, "/healthz"); code != http.StatusOK {
		t.Errorf("after: got %d", code)
	}
	for protocol, executor := range executors { // which insist on HTTP/1.1
		var out strings.Builder
		o := remotecommand.StreamOptions{Stdout: &out}
		e, err := executor(admin, streamURL(admin, webApp, o, "echo", "hello"))
		if err != nil {
			t.Fatal(err)
		}
		if err := e.StreamWithContext(t.Context(), o); err != nil || out.String() != "hello" {
			t.Errorf("%s: got %q, %v", protocol, out.String(), err)
		}
	}
	old := r.ca.client(t, r.address, "admin", "system:masters")
	old.CAData = admin.CAData
	if response, err := httpClient(t, old).Get(old.Host + "/pods"); err == nil {
		_ = response.Body.Close()
		t.Errorf("a certificate of the CA before: got %d", response.StatusCode)
	}
}
