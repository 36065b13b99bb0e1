package node

import (
	"slices"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/prober"
)

// What makes something new takes a while. Meanwhile the API must know that what was there is gone.
func TestDeathIsToldBeforeTheNextStart(t *testing.T) {
	for name, die := range map[string]func(*world){
		"container": func(w *world) { w.runtime.exit("uid-a", "web", 137, 9) },
		"sandbox":   func(w *world) { w.runtime.die("uid-a") },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(w *world) {
				w.create(web)
				w.find("uid-a", "web", prober.Readiness, prober.Passed)
				if ready(w.pod("a")) != corev1.ConditionTrue {
					t.Fatal("not ready before")
				}
				held := make([]func(), 0, cap(w.agent.slots))
				for range cap(w.agent.slots) { // nothing can start
					release, err := w.agent.slot(w.t.Context())
					if err != nil {
						t.Fatal(err)
					}
					held = append(held, release)
				}
				w.log.take()
				die(w)
				synctest.Wait()
				if got := ready(w.pod("a")); got != corev1.ConditionFalse {
					t.Errorf("ready: %s while nothing runs: %s", got, w.log.take())
				}
				for release := range slices.Values(held) {
					release()
				}
				w.wait(2 * respite)
				w.find("uid-a", "web", prober.Readiness, prober.Passed)
				if got := ready(w.pod("a")); got != corev1.ConditionTrue {
					t.Errorf("ready again: %s", got)
				}
			})
		})
	}
}
