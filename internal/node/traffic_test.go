package node

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"

	"github.com/endpointd/endpointd/internal/prober"
)

func TestWhatIsBadIsToldBeforeTheAPIIs(t *testing.T) {
	for name, test := range map[string]struct {
		happens func(*world)
		want    string
	}{
		"its process dies":             {func(w *world) { w.runtime.exit("uid-a", "web", 137, 9) }, "down: dead"},
		"its process ends by itself":   {func(w *world) { w.runtime.exit("uid-a", "web", 0, 0) }, "down: dead"},
		"its sandbox dies":             {func(w *world) { w.runtime.die("uid-a") }, "down: dead"},
		"it is not ready":              {func(w *world) { w.readiness(prober.Failed) }, "down: not ready"},
		"it is to be killed, not live": {func(w *world) { w.runtime.deaf["web"] = true; w.find("uid-a", "web", prober.Liveness, prober.Failed) }, "down: not ready"},
	} {
		t.Run(name, func(t *testing.T) {
			serving(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
				told := corev1.ConditionUnknown
				traffic.down = func() { told = ready(w.pod("a")) }
				test.happens(w)
				synctest.Wait()
				traffic.is(t, "uid-a", test.want)
				if told != corev1.ConditionTrue {
					t.Errorf("the API said %q at that moment", told)
				}
				if got := ready(w.pod("a")); got != corev1.ConditionFalse {
					t.Errorf("the API says %q now", got)
				}
			})
		})
	}
}

// A worker that is in the middle of something, such as a start that takes long, does not keep the news.
func TestWhatIsBadDoesNotWaitForTheWorker(t *testing.T) {
	served(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		w.create(`{spec: {containers: [{name: one, readinessProbe: {tcpSocket: {port: 80}}}, {name: two}]}}`)
		w.find("uid-a", "one", prober.Readiness, prober.Passed)
		busy := make(chan struct{})
		w.agent.mu.Lock()
		w.agent.workers["uid-a"].inbox.post(func() { <-busy })
		w.agent.mu.Unlock()
		synctest.Wait()
		w.find("uid-a", "one", prober.Readiness, prober.Failed)
		traffic.is(t, "uid-a", "down: not ready")
		w.runtime.exit("uid-a", "two", 1, 0)
		synctest.Wait()
		traffic.is(t, "uid-a", "down: dead")
		w.find("uid-a", "one", prober.Readiness, prober.Passed)
		close(busy)
		w.wait(time.Second) // two runs again
		traffic.is(t, "uid-a", "up")

		busy = make(chan struct{})
		w.agent.mu.Lock()
		w.agent.workers["uid-a"].inbox.post(func() { <-busy })
		w.agent.mu.Unlock()
		synctest.Wait()
		w.runtime.die("uid-a")
		synctest.Wait()
		traffic.is(t, "uid-a", "down: dead")
		close(busy)
		synctest.Wait()
	})
}

// It ends before it is ever said to be ready, by a worker that has not heard of it yet.
func TestWhatIsBadIsKeptUntilThePodIsShown(t *testing.T) {
	log := &fakeLog{began: time.Now()}
	traffic := &fakeTraffic{log: log, state: map[string]string{}}
	s := &standing{traffic: traffic}
	pod := &corev1.Pod{}
	pod.UID = "uid-a"
	s.meet(pod)
	s.count("web", 3)
	if s.exited("web", 2) || s.exited("side", 3) || s.failed("web", 2, prober.Readiness) {
		t.Error("what does not run was noticed")
	}
	if !s.exited("web", 3) {
		t.Error("its end was not noticed")
	}
	traffic.is(t, "uid-a", "")
	if ticket, owed := s.see(pod, true, 0); ticket != 0 || owed {
		t.Errorf("ticket %d for a report that is out of date", ticket)
	}
	traffic.is(t, "uid-a", "down: dead")
	s.hear(true)
	ticket, owed := s.see(pod, true, 0)
	if ticket == 0 || !owed {
		t.Error("nothing would bring it up again")
	}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	s.answered(ticket, pod)
	traffic.is(t, "uid-a", "up")
	log.take()
	s.forget()
	s.forget()
	if got, want := log.take(), "0s uid-a down: dead\n0s uid-a forgotten"; strings.Count(got, "\n") != 1 {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPodsThatNobodyIsLedToAreNotToldOf(t *testing.T) {
	served(t, func(w *world, _ *fakeTraffic, _ *slowAPI) {
		w.create(web)
		w.find("uid-a", "web", prober.Liveness, prober.Failed)
		w.wait(time.Second)
		w.runtime.exit("uid-a", "web", 1, 0)
		w.wait(time.Second)
		w.create(`{metadata: {name: b}, spec: {restartPolicy: Never, containers: [{name: one}, {name: two, readinessProbe: {tcpSocket: {port: 80}}}]}}`)
		w.runtime.exit("uid-b", "one", 0, 0)
		w.wait(time.Second)
		w.runtime.die("uid-b")
		w.wait(time.Second)
		w.log.take()
		w.deletePod("a", 30)
		w.deletePod("b", 30)
		w.wait(time.Minute)
		if got, want := w.log.take(), "4s remove a\n4s remove b"; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

func TestInitAndEphemeralContainersTakeNothingDown(t *testing.T) {
	served(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		w.create(`{spec: {initContainers: [{name: first}, {name: side, restartPolicy: Always}], containers: [{name: web}]}}`)
		w.runtime.exit("uid-a", "first", 0, 0)
		synctest.Wait()
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Fatal("not ready")
		}
		pod := w.pod("a")
		pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}}
		if _, err := w.user.CoreV1().Pods("default").Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.runtime.exit("uid-a", "debug", 1, 0)
		w.wait(time.Second)
		traffic.is(t, "uid-a", "")
		w.runtime.exit("uid-a", "side", 0, 0)
		synctest.Wait()
		traffic.is(t, "uid-a", "down: dead")
		w.wait(time.Second)
		traffic.is(t, "uid-a", "up")
	})
}

func TestUpWhenTheAPIHasTakenIt(t *testing.T) {
	serving(t, func(w *world, traffic *fakeTraffic, api *slowAPI) {
		w.runtime.exit("uid-a", "web", 1, 0)
		w.wait(time.Second)
		release := api.hold(&api.held)
		w.readiness(prober.Passed)
		w.wait(time.Second)
		traffic.is(t, "uid-a", "down: dead")
		release()
		traffic.is(t, "uid-a", "up")
		if got, want := w.log.take(), "0s uid-a down: dead\n0.04s start web\n2s uid-a up"; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

// It fails and recovers before anything was written: what the API says is the same again, and yet it must be asked.
func TestRecoveryThatChangesNothingForTheAPI(t *testing.T) {
	serving(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		busy := make(chan struct{})
		w.agent.mu.Lock()
		w.agent.workers["uid-a"].inbox.post(func() { <-busy })
		w.agent.mu.Unlock()
		synctest.Wait()
		before := w.pod("a").ResourceVersion
		w.readiness(prober.Failed)
		w.readiness(prober.Passed)
		traffic.is(t, "uid-a", "down: not ready")
		close(busy)
		synctest.Wait()
		traffic.is(t, "uid-a", "up")
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Errorf("conditions %+v, version %s before", w.pod("a").Status.Conditions, before)
		}
	})
}

// What was on its way to the API before the pod went down says nothing of how it is now.
func TestAnswerThatIsTooOld(t *testing.T) {
	serving(t, func(w *world, traffic *fakeTraffic, api *slowAPI) {
		w.readiness(prober.Failed)
		release := api.hold(&api.held)
		w.readiness(prober.Passed) // is on its way
		traffic.is(t, "uid-a", "down: not ready")
		w.readiness(prober.Failed)
		release()
		if ready(w.pod("a")) != corev1.ConditionFalse {
			t.Error("ready to the API")
		}
		w.wait(time.Minute)
		w.did("0s uid-a down: not ready")
		w.readiness(prober.Passed)
		traffic.is(t, "uid-a", "up")
	})
}

// The same, and the API has carried the older request out and not answered it yet.
func TestAnswerThatComesTooLate(t *testing.T) {
	serving(t, func(w *world, _ *fakeTraffic, api *slowAPI) {
		w.runtime.exit("uid-a", "web", 1, 0)
		w.wait(time.Second)
		release := api.hold(&api.lost)
		w.readiness(prober.Passed)
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Fatal("the API has not carried it out")
		}
		w.runtime.exit("uid-a", "web", 1, 0)
		synctest.Wait()
		release()
		w.wait(time.Second)
		if got := w.log.take(); strings.Contains(got, "up") {
			t.Error(got)
		}
	})
}

// An answer that is lost was no answer, and what the API says then is not what is said to it.
func TestAnswerThatIsLost(t *testing.T) {
	serving(t, func(w *world, traffic *fakeTraffic, api *slowAPI) {
		release := api.hold(&api.lost)
		w.readiness(prober.Failed)
		if ready(w.pod("a")) != corev1.ConditionFalse {
			t.Fatal("the API has not carried it out")
		}
		w.readiness(prober.Passed)
		w.wait(3 * time.Second)
		traffic.is(t, "uid-a", "down: not ready")
		w.wait(time.Minute)
		release()
		w.wait(time.Minute)
		traffic.is(t, "uid-a", "up")
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Error("up, and the API does not agree")
		}
	})
}

func TestRecoveryWhileTheAPIIsAway(t *testing.T) {
	serving(t, func(w *world, traffic *fakeTraffic, api *slowAPI) {
		release := api.hold(&api.held)
		w.readiness(prober.Failed)
		w.wait(20 * time.Second)
		w.readiness(prober.Passed)
		w.wait(40 * time.Second)
		traffic.is(t, "uid-a", "down: not ready")
		before := w.pod("a").ResourceVersion
		release()
		w.wait(2 * time.Second)
		traffic.is(t, "uid-a", "up")
		if after := w.pod("a"); ready(after) != corev1.ConditionTrue || after.ResourceVersion != before {
			t.Errorf("the API was told of what is over: version %s, before %s", after.ResourceVersion, before)
		}
	})
}

// Others write, too: what is known of the object is old, and what comes of the write is not what was written.
func TestOthersSayThatItIsNotReady(t *testing.T) {
	serving(t, func(w *world, traffic *fakeTraffic, api *slowAPI) {
		w.readiness(prober.Failed)
		release := api.hold(&api.held)
		w.readiness(prober.Passed)
		pod := w.pod("a")
		pod.Annotations = map[string]string{"changed": "yes"}
		if _, err := w.user.CoreV1().Pods("default").Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		traffic.is(t, "uid-a", "down: not ready")
		release()
		traffic.is(t, "uid-a", "up")

		release = api.hold(&api.held)
		busy := make(chan struct{})
		w.agent.mu.Lock()
		w.agent.workers["uid-a"].inbox.post(func() { <-busy })
		w.agent.mu.Unlock()
		synctest.Wait()
		w.readiness(prober.Failed)
		w.readiness(prober.Passed)
		close(busy) // asks the API what it says, with the same status
		synctest.Wait()
		pod = w.pod("a")
		for i := range pod.Status.Conditions {
			if pod.Status.Conditions[i].Type == corev1.PodReady {
				pod.Status.Conditions[i].Status = corev1.ConditionFalse // as the failure detector does
			}
		}
		if _, err := w.user.CoreV1().Pods("default").UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		release()
		w.wait(time.Second)
		traffic.is(t, "uid-a", "up")
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Error("up, and the API does not agree")
		}
	})
}

// A verdict that changes while its predecessor is being written must reach the API in the end, with or without somebody who leads traffic.
func TestVerdictThatChangesWhileItIsWritten(t *testing.T) {
	for _, led := range []bool{false, true} {
		t.Run(fmt.Sprintf("led %v", led), func(t *testing.T) {
			api := &slowAPI{}
			inWith(t, func(w *world) {
				api.PodsGetter = w.pods
				w.pods = api
				if led {
					w.traffic = &fakeTraffic{log: w.log, state: map[string]string{}}
				}
			}, func(w *world) {
				w.create(web)
				w.readiness(prober.Passed)
				for range 3 {
					for _, at := range []*atomic.Pointer[chan struct{}]{&api.held, &api.lost} {
						release := api.hold(at)
						w.readiness(prober.Failed)
						w.readiness(prober.Passed)
						release()
						if ready(w.pod("a")) != corev1.ConditionTrue {
							t.Fatal("ready, and the API never hears of it")
						}
					}
				}
			})
		})
	}
}

func TestReadinessGateTakesDown(t *testing.T) {
	served(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		w.create(`{spec: {readinessGates: [{conditionType: example.com/gate}], containers: [{name: web}]}}`)
		gate := func(status corev1.ConditionStatus) {
			pod := w.pod("a")
			conditions := []corev1.PodCondition{{Type: "example.com/gate", Status: status}}
			for _, c := range pod.Status.Conditions {
				if c.Type != "example.com/gate" {
					conditions = append(conditions, c)
				}
			}
			pod.Status.Conditions = conditions
			if _, err := w.user.CoreV1().Pods("default").UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		gate(corev1.ConditionTrue)
		traffic.is(t, "uid-a", "")
		gate(corev1.ConditionFalse)
		traffic.is(t, "uid-a", "down: not ready")
		gate(corev1.ConditionTrue)
		traffic.is(t, "uid-a", "up")
	})
}

func TestExternalPodGoesDownAndComesBack(t *testing.T) {
	served(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		w.create(`{metadata: {annotations: {endpointd.io/address: 192.0.2.7}}, spec: {runtimeClassName: external, containers: [{name: web, readinessProbe: {tcpSocket: {port: 80}}, livenessProbe: {tcpSocket: {port: 80}}}]}}`)
		w.readiness(prober.Passed)
		traffic.is(t, "uid-a", "")
		w.find("uid-a", "web", prober.Liveness, prober.Failed)
		traffic.is(t, "uid-a", "down: not ready")
		w.find("uid-a", "web", prober.Liveness, prober.Passed)
		traffic.is(t, "uid-a", "up")
		pod := w.pod("a")
		pod.Annotations[AddressAnnotation] = "192.0.2.8"
		if _, err := w.user.CoreV1().Pods("default").Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		traffic.is(t, "uid-a", "down: not ready")
		w.readiness(prober.Passed)
		traffic.is(t, "uid-a", "up")
	})
}

func TestAgentRestartAndTraffic(t *testing.T) {
	serving(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		w.stopAgent()
		w.startAgent()
		w.wait(time.Second)
		traffic.is(t, "uid-a", "") // it serves on
		w.stopAgent()
		w.runtime.exit("uid-a", "web", 1, 0)
		<-w.runtime.events // nobody reads it
		w.startAgent()
		w.wait(time.Second)
		traffic.is(t, "uid-a", "down: dead")
		w.readiness(prober.Passed)
		traffic.is(t, "uid-a", "up")
	})
}

func TestAgentRestartWhileTheAPIIsAway(t *testing.T) {
	serving(t, func(w *world, traffic *fakeTraffic, _ *slowAPI) {
		w.stopAgent()
		away := func() { w.user, w.client = w.api.Client(), w.api.Client() }
		away()
		w.client.PrependReactor("*", "*", refuse)
		w.client.PrependWatchReactor("*", refuseWatch)
		w.startAgent()
		w.wait(2 * patience)
		traffic.is(t, "uid-a", "") // nobody knows whether it was ready
		w.readiness(prober.Passed)
		w.wait(time.Second)
		traffic.is(t, "uid-a", "")
	})
}

var errAway = errors.New("connection refused")

func refuse(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, errAway }

func refuseWatch(clienttesting.Action) (bool, apiwatch.Interface, error) { return true, nil, errAway }
