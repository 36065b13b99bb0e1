package workload

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
	"github.com/endpointd/endpointd/internal/testkit"
)

// A controller that is built while its informer runs hears nothing before all are built, everything afterwards, and
// nothing when the term ended before that.
func TestEventsWaitForTheControllers(t *testing.T) {
	t.Parallel()
	client := controllertest.NewAPI(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}).Client()
	factory := informers.NewSharedInformerFactory(client, 0)
	informer := factory.Core().V1().Nodes().Informer()
	factory.Start(t.Context().Done())
	factory.WaitForCacheSync(t.Context().Done())
	for _, tc := range []struct {
		name string
		then func(*term)
		want int32
	}{
		{"built", func(t *term) { close(t.built) }, 1},
		{"ended before", (*term).end, 0},
	} {
		term := &term{built: make(chan struct{}), ended: make(chan struct{})}
		var heard atomic.Int32
		reg, err := remembering{informer, term}.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { heard.Add(1) }})
		if err != nil {
			t.Fatal(err)
		}
		// A second handler of the same informer has heard: so would the first have.
		var other atomic.Int32
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { other.Add(1) }}); err != nil {
			t.Fatal(err)
		}
		testkit.Await(t, 10*time.Second, func() error {
			if other.Load() == 0 {
				return errors.New("not yet")
			}
			return nil
		})
		if n := heard.Load(); n != 0 || reg.HasSynced() {
			t.Errorf("%s: %d events before the controllers were built", tc.name, n)
		}
		tc.then(term)
		testkit.Await(t, 10*time.Second, func() error {
			if tc.want != heard.Load() {
				return errors.New("not yet")
			}
			return nil
		})
	}
}
