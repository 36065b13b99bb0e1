package healthcheck

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/endpointd/endpointd/internal/model"
)

func get(t *testing.T, p *Proxy, path string) (int, map[string]any, http.Header) {
	t.Helper()
	w := httptest.NewRecorder()
	p.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, http.NoBody))
	var body map[string]any
	if w.Body.Len() > 0 && w.Code != http.StatusNotFound {
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
			t.Fatalf("%s: %v", w.Body, err)
		}
	}
	return w.Code, body, w.Header()
}

// TestProxy walks through the life of a proxy.
func TestProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Proxy{}
		snapshot := func(revision uint64) *model.Snapshot {
			return &model.Snapshot{Revision: revision, Network: model.Network{
				NodePortAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
			}}
		}
		expect := func(step string, healthz, livez int) {
			t.Helper()
			if code, body, _ := get(t, p, "/healthz"); code != healthz {
				t.Errorf("%s: /healthz %d %v, want %d", step, code, body, healthz)
			}
			if code, body, _ := get(t, p, "/livez"); code != livez {
				t.Errorf("%s: /livez %d %v, want %d", step, code, body, livez)
			}
		}
		expect("the node is not known", 503, 200)
		p.SetEligible(true)
		expect("at start", 200, 200)
		p.Expect(snapshot(1))
		<-time.After(pendingTime - time.Second)
		expect("not late yet", 200, 200)
		p.Expect(snapshot(2))
		<-time.After(time.Second)
		expect("late", 503, 503)
		p.Applied(nil, snapshot(1))
		expect("one is in force, the other is not late yet", 200, 200)
		<-time.After(pendingTime)
		expect("the other is late", 503, 503)
		p.Applied(snapshot(1), snapshot(2))
		p.Expect(snapshot(2))
		p.Expect(snapshot(1))
		<-time.After(24 * time.Hour)
		expect("nothing to do for a day", 200, 200)
		p.SetEligible(false)
		expect("to be deleted", 503, 200)
		if code, _, _ := get(t, p, "/other"); code != http.StatusNotFound {
			t.Errorf("/other: %d", code)
		}
	})
}

// TestProxyBody holds what is in the answer.
func TestProxyBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Proxy{}
		p.SetEligible(true)
		applied := time.Now().Format(time.RFC3339Nano)
		p.Applied(nil, &model.Snapshot{Revision: 1, Network: model.Network{NodePortAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}})
		<-time.After(time.Minute)
		now := time.Now().Format(time.RFC3339Nano)
		_, body, header := get(t, p, "/healthz")
		want := map[string]any{
			"lastUpdated": now, "currentTime": now, "nodeEligible": true, "healthy": true,
			"status": map[string]any{"IPv4": map[string]any{"lastUpdated": applied, "healthy": true}},
		}
		if diff := cmp.Diff(want, body); diff != "" {
			t.Errorf("/healthz (-want +got):\n%s", diff)
		}
		if header.Get("Content-Type") != "application/json" || header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("headers %v", header)
		}
		p.SetEligible(false)
		_, body, _ = get(t, p, "/healthz")
		want["nodeEligible"], want["lastUpdated"] = false, applied
		if diff := cmp.Diff(want, body); diff != "" {
			t.Errorf("/healthz of a node that goes (-want +got):\n%s", diff)
		}
		_, body, _ = get(t, p, "/livez")
		delete(want, "nodeEligible")
		want["lastUpdated"] = now
		if diff := cmp.Diff(want, body); diff != "" {
			t.Errorf("/livez (-want +got):\n%s", diff)
		}
	})
}
