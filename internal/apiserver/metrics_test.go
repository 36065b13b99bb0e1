package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/metrics/pkg/apis/metrics/v1beta1"
	metricsclient "k8s.io/metrics/pkg/client/clientset/versioned"

	"github.com/endpointd/endpointd/internal/apiserver/pki"
)

// usageOf is what a fake agent answers at /stats/summary: the node and each container use so many millicores, since a start an
// hour ago.
type usageOf struct {
	node int                       // millicores
	pods map[string]map[string]int // namespace/name → container → millicores
}

func (u usageOf) summary(began time.Time) statsapi.Summary {
	now := time.Now()
	cpu := func(millicores int) *statsapi.CPUStats {
		used := uint64(now.Sub(began)) / 1000 * uint64(millicores)
		return &statsapi.CPUStats{Time: metav1.NewTime(now), UsageCoreNanoSeconds: &used}
	}
	memory := uint64(64 << 20)
	stats := &statsapi.MemoryStats{WorkingSetBytes: &memory}
	s := statsapi.Summary{Node: statsapi.NodeStats{CPU: cpu(u.node), Memory: stats}}
	for pod, containers := range u.pods {
		namespace, name, _ := strings.Cut(pod, "/")
		p := statsapi.PodStats{PodRef: statsapi.PodReference{Namespace: namespace, Name: name}}
		for container, millicores := range containers {
			p.Containers = append(p.Containers, statsapi.ContainerStats{Name: container, StartTime: metav1.NewTime(began), CPU: cpu(millicores), Memory: stats})
		}
		s.Pods = append(s.Pods, p)
	}
	return s
}

// usingNode is a node whose agent tells usage; asked counts requests.
func usingNode(t *testing.T, name string, u usageOf) (asked *atomic.Int32) {
	t.Helper()
	asked = &atomic.Int32{}
	began := time.Now().Add(-time.Hour).Truncate(time.Second)
	agentOf(t, name, "127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if peer := r.TLS.PeerCertificates; r.URL.Path != "/stats/summary" || len(peer) == 0 || peer[0].Subject.CommonName != pki.NodeClientName {
			http.Error(w, "who, and what?", http.StatusForbidden)
			return
		}
		if err := json.NewEncoder(w).Encode(u.summary(began)); err != nil {
			t.Error(err)
		}
	})
	labelNode(t, name)
	return asked
}

func labelNode(t *testing.T, name string) {
	t.Helper()
	if _, err := shared.client(t).CoreV1().Nodes().Patch(t.Context(), name, types.MergePatchType, []byte(`{"metadata":{"labels":{"test":"metrics"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// near allows for what a busy machine puts between the two looks, which are 200 ms apart.
func near(millicores int64, want int) bool {
	return millicores > int64(want)/4 && millicores < int64(want)*4
}

// TestMetrics has two agents that tell their usage, one that fails and one that never answers.
func TestMetrics(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	namespace(t, "metrics")
	asked := usingNode(t, "metrics-1", usageOf{500, map[string]map[string]int{"metrics/busy": {"b": 300, "a": 100}, "metrics/ended": {"c": 100}, "other/busy": {"c": 900}}})
	usingNode(t, "metrics-2", usageOf{50, map[string]map[string]int{"metrics/idle": {"c": 10}}})
	agentOf(t, "metrics-3", "127.0.0.1", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "broken", http.StatusInternalServerError) })
	labelNode(t, "metrics-3")
	agentOf(t, "metrics-4", "127.0.0.1", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	labelNode(t, "metrics-4")
	for name, node := range map[string]string{"busy": "metrics-1", "idle": "metrics-2", "ended": "metrics-1", "unknown": "metrics-1", "lost": "metrics-3", "waiting": ""} {
		createPod(t, boundPod("metrics", name, node))
	}
	if _, err := shared.client(t).CoreV1().Pods("metrics").Patch(ctx, "ended", types.MergePatchType, []byte(`{"status":{"phase":"Succeeded"}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	client := metricsclient.NewForConfigOrDie(shared.admin()).MetricsV1beta1()

	t.Run("nodes", func(t *testing.T) {
		list, err := client.NodeMetricses().List(ctx, metav1.ListOptions{LabelSelector: "test=metrics"})
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Items) != 2 || list.Items[0].Name != "metrics-1" || list.Items[1].Name != "metrics-2" {
			t.Fatalf("%+v", list.Items)
		}
		n := list.Items[0]
		if !near(n.Usage.Cpu().MilliValue(), 500) || n.Usage.Memory().String() != "64Mi" || n.Labels["test"] != "metrics" || n.Window.Duration <= 0 || time.Since(n.Timestamp.Time) > time.Minute {
			t.Errorf("%+v", n)
		}
	})
	t.Run("pods", func(t *testing.T) {
		list, err := client.PodMetricses("metrics").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Items) != 2 || list.Items[0].Name != "busy" || list.Items[1].Name != "idle" {
			t.Fatalf("%+v", list.Items)
		}
		busy := list.Items[0].Containers
		if len(busy) != 2 || busy[0].Name != "a" || !near(busy[0].Usage.Cpu().MilliValue(), 100) {
			t.Fatalf("%+v", busy)
		}
		if ratio := busy[1].Usage.Cpu().AsApproximateFloat64() / busy[0].Usage.Cpu().AsApproximateFloat64(); ratio < 2.9 || ratio > 3.1 { // of one look
			t.Errorf("300 m and 100 m: ratio %v", ratio)
		}
	})
	t.Run("selectors", func(t *testing.T) {
		for _, o := range []metav1.ListOptions{{LabelSelector: "app=idle"}, {FieldSelector: "metadata.name=idle"}} {
			list, err := client.PodMetricses("").List(ctx, o)
			if err != nil || len(list.Items) == 0 || slices.ContainsFunc(list.Items, func(p v1beta1.PodMetrics) bool { return p.Name != "idle" }) {
				t.Errorf("%+v: %v %v", o, list, err)
			}
		}
	})
	t.Run("get", func(t *testing.T) {
		if pod, err := client.PodMetricses("metrics").Get(ctx, "idle", metav1.GetOptions{}); err != nil || pod.Namespace != "metrics" || len(pod.Containers) != 1 || pod.Labels["app"] != "idle" {
			t.Errorf("%+v %v", pod, err)
		}
		if node, err := client.NodeMetricses().Get(ctx, "metrics-2", metav1.GetOptions{}); err != nil || node.Usage.Memory().IsZero() {
			t.Errorf("%+v %v", node, err)
		}
		for _, name := range []string{"ended", "unknown", "lost", "waiting", "none"} {
			if _, err := client.PodMetricses("metrics").Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), `pods.metrics.k8s.io "`+name+`"`) {
				t.Errorf("pod %s: %v", name, err)
			}
		}
		for _, name := range []string{"metrics-3", "none"} {
			if _, err := client.NodeMetricses().Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), `nodes.metrics.k8s.io "`+name+`"`) {
				t.Errorf("node %s: %v", name, err)
			}
		}
	})
	t.Run("table", func(t *testing.T) { metricsTable(t) })
	if n := asked.Load(); n < 2 || n > 20 {
		t.Errorf("a node was asked %d times", n)
	}
}

func metricsTable(t *testing.T) {
	for path, want := range map[string]string{
		"/apis/metrics.k8s.io/v1beta1/namespaces/metrics/pods":      "busy",
		"/apis/metrics.k8s.io/v1beta1/namespaces/metrics/pods/busy": "busy",
		"/apis/metrics.k8s.io/v1beta1/nodes/metrics-1":              "metrics-1",
	} {
		raw, err := shared.client(t).RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		var table metav1.Table
		if err := json.Unmarshal(raw, &table); err != nil {
			t.Fatal(err)
		}
		var columns []string
		for _, c := range table.ColumnDefinitions {
			columns = append(columns, c.Name)
		}
		if strings.Join(columns, " ") != "Name cpu memory Window" || len(table.Rows) == 0 || fmt.Sprint(table.Rows[0].Cells[0]) != want || len(table.Rows[0].Cells) != 4 {
			t.Errorf("%s: %s", path, raw)
		}
		if want == "busy" && fmt.Sprint(table.Rows[0].Cells[2]) != "128Mi" {
			t.Errorf("a pod's containers are not summed up: %s", raw)
		}
	}
}

// The group is in both forms of discovery and in the documents, and nothing of it can be written or watched.
func TestMetricsDiscovery(t *testing.T) {
	t.Parallel()
	client := shared.client(t)
	raw, err := client.RESTClient().Get().AbsPath("/apis").DoRaw(t.Context())
	if err != nil || !strings.Contains(string(raw), `"metrics.k8s.io/v1beta1"`) {
		t.Errorf("GET /apis: %s %v", raw, err)
	}
	list, err := client.Discovery().ServerResourcesForGroupVersion("metrics.k8s.io/v1beta1")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range list.APIResources {
		got = append(got, fmt.Sprintf("%s %s %v %v", r.Name, r.Kind, r.Namespaced, r.Verbs))
	}
	slices.Sort(got)
	if want := []string{"nodes NodeMetrics false [get list]", "pods PodMetrics true [get list]"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	for _, path := range []string{"/openapi/v2", "/openapi/v3/apis/metrics.k8s.io/v1beta1"} {
		raw, err := client.RESTClient().Get().AbsPath(path).DoRaw(t.Context())
		if err != nil || !strings.Contains(string(raw), "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// The role that who may view pods has through aggregation, which is a controller's work: what pods use, in the namespace concerned.
func TestMetricsRights(t *testing.T) {
	t.Parallel()
	namespace(t, "metrics-rights")
	_, err := shared.client(t).RbacV1().RoleBindings("metrics-rights").Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "v"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: metricsReader().Name},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: "vera"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := shared.admin()
	config.Impersonate.UserName = "vera"
	client := metricsclient.NewForConfigOrDie(config).MetricsV1beta1()
	eventually(t, "the right to see what pods use", func(ctx context.Context) (bool, error) {
		_, err := client.PodMetricses("metrics-rights").List(ctx, metav1.ListOptions{})
		return err == nil, nil
	})
	if _, err := client.PodMetricses(corev1.NamespaceDefault).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("another namespace: %v", err)
	}
	if _, err := client.NodeMetricses().List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("nodes: %v", err)
	}
}
