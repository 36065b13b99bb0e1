// Package stream is the HTTPS API of a node, on port 10250, as kube-apiserver, kubectl and Prometheus expect it of a
// kubelet: logs, exec, attach, port-forward, the list of pods, health, metrics and a summary of what is used.
//
// In: requests with a client certificate; pods and their states through [Pods]; the containers' streams through
// [Runtime]. Out: bytes to and from containers. Nothing is kept here.
//
// Streams are SPDY or WebSocket, by the upstream library k8s.io/cri-streaming. kube-apiserver 1.37 turns its clients'
// WebSockets (v5.channel.k8s.io, SPDY/3.1+portforward.k8s.io) into SPDY before it calls a node that does not declare the
// feature ExtendWebSocketsToKubelet; this package understands them also, as does a kubelet with that feature.
//
// Invariants: nobody gets in without a certificate of the cluster's CA and the right to nodes/proxy (or the finer
// nodes/log, nodes/metrics… of KEP-2862); other nodes, which have none of these, reach only what package peers answers. A client that leaves takes its command, and its connections into the pod, with
// it. Serve returns when all that was begun has ended. A connection into a pod is made by a thread that is thrown away.
//
// What it refuses: the machine's own logs (/logs), debug and checkpoint endpoints, plain HTTP, anonymous clients.
//
// How to test: go test -race ./internal/node/stream, with a fake runtime and client-go's own executors and port-forwarder
// over TLS on loopback. The test of network namespaces needs user namespaces and skips without.
package stream
