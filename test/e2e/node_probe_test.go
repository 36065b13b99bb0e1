package e2e

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func probeScenarios() []nodeScenario {
	return []nodeScenario{
		{"readiness", probeReadiness},
		{"liveness", probeLiveness},
		{"startup", probeStartup},
		{"exec", probeExec},
		{"grpc", probeGRPC},
		{"tcp", probeTCP},
		{"gate", probeGate},
	}
}

// probed is a pod of one echo server with more in its container.
func probed(name, container string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {app: %[1]s}}, spec: {terminationGracePeriodSeconds: 1,
containers: [{name: c, image: endpointd/echo, ports: [{name: http, containerPort: 8080}], %s}], volumes: [{name: box, emptyDir: {}}]}}`, name, container)
}

// A pod that says that it is not ready leaves the slice, and comes back.
func probeReadiness(n *nodes) {
	n.apply(threeEchoes)
	pods := n.awaitPods("app=echo", 3)
	events := n.watchSlices("echo")
	n.awaitSlice(events, leadTo(8080, pods...))
	n.control(&pods[0], "ready=false")
	began := time.Now()
	n.awaitSlice(events, leadTo(8080, pods[1:]...))
	if took := time.Since(began); took > 2*time.Second {
		n.Errorf("not ready after %v; it is asked each second", took)
	}
	n.has(n.run("get", "pod", pods[0].Name), "0/1 Running 0")
	n.awaitEvent(pods[0].Name, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")
	before := n.pod(pods[0].Name)
	n.control(&pods[0], "ready=true")
	n.awaitSlice(events, leadTo(8080, pods...))
	n.awaitEvent(pods[0].Name, "Healthy", "Readiness probe succeeded again")
	after := n.awaitPod(pods[0].Name, patience, isReady)
	for i, c := range after.Status.Conditions {
		was := before.Status.Conditions[i]
		if c.Type == corev1.PodReady && !was.LastTransitionTime.Before(&c.LastTransitionTime) && c.LastTransitionTime.Time.Before(began.Truncate(time.Second)) {
			n.Errorf("Ready changed, its time did not: %v", c.LastTransitionTime)
		}
	}
}

// A container that is not healthy is started again, in its place.
func probeLiveness(n *nodes) {
	n.apply(probed("p", `livenessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1, failureThreshold: 2}`))
	pod := n.awaitPod("p", patience, isReady)
	n.control(pod, "healthy=false")
	again := n.awaitPod("p", patience, restarted(1))
	if again.Status.PodIP != pod.Status.PodIP {
		n.Errorf("address %s, before %s", again.Status.PodIP, pod.Status.PodIP)
	}
	n.awaitEvent("p", "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 503")
	n.awaitEvent("p", "Killing", "Container c failed liveness probe, will be restarted")
}

func restarted(count int32) func(*corev1.Pod) error {
	return func(p *corev1.Pod) error {
		if s := p.Status.ContainerStatuses; len(s) == 0 || s[0].RestartCount != count {
			return fmt.Errorf("want %d restarts", count)
		}
		return isReady(p)
	}
}

// Until the startup probe has succeeded the container is not started, and the others are not asked; one that never does is killed.
func probeStartup(n *nodes) {
	n.apply(probed("slow", `env: [{name: ECHO_START_DELAY, value: 2s}], startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 30},
livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 1}, readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}`))
	n.apply(probed("never", `startupProbe: {tcpSocket: {port: 9999}, periodSeconds: 1, failureThreshold: 2}`))
	n.awaitPod("slow", patience, func(p *corev1.Pod) error {
		if err := phaseIs("Running")(p); err != nil {
			return err
		}
		if s := p.Status.ContainerStatuses[0]; s.Started == nil || *s.Started || s.Ready {
			n.Fatalf("before the startup probe: %s", briefly(p))
		}
		return nil
	})
	pod := n.awaitPod("slow", patience, isReady)
	if s := pod.Status.ContainerStatuses[0]; !*s.Started || s.RestartCount != 0 {
		n.Errorf("%s", briefly(pod))
	}
	n.awaitEvent("slow", "Unhealthy", "Startup probe failed")
	n.awaitEvent("never", "Killing", "Container c failed startup probe, will be restarted")
}

func probeExec(n *nodes) {
	n.apply(probed("p", `volumeMounts: [{name: box, mountPath: /box}], readinessProbe: {exec: {command: [sh, -c, 'echo looking; test -e /box/ready']}, periodSeconds: 1, failureThreshold: 1}`))
	n.awaitEvent("p", "Unhealthy", "Readiness probe failed: looking")
	n.awaitPod("p", patience, isUnready)
	n.run("exec", "p", "--", "touch", "/box/ready")
	n.awaitPod("p", patience, isReady)
	n.run("exec", "p", "--", "rm", "/box/ready")
	n.awaitPod("p", patience, isUnready)
}

func probeGRPC(n *nodes) {
	n.apply(probed("p", `readinessProbe: {grpc: {port: 8080, service: readiness}, periodSeconds: 1, failureThreshold: 1}`))
	pod := n.awaitPod("p", patience, isReady)
	n.control(pod, "ready=false")
	n.awaitPod("p", patience, isUnready)
	n.awaitEvent("p", "Unhealthy", "Readiness probe failed: service unhealthy (responded with \"NOT_SERVING\")")
	n.control(pod, "ready=true")
	n.awaitPod("p", patience, isReady)
}

func probeTCP(n *nodes) {
	n.apply(probed("open", `readinessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1}`))
	n.apply(probed("closed", `readinessProbe: {tcpSocket: {port: 8082}, periodSeconds: 1}`))
	n.awaitPod("open", patience, isReady)
	n.awaitEvent("closed", "Unhealthy", "connection refused")
	n.awaitPod("closed", patience, isUnready)
}

// A readiness gate is somebody else's condition.
func probeGate(n *nodes) {
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {app: p}}, spec: {readinessGates: [{conditionType: example.com/registered}], containers: [{name: c, image: endpointd/echo}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: p}, spec: {selector: {app: p}, ports: [{port: 80, targetPort: 8080}]}}`)
	pod := n.awaitPod("p", patience, func(p *corev1.Pod) error { return hasCondition(p, corev1.ContainersReady, corev1.ConditionTrue) })
	check(n.T, isUnready(pod))
	n.has(n.run("get", "pod", "p", "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].reason}"), "ReadinessGatesNotReady")
	n.awaitReady("p", endpointsManager, "")
	gate := func(status string) {
		n.run("patch", "pod", "p", "--subresource=status", "-p", `{"status":{"conditions":[{"type":"example.com/registered","status":"`+status+`"}]}}`)
	}
	gate("True")
	n.awaitPod("p", patience, isReady)
	n.awaitReady("p", endpointsManager, leadTo(8080, *pod))
	gate("False")
	n.awaitPod("p", patience, isUnready)
	n.awaitReady("p", endpointsManager, "")
}
