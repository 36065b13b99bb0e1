package node

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	clienttesting "k8s.io/client-go/testing"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/podspec"
	"github.com/endpointd/endpointd/internal/prober"
)

const web = `
metadata: {name: a}
spec:
  terminationGracePeriodSeconds: 30
  containers:
  - name: web
    readinessProbe: {tcpSocket: {port: 80}}
    livenessProbe: {tcpSocket: {port: 80}}
`

const plain = `{spec: {containers: [{name: web}]}}`

func TestPodStarts(t *testing.T) {
	in(t, func(w *world) {
		w.create(web)
		pod := w.pod("a")
		if pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP != "10.244.1.1" || pod.Status.HostIP != "10.200.0.11" {
			t.Errorf("status %+v", pod.Status)
		}
		if ready(pod) != corev1.ConditionFalse || condition(pod, corev1.PodReady).Reason != "ContainersNotReady" {
			t.Errorf("ready before its probe said so: %+v", pod.Status.Conditions)
		}
		w.find("uid-a", "web", prober.Readiness, prober.Passed)
		s := w.status("a", "web")
		if ready(w.pod("a")) != corev1.ConditionTrue || !s.Ready || s.ContainerID != "process://uid-a/web/0" || s.RestartCount != 0 {
			t.Errorf("not ready: %+v", s)
		}
		since := condition(w.pod("a"), corev1.PodReady).LastTransitionTime
		w.wait(2 * time.Second)
		w.find("uid-a", "web", prober.Readiness, prober.Failed)
		if c := condition(w.pod("a"), corev1.PodReady); c.Status != corev1.ConditionFalse || !since.Before(&c.LastTransitionTime) {
			t.Errorf("condition after a failed probe: %+v, ready since %v", c, since)
		}
		w.saw("Unhealthy Readiness probe failed")
	})
}

func TestRestartsWithGrowingPauses(t *testing.T) {
	in(t, func(w *world) {
		w.create(plain)
		w.log.take()
		for range 4 {
			w.runtime.exit("uid-a", "web", 1, 0)
			synctest.Wait()
			w.wait(45 * time.Second)
		}
		// At once, then after 10, 20 and 40 s.
		if got, want := w.log.take(), "0.04s start web\n55s start web\n110s start web\n175s start web"; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		if s := w.status("a", "web"); s.RestartCount != 4 || s.LastTerminationState.Terminated.ExitCode != 1 {
			t.Errorf("status %+v", s)
		}
		w.runtime.exit("uid-a", "web", 1, 0)
		synctest.Wait()
		s := w.status("a", "web")
		if s.State.Waiting == nil || s.State.Waiting.Reason != "CrashLoopBackOff" || ready(w.pod("a")) != corev1.ConditionFalse {
			t.Errorf("while it waits: %+v", s)
		}
		w.wait(5 * time.Minute)
		w.wait(10 * time.Minute)
		w.log.take()
		w.runtime.exit("uid-a", "web", 1, 0)
		w.wait(time.Second)
		if got := w.log.take(); got == "" {
			t.Error("after ten good minutes it is not started again at once")
		}
	})
}

func TestPhaseFollowsRestartPolicy(t *testing.T) {
	for name, test := range map[string]struct {
		policy string
		codes  [2]int
		phase  corev1.PodPhase
		starts int // in all, of two containers
	}{
		"Never, both succeed":   {"Never", [2]int{0, 0}, corev1.PodSucceeded, 2},
		"Never, one fails":      {"Never", [2]int{0, 3}, corev1.PodFailed, 2},
		"OnFailure, both good":  {"OnFailure", [2]int{0, 0}, corev1.PodSucceeded, 2},
		"OnFailure, one fails":  {"OnFailure", [2]int{0, 3}, corev1.PodRunning, 3},
		"Always, both succeed":  {"Always", [2]int{0, 0}, corev1.PodRunning, 4},
		"none given, both exit": {`""`, [2]int{0, 1}, corev1.PodRunning, 4},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(w *world) {
				w.create("{spec: {restartPolicy: " + test.policy + ", containers: [{name: one}, {name: two}]}}")
				w.runtime.exit("uid-a", "one", test.codes[0], 0)
				w.runtime.exit("uid-a", "two", test.codes[1], 0)
				w.wait(100 * time.Millisecond)
				if got := w.pod("a").Status.Phase; got != test.phase {
					t.Errorf("phase %s, want %s", got, test.phase)
				}
				s := w.status("a", "one").RestartCount + w.status("a", "two").RestartCount + 2
				if int(s) != test.starts {
					t.Errorf("%d starts, want %d", s, test.starts)
				}
				if test.phase == corev1.PodSucceeded && condition(w.pod("a"), corev1.PodReady).Reason != "PodCompleted" {
					t.Errorf("conditions %+v", w.pod("a").Status.Conditions)
				}
				_, held := w.network.held["uid-a"]
				if over := test.phase != corev1.PodRunning; held == over {
					t.Errorf("holds an address: %v, over: %v", held, over)
				}
			})
		})
	}
}

func TestInitContainersAndSidecars(t *testing.T) {
	in(t, func(w *world) {
		w.create(`{spec: {restartPolicy: Never, initContainers: [{name: i1}, {name: side, restartPolicy: Always, startupProbe: {tcpSocket: {port: 1}}}, {name: i2}], containers: [{name: m}]}}`)
		w.runtime.exit("uid-a", "i1", 0, 0)
		synctest.Wait()
		if got := condition(w.pod("a"), corev1.PodInitialized); got.Status != corev1.ConditionFalse || got.Message != "containers with incomplete status: [side i2]" {
			t.Errorf("condition %+v", got)
		}
		w.find("uid-a", "side", prober.Startup, prober.Passed)
		w.runtime.exit("uid-a", "i2", 0, 0)
		synctest.Wait()
		w.runtime.exit("uid-a", "side", 1, 0) // comes again whatever the pod's policy says
		w.wait(50 * time.Millisecond)
		w.find("uid-a", "side", prober.Startup, prober.Passed)
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Errorf("not ready: %+v", w.pod("a").Status)
		}
		w.runtime.exit("uid-a", "m", 0, 0) // the sidecar does not keep the pod
		synctest.Wait()
		want := "0s pod a\n0s start i1\n0s start side\n0s start i2\n0s start m\n0.04s start side\n0.05s TERMINATED side"
		if got := w.log.take(); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		if got := w.pod("a").Status.Phase; got != corev1.PodSucceeded {
			t.Errorf("phase %s", got)
		}
	})
}

func TestInitContainerThatFails(t *testing.T) {
	for policy, want := range map[string]corev1.PodPhase{"Never": corev1.PodFailed, "Always": corev1.PodPending} {
		t.Run(policy, func(t *testing.T) {
			in(t, func(w *world) {
				w.create(`{spec: {restartPolicy: ` + policy + `, initContainers: [{name: i1}], containers: [{name: m}]}}`)
				w.runtime.exit("uid-a", "i1", 1, 0)
				synctest.Wait()
				if got := w.pod("a").Status.Phase; got != want {
					t.Errorf("phase %s, want %s", got, want)
				}
			})
		})
	}
}

func TestFailedLivenessProbeRestarts(t *testing.T) {
	in(t, func(w *world) {
		w.create(web)
		w.find("uid-a", "web", prober.Readiness, prober.Passed)
		w.runtime.deaf["web"] = true
		w.log.take()
		w.find("uid-a", "web", prober.Liveness, prober.Failed)
		if ready(w.pod("a")) != corev1.ConditionFalse {
			t.Error("ready while it is being killed")
		}
		w.wait(31 * time.Second)
		if got, want := w.log.take(), "0s TERMINATED web\n30s KILLED web\n30.04s start web"; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		w.saw("Container web failed liveness probe, will be restarted")
	})
}

const slow = `
spec:
  terminationGracePeriodSeconds: 30
  initContainers:
  - {name: s1, restartPolicy: Always}
  - {name: s2, restartPolicy: Always}
  containers:
  - name: web
    lifecycle: {preStop: {sleep: {seconds: 5}}}
`

func TestGracefulEnd(t *testing.T) {
	in(t, func(w *world) {
		w.create(slow)
		w.log.take()
		w.deletePod("a", 30)
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Error("a pod that drains does not serve any more")
		}
		w.wait(10 * time.Second)
		want := "5.1s TERMINATED web\n5.1s TERMINATED s2\n5.1s TERMINATED s1\n5.1s remove a"
		if got := w.log.take(); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		if w.exists("a") || len(w.network.held) > 0 {
			t.Errorf("left: object %v, addresses %v", w.exists("a"), w.network.held)
		}
	})
}

func TestEndIsForcedAfterGrace(t *testing.T) {
	in(t, func(w *world) {
		w.create(slow)
		w.runtime.deaf["web"], w.runtime.deaf["s1"], w.runtime.deaf["s2"] = true, true, true
		w.log.take()
		w.deletePod("a", 8)
		w.wait(20 * time.Second)
		want := "5.1s TERMINATED web\n8s KILLED web\n8s KILLED s2\n8s KILLED s1\n8s remove a"
		if got := w.log.take(); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

func TestGraceCanBeShortened(t *testing.T) {
	in(t, func(w *world) {
		w.create(plain)
		w.runtime.deaf["web"] = true
		w.deletePod("a", 30)
		w.wait(2 * time.Second)
		w.log.take()
		pod := w.pod("a")
		pod.DeletionGracePeriodSeconds = new(int64(3)) // what a real API makes of a second, shorter deletion
		if _, err := w.user.CoreV1().Pods("default").Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.wait(2 * time.Second)
		if got, want := w.log.take(), "3s KILLED web\n3s remove a"; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

func TestForceDeletedPodEnds(t *testing.T) {
	in(t, func(w *world) {
		w.create(plain)
		w.log.take()
		w.deletePod("a", 0)
		w.wait(time.Second)
		if got, want := w.log.take(), "0s TERMINATED web\n0s remove a"; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

func TestDeadSandboxComesBackWithAnotherAddress(t *testing.T) {
	in(t, func(w *world) {
		w.create(web)
		w.find("uid-a", "web", prober.Readiness, prober.Passed)
		w.runtime.die("uid-a")
		w.wait(100 * time.Millisecond)
		pod := w.pod("a")
		if pod.Status.PodIP != "10.244.1.2" || ready(pod) != corev1.ConditionFalse {
			t.Errorf("status %+v", pod.Status)
		}
		if s := w.status("a", "web"); s.RestartCount != 1 || s.LastTerminationState.Terminated.ExitCode != 137 || s.State.Running == nil {
			t.Errorf("container %+v", s)
		}
		w.saw("SandboxChanged")
	})
}

func TestDeadSandboxOfPodThatNeverRestarts(t *testing.T) {
	in(t, func(w *world) {
		w.create(`{spec: {restartPolicy: Never, containers: [{name: web}]}}`)
		w.runtime.die("uid-a")
		synctest.Wait()
		if got := w.pod("a").Status.Phase; got != corev1.PodFailed {
			t.Errorf("phase %s", got)
		}
	})
}

func TestAgentRestartTakesPodsOver(t *testing.T) {
	in(t, func(w *world) {
		w.create(web)
		w.find("uid-a", "web", prober.Readiness, prober.Passed)
		before := w.pod("a")
		w.stopAgent()
		w.log.take()
		w.startAgent()
		w.wait(time.Minute)
		after := w.pod("a")
		if got := w.log.take(); got != "0s adopt 10.244.1.1" {
			t.Errorf("did\n%s", got)
		}
		if before.ResourceVersion != after.ResourceVersion {
			t.Errorf("the status was written again:\nbefore %+v\nafter  %+v", before.Status, after.Status)
		}
		spec := w.probes.specs[prober.Key{UID: "uid-a", Container: "web", Kind: prober.Readiness}]
		if spec.Initial != prober.Passed {
			t.Errorf("the readiness probe begins with %v", spec.Initial)
		}
	})
}

func TestAgentRestartSeesWhatHappenedMeanwhile(t *testing.T) {
	in(t, func(w *world) {
		w.create(plain)
		w.create(`{metadata: {name: b}, spec: {containers: [{name: web}]}}`)
		w.create(`{metadata: {name: c}, spec: {containers: [{name: web}]}}`)
		w.stopAgent()
		w.runtime.exit("uid-a", "web", 7, 0)
		w.runtime.die("uid-b")
		for range 2 {
			<-w.runtime.events // nobody reads them
		}
		w.deletePod("c", 0)
		w.log.take()
		w.startAgent()
		w.wait(time.Second)
		if s := w.status("a", "web"); s.RestartCount != 1 || s.LastTerminationState.Terminated.ExitCode != 7 {
			t.Errorf("container that exited: %+v", s)
		}
		if s := w.status("b", "web"); s.RestartCount != 1 || w.pod("b").Status.PodIP != "10.244.1.4" {
			t.Errorf("pod that died: %+v", w.pod("b").Status)
		}
		if w.runtime.pods["uid-c"] != nil {
			t.Error("a pod that was deleted meanwhile runs on")
		}
	})
}

func TestStatesAreSentWhenTheAPIComesBack(t *testing.T) {
	in(t, func(w *world) {
		w.create(web)
		w.find("uid-a", "web", prober.Readiness, prober.Passed)
		var away atomic.Bool
		away.Store(true)
		w.client.PrependReactor("*", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
			return away.Load(), nil, errors.New("connection refused")
		})
		w.find("uid-a", "web", prober.Readiness, prober.Failed)
		w.wait(time.Minute)
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Fatal("the API is not away")
		}
		away.Store(false)
		w.wait(time.Second)
		if ready(w.pod("a")) != corev1.ConditionFalse {
			t.Error("a second after the API came back it does not know that the pod is not ready")
		}
	})
}

func TestStatusWrittenByOthersIsPutRight(t *testing.T) {
	in(t, func(w *world) {
		w.create(plain)
		pod := w.pod("a")
		for i := range pod.Status.Conditions {
			if pod.Status.Conditions[i].Type == corev1.PodReady {
				pod.Status.Conditions[i].Status = corev1.ConditionFalse // as the failure detector does
			}
		}
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: "example.com/gate", Status: corev1.ConditionTrue})
		if _, err := w.user.CoreV1().Pods("default").UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		pod = w.pod("a")
		if ready(pod) != corev1.ConditionTrue || condition(pod, "example.com/gate").Status != corev1.ConditionTrue {
			t.Errorf("conditions %+v", pod.Status.Conditions)
		}
	})
}

func TestReadinessGate(t *testing.T) {
	in(t, func(w *world) {
		w.create(`{spec: {readinessGates: [{conditionType: example.com/gate}], containers: [{name: web}]}}`)
		if c := condition(w.pod("a"), corev1.PodReady); c.Status != corev1.ConditionFalse || c.Reason != "ReadinessGatesNotReady" {
			t.Errorf("condition %+v", c)
		}
		pod := w.pod("a")
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: "example.com/gate", Status: corev1.ConditionTrue})
		if _, err := w.user.CoreV1().Pods("default").UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Errorf("conditions %+v", w.pod("a").Status.Conditions)
		}
	})
}

func TestPodsThatCannotStartSayWhy(t *testing.T) {
	for name, test := range map[string]struct {
		spec   string
		set    func(*world)
		reason string // of the waiting container
		event  string
	}{
		"unknown image": {plain, func(w *world) {
			w.specs.errs["web"] = &podspec.Error{Reason: "ErrImagePull", Message: "image nginx is not in the table"}
		}, "ErrImagePull", "ErrImagePull: image nginx is not in the table"},
		"volume": {plain, func(w *world) {
			w.specs.errs[""] = &podspec.Error{Reason: "FailedMount", Message: "no such directory"}
		}, "ContainerCreating", "FailedMount"},
		"no address left":       {plain, func(w *world) { w.network.err = errors.New("pool is empty") }, "ContainerCreating", "FailedCreatePodSandBox pool is empty"},
		"unknown runtime class": {`{spec: {runtimeClassName: kata, containers: [{name: web}]}}`, func(*world) {}, "ContainerCreating", `runtime class "kata" is unknown on this node: set runtimeClassName to external or process`},
		"bad address": {`{metadata: {annotations: {endpointd.io/address: here}}, spec: {runtimeClassName: external, containers: [{name: web}]}}`,
			func(*world) {}, "ContainerCreating", "annotation endpointd.io/address"},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(w *world) {
				test.set(w)
				w.create(test.spec)
				if s := w.status("a", "web"); s.State.Waiting == nil || s.State.Waiting.Reason != test.reason || s.State.Waiting.Message == "" {
					t.Errorf("container %+v", s.State)
				}
				w.saw(test.event)
				if len(w.runtime.pods) > 0 && test.reason != "ErrImagePull" {
					t.Error("half a pod is left")
				}
				// It is tried again, and ends when it is deleted.
				w.network.err = nil
				w.specs.set("", nil)
				w.specs.set("web", nil)
				w.wait(30 * time.Second)
				if started := w.status("a", "web").State.Running != nil; started == (test.event == "annotation endpointd.io/address" || name == "unknown runtime class") {
					t.Errorf("after the cause is gone: started %v", started)
				}
				w.deletePod("a", 1)
				w.wait(5 * time.Second)
				if w.exists("a") {
					t.Error("it cannot be deleted")
				}
			})
		})
	}
}

func TestForbiddenSysctlFailsThePod(t *testing.T) {
	in(t, func(w *world) {
		w.specs.errs[""] = &podspec.Error{Reason: podspec.ReasonSysctl, Message: "kernel.shm_rmid_forced is not allowed"}
		w.create(plain)
		if s := w.pod("a").Status; s.Phase != corev1.PodFailed || s.Reason != "SysctlForbidden" {
			t.Errorf("status %+v", s)
		}
		w.deletePod("a", 30)
		w.wait(time.Second)
		if w.exists("a") {
			t.Error("it does not go")
		}
	})
}

func TestProgramThatCannotBeExecuted(t *testing.T) {
	in(t, func(w *world) {
		w.runtime.errs["web"] = &container.StartError{Reason: "RunContainerError", Code: 127, Err: errors.New(`"sevrer" is in no folder of PATH`)}
		w.create(plain)
		s := w.status("a", "web")
		if s.LastTerminationState.Terminated == nil || s.LastTerminationState.Terminated.ExitCode != 127 || s.LastTerminationState.Terminated.Reason != "StartError" ||
			s.State.Waiting == nil || s.State.Waiting.Reason != "CrashLoopBackOff" {
			t.Errorf("container %+v", s)
		}
		w.saw(`"sevrer" is in no folder of PATH`)
	})
}

func TestPostStartHook(t *testing.T) {
	in(t, func(w *world) {
		var fail atomic.Bool
		w.runtime.inExec = func(context.Context, container.ExecOptions) (int, error) {
			<-time.After(3 * time.Second)
			if fail.Load() {
				return 1, nil
			}
			return 0, nil
		}
		w.create(`{spec: {containers: [{name: web, lifecycle: {postStart: {exec: {command: [prepare]}}}}, {name: next}]}}`)
		if ready(w.pod("a")) != corev1.ConditionFalse {
			t.Error("ready before its hook is over")
		}
		w.wait(4 * time.Second)
		if got, want := w.log.take(), "0s pod a\n0s start web\n0s exec prepare in web\n3s start next"; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		fail.Store(true)
		w.runtime.exit("uid-a", "web", 0, 0)
		w.wait(4 * time.Second)
		w.saw("PostStartHook failed")
		if s := w.status("a", "web"); s.State.Running != nil {
			t.Errorf("runs on after its hook failed: %+v", s)
		}
	})
}

func TestActiveDeadline(t *testing.T) {
	in(t, func(w *world) {
		w.create(`{spec: {activeDeadlineSeconds: 60, terminationGracePeriodSeconds: 5, containers: [{name: web}]}}`)
		w.wait(59 * time.Second)
		if got := w.pod("a").Status.Phase; got != corev1.PodRunning {
			t.Fatalf("phase %s", got)
		}
		w.wait(2 * time.Second)
		if s := w.pod("a").Status; s.Phase != corev1.PodFailed || s.Reason != "DeadlineExceeded" {
			t.Errorf("status %+v", s)
		}
	})
}

func TestExternalPod(t *testing.T) {
	in(t, func(w *world) {
		w.create(`{metadata: {annotations: {endpointd.io/address: 192.0.2.7}}, spec: {runtimeClassName: external, containers: [{name: web, readinessProbe: {tcpSocket: {port: 80}}, livenessProbe: {tcpSocket: {port: 80}}}]}}`)
		w.find("uid-a", "web", prober.Readiness, prober.Passed)
		pod := w.pod("a")
		if pod.Status.PodIP != "192.0.2.7" || ready(pod) != corev1.ConditionTrue {
			t.Fatalf("status %+v", pod.Status)
		}
		w.find("uid-a", "web", prober.Liveness, prober.Failed)
		if s := w.status("a", "web"); ready(w.pod("a")) != corev1.ConditionFalse || s.RestartCount != 0 || s.State.Running == nil {
			t.Errorf("after a failed liveness probe: %+v", s)
		}
		w.find("uid-a", "web", prober.Liveness, prober.Passed)
		pod = w.pod("a")
		pod.Annotations[AddressAnnotation] = "192.0.2.8"
		if _, err := w.user.CoreV1().Pods("default").Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := w.pod("a").Status.PodIP; got != "192.0.2.8" {
			t.Errorf("address %s", got)
		}
		if ready(w.pod("a")) != corev1.ConditionFalse {
			t.Error("ready at an address where it was never seen")
		}
		w.find("uid-a", "web", prober.Readiness, prober.Passed)
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Error("not ready at its new address")
		}
		before := w.pod("a").ResourceVersion
		w.stopAgent()
		w.startAgent()
		if after := w.pod("a"); after.ResourceVersion != before {
			t.Errorf("an agent's restart changed the status: %+v", after.Status)
		}
		if got := w.log.take(); got != "" {
			t.Errorf("something was done: %s", got)
		}
		w.deletePod("a", 30)
		w.wait(time.Second)
		if w.exists("a") {
			t.Error("it does not go")
		}
	})
}

func TestStaticPod(t *testing.T) {
	in(t, func(w *world) {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", UID: "static", Annotations: map[string]string{sourceAnnotation: sourceFile}}}
		pod.Spec.Containers = []corev1.Container{{Name: "web", ReadinessProbe: &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(80)}},
		}}}
		w.agent.SetStatic([]*corev1.Pod{pod})
		synctest.Wait()
		if got, want := w.log.take(), "0s pod a\n0s start web"; got != want {
			t.Errorf("without a mirror: %s", got)
		}
		mirror := pod.DeepCopy()
		mirror.UID, mirror.Annotations["kubernetes.io/config.mirror"] = "mirror", "hash"
		if _, err := w.user.CoreV1().Pods("default").Create(t.Context(), mirror, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.mirrors["static"] = "default/a"
		w.agent.MirrorChanged("static")
		w.find("static", "web", prober.Readiness, prober.Passed)
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Errorf("mirror %+v", w.pod("a").Status)
		}
		// Somebody deletes the mirror while its status is being written; another one comes.
		w.stale = w.pod("a")
		w.deletePod("a", 0)
		w.find("static", "web", prober.Readiness, prober.Failed)
		w.stale = nil
		mirror.UID = "mirror-2"
		if _, err := w.user.CoreV1().Pods("default").Create(t.Context(), mirror, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.agent.MirrorChanged("static")
		w.find("static", "web", prober.Readiness, prober.Passed)
		if ready(w.pod("a")) != corev1.ConditionTrue {
			t.Errorf("the mirror's successor: %+v", w.pod("a").Status)
		}

		before := w.pod("a").ResourceVersion
		w.stopAgent()
		w.log.take()
		w.startAgent()
		w.agent.SetStatic([]*corev1.Pod{pod})
		w.wait(time.Second)
		if after := w.pod("a"); after.ResourceVersion != before {
			t.Errorf("an agent's restart changed the mirror's status: %+v", after.Status.Conditions)
		}
		if got := w.log.take(); got != "0s adopt 10.244.1.1" {
			t.Errorf("after an agent's restart: %s", got)
		}
		w.agent.SetStatic(nil)
		w.wait(time.Second)
		if w.runtime.pods["static"] != nil || !w.exists("a") {
			t.Errorf("left of the pod: %v; its mirror: %v", w.runtime.pods["static"], w.exists("a"))
		}
	})
}

func TestPodIsLookedUpWithItsNewestStatus(t *testing.T) {
	in(t, func(w *world) {
		w.create(plain)
		pod, ok := w.agent.Lookup("default", "a")
		if !ok || pod.Status.PodIP != "10.244.1.1" {
			t.Errorf("got %v %+v", ok, pod)
		}
		w.deletePod("a", 0)
		w.wait(time.Second)
		if _, ok := w.agent.Lookup("default", "a"); ok || len(w.agent.Pods()) > 0 {
			t.Error("it is still there")
		}
	})
}
