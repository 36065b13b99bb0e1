package stream

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// Usage is what was used of CPU and memory.
type Usage struct {
	At         time.Time
	Since      time.Time     // what is counted began
	CPU        time.Duration // processor time since then
	NanoCores  uint64        // thousand-millionths of a core in use now
	WorkingSet uint64        // bytes of memory that cannot be had back, as cgroup's current minus inactive_file
}

// Stats are what /stats/summary tells.
type Stats struct {
	Node      string
	NodeUsage Usage
	Pods      []PodStats
}

// PodStats are those of one pod.
type PodStats struct {
	Namespace, Name, UID string
	Usage                Usage
	Containers           map[string]Usage // name → usage
}

// pods answers with all pods of the node.
func (s *Server) pods(w http.ResponseWriter, r *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	for _, pod := range s.o.Pods.List() {
		list.Items = append(list.Items, *pod)
	}
	s.writeJSON(r.Context(), w, list)
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	if s.o.Healthy != nil {
		if err := s.o.Healthy(); err != nil {
			writeError(w, http.StatusInternalServerError, "%s", err)
			return
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok")) // a client that has left needs no answer
}

// summary answers with the part of the kubelet's summary that metrics are made of.
func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	stats, err := s.o.Stats(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.writeJSON(r.Context(), w, summaryOf(stats))
}

func summaryOf(stats Stats) statsapi.Summary {
	out := statsapi.Summary{Pods: []statsapi.PodStats{}}
	out.Node.NodeName = stats.Node
	out.Node.StartTime = metav1.NewTime(stats.NodeUsage.Since)
	out.Node.CPU, out.Node.Memory = cpuMemory(stats.NodeUsage)
	for _, pod := range stats.Pods {
		p := statsapi.PodStats{
			PodRef:     statsapi.PodReference{Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID},
			StartTime:  metav1.NewTime(pod.Usage.Since),
			Containers: []statsapi.ContainerStats{},
		}
		p.CPU, p.Memory = cpuMemory(pod.Usage)
		for name, usage := range pod.Containers {
			c := statsapi.ContainerStats{Name: name, StartTime: metav1.NewTime(usage.Since)}
			c.CPU, c.Memory = cpuMemory(usage)
			p.Containers = append(p.Containers, c)
		}
		out.Pods = append(out.Pods, p)
	}
	return out
}

func cpuMemory(u Usage) (*statsapi.CPUStats, *statsapi.MemoryStats) {
	at := metav1.NewTime(u.At)
	total := uint64(max(u.CPU, 0))
	return &statsapi.CPUStats{Time: at, UsageNanoCores: &u.NanoCores, UsageCoreNanoSeconds: &total},
		&statsapi.MemoryStats{Time: at, WorkingSetBytes: &u.WorkingSet}
}

func (s *Server) writeJSON(ctx context.Context, w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		s.o.Logger.DebugContext(ctx, "a client did not wait for its answer", "err", err)
	}
}
