package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/prober"
)

// takes is a drain that is over after a while.
func takes(d time.Duration) func(context.Context) {
	return func(ctx context.Context) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
}

// did compares what was done since the last time.
func (w *world) did(want string) {
	w.t.Helper()
	if got := w.log.take(); got != want {
		w.t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

const hooked = `
spec:
  terminationGracePeriodSeconds: 30
  containers:
  - name: web
    readinessProbe: {tcpSocket: {port: 80}}
    lifecycle: {preStop: {exec: {command: [leave]}}}
`

func TestPodIsDrainedBeforeItIsTold(t *testing.T) {
	served(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		w.create(hooked)
		w.readiness(prober.Passed)
		w.runtime.inExec = func(context.Context, container.ExecOptions) (int, error) {
			<-time.After(time.Second)
			return 0, nil
		}
		traffic.drain = takes(30 * time.Millisecond)
		w.log.take()
		w.deletePod("a", 30)
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Error("a pod that drains does not serve any more")
		}
		w.wait(10 * time.Second)
		w.did("0s uid-a down: draining\n0s uid-a drains\n0.03s uid-a drained\n0.03s exec leave in web\n" +
			"1.03s TERMINATED web\n1.03s uid-a down: dead\n1.03s remove a\n1.03s uid-a forgotten")
		if w.exists("a") {
			t.Error("it does not go")
		}
	})
}

func TestDrainIsBounded(t *testing.T) {
	for name, test := range map[string]struct {
		grace int64
		want  string
	}{
		"by DrainGrace":               {30, "0s uid-a down: draining\n0s uid-a drains\n2s TERMINATED web\n2s uid-a down: dead\n2s remove a\n2s uid-a forgotten"},
		"by half of the grace period": {2, "0s uid-a down: draining\n0s uid-a drains\n1s TERMINATED web\n1s uid-a down: dead\n1s remove a\n1s uid-a forgotten"},
		"by force":                    {0, "0s uid-a down: draining\n0s TERMINATED web\n0s uid-a down: dead\n0s remove a\n0s uid-a forgotten"},
	} {
		t.Run(name, func(t *testing.T) {
			serving(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
				traffic.drain = func(ctx context.Context) { <-ctx.Done() }
				w.deletePod("a", test.grace)
				w.wait(10 * time.Second)
				w.did(test.want)
			})
		})
	}
}

// A Drain that does not heed its context holds up nothing but itself.
func TestDrainThatDoesNotReturn(t *testing.T) {
	serving(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		stuck := make(chan struct{})
		traffic.drain = func(context.Context) { <-stuck }
		w.deletePod("a", 30)
		w.wait(10 * time.Second)
		w.did("0s uid-a down: draining\n0s uid-a drains\n2s TERMINATED web\n2s uid-a down: dead\n2s remove a")
		close(stuck)
		synctest.Wait()
	})
}

func TestForceEndsTheDrain(t *testing.T) {
	serving(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		traffic.drain = func(ctx context.Context) { <-ctx.Done() }
		w.deletePod("a", 30)
		w.wait(500 * time.Millisecond)
		w.deletePod("a", 0)
		w.wait(time.Second)
		w.did("0s uid-a down: draining\n0s uid-a drains\n0.5s TERMINATED web\n0.5s uid-a down: dead\n0.5s remove a\n0.5s uid-a forgotten")
	})
}

func TestPodThatIsNotReadyIsNotDrained(t *testing.T) {
	serving(t, func(w *world, _ *fakeTraffic, _ *slowAPI) {
		w.readiness(prober.Failed)
		w.deletePod("a", 30)
		w.wait(time.Second)
		w.did("0s uid-a down: not ready\n0s TERMINATED web\n0s uid-a down: dead\n0s remove a\n0s uid-a forgotten")
	})
}

func TestWhatHappensDuringTheDrain(t *testing.T) {
	serving(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		traffic.drain = func(ctx context.Context) { <-ctx.Done() }
		w.deletePod("a", 30)
		w.wait(100 * time.Millisecond)
		w.readiness(prober.Failed)
		traffic.is(t, "uid-a", "down: not ready")
		w.readiness(prober.Passed)
		traffic.is(t, "uid-a", "down: draining") // not Up
		w.runtime.exit("uid-a", "web", 1, 0)
		synctest.Wait()
		traffic.is(t, "uid-a", "down: dead")
		w.wait(5 * time.Second)
		traffic.is(t, "uid-a", "forgotten")
	})
}

// The pod runs on without the agent. The next one begins with its end anew.
func TestAgentEndsDuringTheDrain(t *testing.T) {
	serving(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		traffic.drain = func(ctx context.Context) { <-ctx.Done() }
		w.deletePod("a", 30)
		w.wait(100 * time.Millisecond)
		w.stopAgent()
		w.did("0s uid-a down: draining\n0s uid-a drains")
		traffic.drain = takes(50 * time.Millisecond)
		w.startAgent()
		w.wait(time.Second)
		w.did("0.1s adopt 10.244.1.1\n0.1s uid-a down: draining\n0.1s uid-a drains\n0.15s uid-a drained\n" +
			"0.15s TERMINATED web\n0.15s uid-a down: dead\n0.15s remove a\n0.15s uid-a forgotten")
	})
}

func TestDrainOfPodThatRanTooLong(t *testing.T) {
	served(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		w.create(`{spec: {activeDeadlineSeconds: 60, containers: [{name: web}]}}`)
		var others corev1.ConditionStatus
		traffic.drain = func(ctx context.Context) {
			takes(20 * time.Millisecond)(ctx)
			others = ready(w.pod("a"))
			traffic.is(t, "uid-a", "down: not ready")
			w.log.take()
		}
		w.log.take()
		w.wait(2 * time.Minute)
		w.did("60.02s uid-a drained\n60.02s TERMINATED web\n60.02s uid-a down: dead")
		if others != corev1.ConditionFalse { // it has no deletionTimestamp that could tell other nodes
			t.Errorf("ready to others while it drains: %s", others)
		}
		if s := w.pod("a").Status; s.Phase != corev1.PodFailed || s.Reason != "DeadlineExceeded" {
			t.Errorf("status %+v", s)
		}
	})
}

// Endpoints name a static pod by its mirror, which may be another one any time.
func TestTrafficOfStaticPod(t *testing.T) {
	served(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", UID: "static", Annotations: map[string]string{sourceAnnotation: sourceFile}}}
		pod.Spec.Containers = []corev1.Container{{Name: "web"}}
		w.agent.SetStatic([]*corev1.Pod{pod})
		synctest.Wait()
		w.runtime.exit("static", "web", 1, 0) // nobody is led there
		w.wait(time.Second)
		mirror := func(uid types.UID) {
			m := pod.DeepCopy()
			m.UID, m.Annotations["kubernetes.io/config.mirror"] = uid, "static"
			if _, err := w.user.CoreV1().Pods("default").Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			w.mirrors["static"] = "default/a"
			w.agent.MirrorChanged("static")
			synctest.Wait()
		}
		w.log.take()
		mirror("m1")
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Fatal("not ready")
		}
		w.runtime.exit("static", "web", 1, 0)
		w.wait(20 * time.Second)
		w.did("1s m1 down: dead\n11s start web\n11s m1 up")

		w.deletePod("a", 0)
		w.runtime.exit("static", "web", 1, 0)
		w.wait(time.Second)
		mirror("m2") // which nobody is led to yet
		w.wait(time.Minute)
		w.did("21s m1 down: dead\n21s m1 forgotten\n41s start web")

		traffic.drain = takes(10 * time.Millisecond)
		w.agent.SetStatic(nil)
		w.wait(time.Second)
		w.did("82s m2 down: draining\n82s m2 drains\n82.01s m2 drained\n82.01s TERMINATED web\n82.01s m2 down: dead\n82.01s remove a\n82.01s m2 forgotten")
	})
}

func TestStaticPodWithoutMirrorIsNotDrained(t *testing.T) {
	served(t, func(w *world, _ *fakeTraffic, _ *slowAPI) {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", UID: "static", Annotations: map[string]string{sourceAnnotation: sourceFile}}}
		pod.Spec.Containers = []corev1.Container{{Name: "web"}}
		w.agent.SetStatic([]*corev1.Pod{pod})
		synctest.Wait()
		w.log.take()
		w.agent.SetStatic(nil)
		w.wait(time.Second)
		w.did("0s TERMINATED web\n0s remove a")
	})
}
