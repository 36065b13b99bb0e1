package e2e

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const stateful = `{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}}
---
{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: web}, spec: {serviceName: web, replicas: 2, selector: {matchLabels: {app: web}},
template: {metadata: {labels: {app: web}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: endpointd/echo}]}}}}`

// A pod of a StatefulSet has a name of its own, which leads to it wherever it is.
func namesStateful(n *nodes) {
	n.apply(stateful)
	n.awaitPods("app=web", 2)
	was := n.pod("web-0")
	full := ".web." + n.name + ".svc.cluster.local"
	for _, name := range []string{"web-0.web", "web-0.web." + n.name, "web-0" + full} {
		n.resolves("", "web-1", name, was.Status.PodIP)
	}
	n.resolves("", "web-0", "web-1.web", n.pod("web-1").Status.PodIP)
	n.await(func(context.Context) error { return says(n.run("exec", "web-0", "--", "hostname", "-f"), "web-0"+full) })

	n.run("delete", "pod", "web-0")
	n.await(func(context.Context) error { // between the two there is none
		if pods := n.list("app=web"); len(pods) != 2 || pods[0].UID == was.UID || pods[1].UID == was.UID {
			return fmt.Errorf("web-0 is not made anew: %d pods", len(pods))
		}
		return nil
	})
	now := n.awaitPod("web-0", patience, isReady)
	if now.Status.PodIP == was.Status.PodIP {
		n.Errorf("web-0 has the address %s again, so that this shows nothing", now.Status.PodIP)
	}
	n.resolves("", "web-1", "web-0.web", now.Status.PodIP)
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		n.resolves(node, "", "web-0"+full, now.Status.PodIP)
	}
	n.run("scale", "statefulset", "web", "--replicas=1")
	n.resolves("", "web-0", "web-1.web", "NXDOMAIN")
}

// patient is a headless Service with or without publishNotReadyAddresses, and unready a pod that is ready when the test says so.
const (
	patient = `{apiVersion: v1, kind: Service, metadata: {name: NAME}, spec: {clusterIP: None, publishNotReadyAddresses: PUBLISH, selector: {app: unready}, ports: [{port: 8080}]}}
---
`
	unready = `{apiVersion: v1, kind: Pod, metadata: {name: pod, labels: {app: unready}}, spec: {hostname: me, subdomain: early, readinessGates: [{conditionType: example.com/turn}],
containers: [{name: c, image: endpointd/echo}]}}`
)

// A pod that is not ready has a name only if its Service says so, as peers that must find each other before they are ready need.
func namesUnready(n *nodes) {
	for name, publish := range map[string]string{"early": "true", "late": "false"} {
		n.apply(strings.NewReplacer("NAME", name, "PUBLISH", publish).Replace(patient))
	}
	n.apply(unready)
	addr := n.awaitPod("pod", patience, hasAddress).Status.PodIP
	for _, node := range []string{"node-1", "node-2"} {
		for name, want := range map[string]string{"early": addr, "me.early": addr, "late": "NXDOMAIN", "me.late": "NXDOMAIN"} {
			n.resolves(node, "", name+"."+n.name+".svc.cluster.local", want)
		}
	}
	n.turn("pod", true)
	for _, node := range []string{"node-1", "node-2"} {
		n.resolves(node, "", "late."+n.name+".svc.cluster.local", addr)
		n.resolves(node, "", "me.late."+n.name+".svc.cluster.local", "NXDOMAIN") // its subdomain is another Service
	}
}

func hasAddress(pod *corev1.Pod) error {
	if pod.Status.PodIP == "" {
		return fmt.Errorf("pod %s has no address", pod.Name)
	}
	return nil
}
