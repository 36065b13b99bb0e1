package node

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/endpointd/endpointd/internal/prober"
)

// fakeTraffic logs what it is told.
type fakeTraffic struct {
	log   *fakeLog
	drain func(ctx context.Context) // nil = nobody was led there
	down  func()                    // what else happens in Down
	up    func(uid string)          // and in Up

	mu    sync.Mutex // guards state
	state map[string]string
}

func (f *fakeTraffic) say(uid, what string) {
	f.mu.Lock()
	f.state[uid] = what
	f.mu.Unlock()
	f.log.add("%s %s", uid, what)
}

func (f *fakeTraffic) Down(uid string, why Fact) {
	f.say(uid, "down: "+why.String())
	if f.down != nil {
		f.down()
	}
}
func (f *fakeTraffic) Up(uid string) {
	f.say(uid, "up")
	if f.up != nil {
		f.up(uid)
	}
}
func (f *fakeTraffic) Forget(uid string) { f.say(uid, "forgotten") }
func (f *fakeTraffic) Drain(ctx context.Context, uid string) {
	f.log.add("%s drains", uid)
	if f.drain != nil {
		f.drain(ctx)
	}
	if ctx.Err() == nil {
		f.log.add("%s drained", uid)
	}
}

// is fails the test unless this is the last that was told of the pod; "" = nothing ever was.
func (f *fakeTraffic) is(t *testing.T, uid, want string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if got := f.state[uid]; got != want {
		t.Errorf("pod %s is %q, want %q", uid, got, want)
	}
}

// slowAPI is an API whose answers to the status's writer take as long as a test wants.
type slowAPI struct {
	corev1client.PodsGetter
	held atomic.Pointer[chan struct{}] // while there is one, requests wait for it, before they are carried out…
	lost atomic.Pointer[chan struct{}] // …or afterwards
}

func (a *slowAPI) Pods(namespace string) corev1client.PodInterface {
	return slowPods{a.PodsGetter.Pods(namespace), a}
}

type slowPods struct {
	corev1client.PodInterface
	api *slowAPI
}

func pass(ctx context.Context, at *atomic.Pointer[chan struct{}]) error {
	if gate := at.Load(); gate != nil {
		select {
		case <-*gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (p slowPods) UpdateStatus(ctx context.Context, pod *corev1.Pod, o metav1.UpdateOptions) (*corev1.Pod, error) {
	if err := pass(ctx, &p.api.held); err != nil {
		return nil, err
	}
	got, err := p.PodInterface.UpdateStatus(ctx, pod, o)
	if waited := pass(ctx, &p.api.lost); waited != nil {
		return nil, waited
	}
	return got, err
}

// hold has requests wait until the function that it returns is called.
func (*slowAPI) hold(at *atomic.Pointer[chan struct{}]) (release func()) {
	gate := make(chan struct{})
	at.Store(&gate)
	return func() {
		at.Store(nil)
		close(gate)
		synctest.Wait()
	}
}

// served is a world whose traffic is led.
func served(t *testing.T, f func(w *world, traffic *fakeTraffic, api *slowAPI)) {
	t.Helper()
	traffic, api := &fakeTraffic{state: map[string]string{}}, &slowAPI{}
	inWith(t, func(w *world) {
		traffic.log, api.PodsGetter = w.log, w.pods
		w.traffic, w.pods, w.drain = traffic, api, 2*time.Second
		traffic.up = func(uid string) {
			if pod := w.pod("a"); ready(pod) != corev1.ConditionTrue {
				t.Errorf("pod %s is up, and the API says %+v", uid, pod.Status.Conditions)
			}
		}
	}, func(w *world) { f(w, traffic, api) })
}

// serving is served, with the pod of web ready.
func serving(t *testing.T, f func(w *world, traffic *fakeTraffic, api *slowAPI)) {
	t.Helper()
	served(t, func(w *world, traffic *fakeTraffic, api *slowAPI) {
		w.create(web)
		w.readiness(prober.Passed)
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Fatal("not ready")
		}
		traffic.is(t, "uid-a", "")
		w.log.take()
		f(w, traffic, api)
	})
}

// readiness has the readiness probe of the pod of web come to a verdict.
func (w *world) readiness(r prober.Result) { w.find("uid-a", "web", prober.Readiness, r) }
