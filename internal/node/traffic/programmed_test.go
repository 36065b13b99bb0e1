package traffic_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/node/traffic"
)

// triggeredAt is a slice of web that was written for a change at a time.
func triggeredAt(text string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := slice("web-1", endpoints...)
	s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: text}
	return s
}

func TestProgrammed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		w := newWorld(t, func(_ *world, o *traffic.Options) {
			o.Programmed = func(s *model.Service, trigger time.Time) {
				told = append(told, fmt.Sprint(s.Key, " ", len(s.Endpoints), " ", trigger.UTC().Format("05.000")))
			}
		}, node("n", "10.244.1.0/24"), service("web", "10.96.0.7"), triggeredAt("2026-01-01T00:00:01Z", ready("a", "10.244.1.2")))
		wants := func(want ...string) {
			t.Helper()
			synctest.Wait()
			if got := strings.Join(told, ", "); got != strings.Join(want, ", ") {
				t.Errorf("told %q, want %q", got, want)
			}
			told = nil
		}
		put := func(s *discoveryv1.EndpointSlice) {
			t.Helper()
			if _, err := w.user.DiscoveryV1().EndpointSlices("default").Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		wants() // what was there before
		a, b := ready("a", "10.244.1.2"), ready("b", "10.244.1.3")
		put(triggeredAt("2026-01-01T00:00:02.123456789Z", a, b))
		wants("default/web 2 02.123")
		put(triggeredAt("2026-01-01T00:00:03Z", b, a)) // nothing new
		wants()
		put(triggeredAt("yesterday", a))
		wants()
		put(slice("web-1", a, b)) // its controller does not know when
		wants()
		w.server.Down() // and who was not told waits all the time
		put(triggeredAt("2026-01-01T00:00:05Z"))
		<-time.After(time.Minute)
		w.server.Up()
		<-time.After(time.Minute)
		wants("default/web 0 05.000")
		w.traffic.Down("a", model.LocalDead) // no slice said so
		wants()
		if err := w.user.CoreV1().Services("default").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		put(triggeredAt("2026-01-01T00:00:06Z", a))
		wants()
	})
}

// Of what is folded into one Snapshot, the oldest change waited longest.
func TestProgrammedOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []time.Time
		begun, goOn := make(chan struct{}), make(chan struct{})
		w := newWorld(t, func(_ *world, o *traffic.Options) {
			o.Programmed = func(_ *model.Service, trigger time.Time) { told = append(told, trigger) }
			set := o.Set
			o.Set = func(s *model.Snapshot) {
				set(s)
				if s.Revision == 2 {
					close(begun)
					<-goOn
				}
			}
		}, node("n", "10.244.1.0/24"), service("web", "10.96.0.7"), slice("web-1"))
		synctest.Wait()
		for second := range 4 {
			s := triggeredAt(fmt.Sprintf("2026-01-01T00:00:%02dZ", 10+second), ready("a", fmt.Sprintf("10.244.1.%d", 2+second)))
			if _, err := w.user.DiscoveryV1().EndpointSlices("default").Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			if second == 0 {
				<-begun
			}
		}
		synctest.Wait()
		close(goOn)
		synctest.Wait()
		if len(told) != 2 || told[0].Second() != 10 || told[1].Second() != 11 {
			t.Errorf("told %v, want two, of seconds 10 and 11", told)
		}
	})
}
