package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func lifeScenarios() []nodeScenario {
	return []nodeScenario{
		{"init containers and sidecars", lifeInit},
		{"restart policies", lifeRestart},
		{"back-off", lifeBackOff},
		{"deadline", lifeDeadline},
	}
}

// Init containers one after the other, the sidecar before the main container, and after it at the end.
func lifeInit(n *nodes) {
	dir := n.TempDir()
	const note = `volumeMounts: [{name: d, mountPath: /d}]`
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {terminationGracePeriodSeconds: 5, initContainers: [
{name: one, image: endpointd/echo, command: [bash, -c, 'sleep 0.2; echo one >>/d/notes'], ` + note + `},
{name: side, image: endpointd/echo, restartPolicy: Always, command: [bash, -c, 'trap "echo side ends >>/d/notes; exit" TERM; echo side >>/d/notes; touch /d/up; while :; do sleep 0.02; done'],
 startupProbe: {exec: {command: [test, -e, /d/up]}, periodSeconds: 1}, ` + note + `},
{name: two, image: endpointd/echo, command: [bash, -c, 'echo two >>/d/notes'], ` + note + `}],
containers: [{name: main, image: endpointd/echo, command: [bash, -c, 'trap "echo main ends >>/d/notes; exit" TERM; echo main >>/d/notes; while :; do sleep 0.02; done'], ` + note + `}],
volumes: [{name: d, hostPath: {path: ` + dir + `}}]}}`)
	pod := n.awaitPod("p", patience, isReady)
	for _, s := range pod.Status.InitContainerStatuses {
		if !s.Ready || s.RestartCount != 0 || (s.Name == "side") != (s.State.Running != nil) {
			n.Errorf("%s", briefly(pod))
		}
	}
	n.has(n.run("get", "pod", "p"), "2/2 Running")
	n.run("delete", "pod", "p")
	text, err := os.ReadFile(filepath.Join(dir, "notes"))
	check(n.T, err)
	if got := strings.Split(strings.TrimSpace(string(text)), "\n"); !slices.Equal(got, []string{"one", "side", "two", "main", "main ends", "side ends"}) {
		n.Errorf("order: %q", got)
	}
}

func lifeRestart(n *nodes) {
	pod := func(name, policy, script string) string {
		return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {restartPolicy: %s, containers: [{name: c, image: endpointd/echo, command: [bash, -c, '%s'], volumeMounts: [{name: d, mountPath: /d}]}], volumes: [{name: d, emptyDir: {}}]}}
---
`, name, policy, script)
	}
	n.apply(pod("good", "Never", "exit 0") + pod("bad", "Never", "echo last words >/dev/termination-log; exit 4") +
		pod("second", "OnFailure", "[ -e /d/was ] && exit 0; touch /d/was; exit 1") + pod("always", "Always", "[ -e /d/was ] && exec sleep 1000; touch /d/was; exit 0"))
	n.awaitPod("good", patience, phaseIs(corev1.PodSucceeded))
	bad := n.awaitPod("bad", patience, phaseIs(corev1.PodFailed))
	if s := bad.Status.ContainerStatuses[0]; s.State.Terminated == nil || s.State.Terminated.ExitCode != 4 || s.State.Terminated.Message != "last words\n" || s.RestartCount != 0 {
		n.Errorf("%s", briefly(bad))
	}
	second := n.awaitPod("second", patience, phaseIs(corev1.PodSucceeded))
	if second.Status.ContainerStatuses[0].RestartCount != 1 {
		n.Errorf("%s", briefly(second))
	}
	n.awaitPod("always", patience, restarted(1))
	n.has(n.run("get", "pods"), "good 0/1 Completed 0", "bad 0/1 Error 0", "second 0/1 Completed 1", "always 1/1 Running 1")
}

// The first restart is at once, the next one after ten seconds; what is waited for is said.
func lifeBackOff(n *nodes) {
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: endpointd/echo, command: [bash, -c, 'echo broken; exit 1']}]}}`)
	pod := n.awaitPod("p", patience, func(p *corev1.Pod) error {
		if s := p.Status.ContainerStatuses; len(s) == 0 || s[0].State.Waiting == nil || s[0].State.Waiting.Reason != "CrashLoopBackOff" {
			return fmt.Errorf("no back-off")
		}
		return nil
	})
	s := pod.Status.ContainerStatuses[0]
	if s.RestartCount != 1 || !strings.Contains(s.State.Waiting.Message, "back-off 10s restarting failed container=c pod=p_") || s.LastTerminationState.Terminated.ExitCode != 1 {
		n.Errorf("%s", briefly(pod))
	}
	n.has(n.run("get", "pod", "p"), "0/1 CrashLoopBackOff 1")
	n.has(n.run("describe", "pod", "p"), "Reason: CrashLoopBackOff", "Exit Code: 1", "BackOff", "Back-off restarting failed container c")
	n.has(n.run("logs", "p"), "broken")
	ended := s.LastTerminationState.Terminated.FinishedAt
	var again time.Time
	n.awaitPod("p", patience, func(p *corev1.Pod) error {
		s := p.Status.ContainerStatuses[0]
		switch {
		case s.RestartCount < 2:
			return fmt.Errorf("not started again")
		case s.State.Running != nil:
			again = s.State.Running.StartedAt.Time
		default:
			again = s.LastTerminationState.Terminated.StartedAt.Time
		}
		return nil
	})
	if pause := again.Sub(ended.Time); pause < 9*time.Second || pause > 12*time.Second { // the API's times are whole seconds
		n.Errorf("started again after %v, want 10 s", pause)
	}
}

func lifeDeadline(n *nodes) {
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {activeDeadlineSeconds: 1, terminationGracePeriodSeconds: 1, restartPolicy: Never, containers: [{name: c, image: endpointd/echo}]}}`)
	pod := n.awaitPod("p", patience, phaseIs(corev1.PodFailed))
	if pod.Status.Reason != "DeadlineExceeded" {
		n.Errorf("%s", briefly(pod))
	}
	n.awaitEvent("p", "DeadlineExceeded", "")
}
