package e2e

import (
	"fmt"
	"syscall"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/testkit"
)

func externalScenarios() []nodeScenario {
	return []nodeScenario{
		{"comes and goes", externalListener},
		{"without an address", externalNode},
	}
}

// workload runs an echo server in the outer network, as something that is no pod. It returns what ends it.
func (n *nodes) workload(address string) (stop func()) {
	n.Helper()
	cmd := n.u.Command(n.u.ExecArgs("", testkit.Binary(n.T), "endpointd-echo", "--http="+address, "--tcp=none", "--udp=none")...)
	check(n.T, cmd.Start())
	ended := false
	stop = func() {
		if !ended {
			ended = true
			_ = cmd.Process.Signal(syscall.SIGTERM) // then it is gone already
			_ = cmd.Wait()                          // it was told to end
		}
	}
	n.Cleanup(stop)
	return stop
}

// Readiness follows a workload that endpointd did not start, wherever it is said to be.
func externalListener(n *nodes) {
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: vm, labels: {app: vm}, annotations: {endpointd.io/address: 10.200.0.1}}, spec: {runtimeClassName: external,
containers: [{name: db, image: anything/at-all, ports: [{name: http, containerPort: 18101}], readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1, failureThreshold: 1}}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: vm}, spec: {selector: {app: vm}, ports: [{port: 80, targetPort: http}]}}`)
	events := n.watchSlices("vm")
	n.awaitPod("vm", patience, func(p *corev1.Pod) error {
		if p.Status.PodIP != "10.200.0.1" {
			return fmt.Errorf("address %q", p.Status.PodIP)
		}
		return isUnready(p)
	})
	n.awaitEvent("vm", "Unhealthy", "connection refused")
	stop := n.workload("10.200.0.1:18101")
	n.awaitSlice(events, "10.200.0.1:18101")
	n.has(n.run("get", "pod", "vm", "-o", "wide"), "vm 1/1 Running 0", "10.200.0.1")
	stop()
	n.awaitSlice(events, "")
	n.awaitPod("vm", patience, isUnready)
	again := n.workload("10.200.0.1:18101")
	n.awaitSlice(events, "10.200.0.1:18101")

	// It moves. The node's own address is one that is there, too.
	moved := n.workload("0.0.0.0:18102")
	n.run("annotate", "pod", "vm", "--overwrite", "endpointd.io/address=10.200.0.99")
	n.awaitPod("vm", patience, func(p *corev1.Pod) error {
		if p.Status.PodIP != "10.200.0.99" {
			return fmt.Errorf("address %q", p.Status.PodIP)
		}
		return isUnready(p)
	})
	n.run("annotate", "pod", "vm", "--overwrite", "endpointd.io/address=10.200.0.1")
	n.awaitSlice(events, "10.200.0.1:18101")
	again()
	moved()
	n.has(n.refused("exec", "vm", "--", "true"), "runs elsewhere")
	n.run("delete", "pod", "vm", "--timeout=10s")
	n.awaitSlice(events, "")
}

// Without an address it is the node's.
func externalNode(n *nodes) {
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: vm}, spec: {nodeName: node-2, runtimeClassName: external, containers: [{name: db, image: x}]}}`)
	pod := n.awaitPod("vm", patience, isReady)
	if pod.Status.PodIP != "10.200.0.12" {
		n.Errorf("address %q", pod.Status.PodIP)
	}
	n.has(n.run("get", "pod", "vm", "-o", "jsonpath={.status.containerStatuses[0].containerID}"), "external://"+string(pod.UID)+"/db")
	n.run("delete", "pod", "vm", "--timeout=10s")
}
