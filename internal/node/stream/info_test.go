package stream

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

func TestPodsOfTheNode(t *testing.T) {
	r := newRig(t, nil)
	_, text := do(t, r.admin, http.MethodGet, "/pods")
	var list corev1.PodList
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	if list.Kind != "PodList" || list.APIVersion != "v1" || len(list.Items) != 1 || list.Items[0].Name != "web" {
		t.Errorf("got %s", text)
	}
}

func TestHealth(t *testing.T) {
	r := newRig(t, nil)
	if code, text := do(t, r.admin, http.MethodGet, "/healthz"); code != http.StatusOK || text != "ok" {
		t.Errorf("got %d %q", code, text)
	}
	r = newRig(t, func(o *Options) { o.Healthy = func() error { return errors.New("the pod loop is stuck") } })
	if code, text := do(t, r.admin, http.MethodGet, "/healthz"); code != http.StatusInternalServerError || text != "the pod loop is stuck" {
		t.Errorf("got %d %q", code, text)
	}
	for _, path := range []string{"/metrics", "/stats/summary", "/logs/", "/debug/pprof/", "/"} {
		if code, _ := do(t, r.admin, http.MethodGet, path); code != http.StatusNotFound {
			t.Errorf("%s: got %d", path, code)
		}
	}
}

func TestSummary(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	usage := func(n uint64) Usage {
		return Usage{At: now, Since: now.Add(-time.Hour), CPU: time.Duration(n) * time.Second, NanoCores: n, WorkingSet: n << 20}
	}
	r := newRig(t, func(o *Options) {
		o.Stats = func(context.Context) (Stats, error) {
			return Stats{Node: "node-1", NodeUsage: usage(9), Pods: []PodStats{{
				Namespace: "default", Name: "web", UID: "uid-web", Usage: usage(3), Containers: map[string]Usage{"app": usage(2)},
			}}}, nil
		}
	})
	_, text := do(t, r.admin, http.MethodGet, "/stats/summary")
	var got statsapi.Summary
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if got.Node.NodeName != "node-1" || *got.Node.CPU.UsageCoreNanoSeconds != 9e9 || *got.Node.Memory.WorkingSetBytes != 9<<20 || len(got.Pods) != 1 {
		t.Fatalf("got %s", text)
	}
	pod := got.Pods[0]
	if pod.PodRef.Name != "web" || *pod.CPU.UsageNanoCores != 3 || len(pod.Containers) != 1 ||
		pod.Containers[0].Name != "app" || *pod.Containers[0].Memory.WorkingSetBytes != 2<<20 || !pod.CPU.Time.Time.Equal(now) {
		t.Errorf("got %s", text)
	}
}
