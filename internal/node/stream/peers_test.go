package stream

import (
	"net/http"
	"testing"

	"k8s.io/client-go/rest"
)

// A node's certificate opens the door to what nodes ask each other, and to nothing else.
func TestWhatNodesMayAsk(t *testing.T) {
	asked := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			t.Error("a client that nobody knows")
		}
		w.WriteHeader(http.StatusNoContent)
	})
	r := newRig(t, func(o *Options) { o.Peers = asked })
	node := r.ca.client(t, r.address, "system:node:node-2", "system:nodes")
	anonymous := r.ca.client(t, r.address, "unused")
	anonymous.CertData, anonymous.KeyData = nil, nil
	for _, c := range []struct {
		name string
		who  *rest.Config
		path string
		code int
	}{
		{"a node", node, PeersPath + "v1/acknowledge?resourceVersion=7", 204},
		{"a node, asked for pods", node, "/pods", 403},
		{"a node, by a way round", node, PeersPath + "../pods", 204}, // not the pods
		{"anonymous", anonymous, PeersPath + "v1/acknowledge", 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.who.Host+c.path, http.NoBody)
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
}
