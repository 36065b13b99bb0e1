package peers

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// Watermark is the highest resourceVersion up to which something was done. Its zero value is nothing at all. Its methods may be called
// concurrently.
type Watermark struct {
	mu      sync.Mutex    // guards all below
	version string        // "" = none yet
	raised  chan struct{} // closed at the next change; nil = nobody waits
}

// Reach says that everything up to a resourceVersion was done. It never goes back; what is no decimal number changes nothing.
func (m *Watermark) Reach(resourceVersion string) {
	if !valid(resourceVersion) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if reached(m.version, resourceVersion) {
		return
	}
	m.version = resourceVersion
	if m.raised != nil {
		close(m.raised)
		m.raised = nil
	}
}

// Wait returns nil when the resourceVersion was reached, or the error of ctx when that ends.
func (m *Watermark) Wait(ctx context.Context, resourceVersion string) error {
	for {
		m.mu.Lock()
		if reached(m.version, resourceVersion) {
			m.mu.Unlock()
			return nil
		}
		if m.raised == nil {
			m.raised = make(chan struct{})
		}
		raised := m.raised
		m.mu.Unlock()
		select {
		case <-raised:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// maxVersion is far more than the digits of etcd's 64 bits.
const maxVersion = 128

// valid reports whether a text is a resourceVersion that can be compared (KEP-5504): a decimal number above zero.
func valid(version string) bool {
	_, err := resourceversion.CompareResourceVersion(version, version)
	return err == nil && len(version) <= maxVersion
}

// reached compares two; a is valid or "", and what b is that it cannot be compared is not reached.
func reached(a, b string) bool {
	c, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && c >= 0
}
