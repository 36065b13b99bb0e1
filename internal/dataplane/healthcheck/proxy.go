package healthcheck

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/endpointd/endpointd/internal/model"
)

const (
	// ProxyPort is where load balancers ask for /healthz of the proxy, by default on all addresses.
	ProxyPort = 10256
	// ToBeDeleted is the key of a taint that Cluster Autoscaler sets before it deletes a node. Such a node is not eligible.
	ToBeDeleted = "ToBeDeletedByClusterAutoscaler"
	// pendingTime is how late a Snapshot may come into force before the proxy is unhealthy: kube-proxy's two sync periods.
	pendingTime = time.Minute
)

// Proxy is the health of the data plane itself. Its methods may be called concurrently. The zero value is healthy, on a node that is not eligible.
type Proxy struct {
	mu       sync.Mutex // guards what follows
	eligible bool
	families map[string]struct{} // "IPv4" and "IPv6", those that the node has
	wanted   uint64              // Revision that should be in force
	pending  time.Time           // when the oldest Snapshot came that is not in force; zero if there is none
	updated  time.Time           // when one came into force at last
}

// Expect says that a Snapshot should be in force soon.
func (p *Proxy) Expect(next *model.Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if next.Revision <= p.wanted && p.wanted != 0 {
		return
	}
	p.wanted = next.Revision
	if p.pending.IsZero() {
		p.pending = time.Now()
	}
}

// Applied says that a Snapshot is in force. It fits the Synced of a dataplane.RunnerOptions.
func (p *Proxy) Applied(_, now *model.Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.updated = time.Now()
	p.pending = time.Time{}
	if now.Revision < p.wanted {
		p.pending = p.updated // the newer one is late from now on
	}
	p.families = map[string]struct{}{}
	for _, addr := range now.Network.NodePortAddrs {
		if addr.Is4() {
			p.families["IPv4"] = struct{}{}
		} else {
			p.families["IPv6"] = struct{}{}
		}
	}
	if len(p.families) == 0 {
		p.families["IPv4"] = struct{}{} // a status without a family would be none
	}
}

// SetEligible says whether load balancers should use the node: its object exists, is not being deleted and does not have the taint [ToBeDeleted].
func (p *Proxy) SetEligible(eligible bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eligible = eligible
}

// Healthy says whether the data plane follows the API: no change waits for a minute. Without an API nothing waits.
func (p *Proxy) Healthy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.healthy(time.Now())
}

func (p *Proxy) healthy(now time.Time) bool {
	return p.pending.IsZero() || now.Sub(p.pending) < pendingTime
}

// A status is what is answered.
type status struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyStatus `json:"status,omitempty"`
}

type familyStatus struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// status is for /healthz, which says too whether the node is eligible, or for /livez.
func (p *Proxy) status(node bool) (s status, good bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	s = status{LastUpdated: p.updated, CurrentTime: now, Healthy: p.healthy(now), Status: map[string]familyStatus{}}
	for family := range p.families {
		s.Status[family] = familyStatus{LastUpdated: p.updated, Healthy: s.Healthy}
	}
	good = s.Healthy
	if node {
		eligible := p.eligible
		s.NodeEligible = &eligible
		good = good && eligible
	}
	if good {
		s.LastUpdated = now // as in kube-proxy: what is healthy is recent
	}
	return s, good
}

// Handler answers /healthz, for load balancers, and /livez, for who restarts a proxy that hangs: 200 or 503.
func (p *Proxy) Handler() http.Handler {
	mux := http.NewServeMux()
	for path, node := range map[string]bool{"/healthz": true, "/livez": false} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			s, good := p.status(node)
			text, err := json.Marshal(s)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			answer(w, good, text)
		})
	}
	return mux
}
