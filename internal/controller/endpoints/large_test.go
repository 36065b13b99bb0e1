package endpoints

import (
	"context"
	"fmt"
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
)

// In a Service of many pods a readiness flip is one update of one slice, and one
// of Endpoints if the pod is among the addresses that they show.
func TestFlipInLargeServiceIsOneWrite(t *testing.T) {
	t.Parallel()
	const pods = 2500
	w := newWorld(t)
	w.put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	for i := range pods {
		w.put(largePod(t, i, "ready"))
	}
	w.settle()
	w.put(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default"},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"a": "b"}, Ports: []corev1.ServicePort{{Port: 80}}}})
	w.settle()
	if got, want := controllertest.Writes(w.ours), map[string]int{"create endpoints": 1, "create endpointslices": 25}; !maps.Equal(got, want) {
		t.Fatalf("writes for %d pods at once: %v, want %v", pods, got, want)
	}
	ep, err := w.user.CoreV1().Endpoints("default").Get(context.Background(), "s", metav1.GetOptions{})
	w.must(err)
	shown := map[string]bool{}
	for _, a := range ep.Subsets[0].Addresses {
		shown[a.TargetRef.Name] = true
	}
	for _, i := range []int{0, 999, 1000, 1001, 2499} {
		pod := largePod(t, i, "unready")
		before := controllertest.Writes(w.ours)
		w.apply(pod)
		after := controllertest.Writes(w.ours)
		objects := 0
		if shown[pod.Name] {
			objects = 1
			delete(shown, pod.Name)
		}
		if n := after["update endpointslices"] - before["update endpointslices"]; n != 1 {
			t.Errorf("%s: %d updates of slices", pod.Name, n)
		}
		if n := after["update endpoints"] - before["update endpoints"]; n != objects {
			t.Errorf("%s: %d updates of Endpoints, want %d", pod.Name, n, objects)
		}
	}
	list, err := w.user.DiscoveryV1().EndpointSlices("default").List(context.Background(), metav1.ListOptions{})
	w.must(err)
	unready := 0
	for _, s := range list.Items {
		for _, e := range s.Endpoints {
			if !*e.Conditions.Ready {
				unready++
			}
		}
	}
	if unready != 5 || len(list.Items) != 25 {
		t.Errorf("%d slices with %d unready endpoints", len(list.Items), unready)
	}
}

func largePod(t testing.TB, i int, state string) *corev1.Pod {
	return parsePod(t, []string{fmt.Sprintf("p%05d", i), fmt.Sprintf("10.%d.%d.%d", i/65536, i/256%256, i%256), state, "a=b"})
}
