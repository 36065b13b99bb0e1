package top

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/metrics/pkg/apis/metrics"
)

// ConvertToTable is what `kubectl get nodes.metrics.k8s.io` prints, with the columns of metrics-server.
func (n *nodes) ConvertToTable(_ context.Context, object, _ runtime.Object) (*metav1.Table, error) {
	table := newTable(object)
	rows := func(m *metrics.NodeMetrics) { addRow(table, m, m.Name, m.Usage, m.Window) }
	switch o := object.(type) {
	case *metrics.NodeMetrics:
		rows(o)
	case *metrics.NodeMetricsList:
		for i := range o.Items {
			rows(&o.Items[i])
		}
	}
	return table, nil
}

// ConvertToTable is what `kubectl get pods.metrics.k8s.io` prints: a pod's containers together.
func (p *pods) ConvertToTable(_ context.Context, object, _ runtime.Object) (*metav1.Table, error) {
	table := newTable(object)
	rows := func(m *metrics.PodMetrics) {
		sum := corev1.ResourceList{}
		for _, c := range m.Containers {
			for name, quantity := range c.Usage {
				total := sum[name]
				total.Add(quantity)
				sum[name] = total
			}
		}
		addRow(table, m, m.Name, sum, m.Window)
	}
	switch o := object.(type) {
	case *metrics.PodMetrics:
		rows(o)
	case *metrics.PodMetricsList:
		for i := range o.Items {
			rows(&o.Items[i])
		}
	}
	return table, nil
}

func newTable(object runtime.Object) *metav1.Table {
	table := &metav1.Table{Rows: []metav1.TableRow{}, ColumnDefinitions: []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: "Name of the resource"},
		{Name: "cpu", Type: "string", Format: "quantity", Description: "CPU in use, in cores"},
		{Name: "memory", Type: "string", Format: "quantity", Description: "Working set of memory, in bytes"},
		{Name: "Window", Type: "string", Format: "duration", Description: "Time over which CPU use was averaged"},
	}}
	if list, err := meta.ListAccessor(object); err == nil {
		table.ResourceVersion, table.Continue = list.GetResourceVersion(), list.GetContinue()
	}
	return table
}

func addRow(table *metav1.Table, object runtime.Object, name string, used corev1.ResourceList, window metav1.Duration) {
	table.Rows = append(table.Rows, metav1.TableRow{
		Cells:  []any{name, used.Cpu().String(), used.Memory().String(), window.Duration.String()},
		Object: runtime.RawExtension{Object: object},
	})
}
