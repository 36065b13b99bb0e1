package dptest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/model"
)

// TestWorld holds that everybody reaches everybody directly, with his own address: what the suite says of a proxier is not the World's doing.
func TestWorld(t *testing.T) {
	w := NewWorld(t)
	for _, to := range w.everybody() {
		stop, err := to.Serve(8080)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
		for _, from := range w.everybody() {
			for _, v6 := range []bool{false, true} {
				for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
					answer, err := from.Ask(protocol, netip.AddrPortFrom(to.Addr(v6), 8080), 10*time.Second)
					if err != nil || answer.Server != to.Name || answer.Seen.Addr() != from.Addr(v6) {
						t.Errorf("protocol %d from %s to %s: %v, %v", protocol, from.Name, to.Name, answer, err)
					}
				}
			}
		}
	}
}
