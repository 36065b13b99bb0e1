package app

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestLastLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for text, want := range map[string]string{
		"endpointd: one\nendpointd: two: do that\n": "two: do that",
		"": "",
		strings.Repeat("long ", 2000) + "\nlevel=ERROR msg=x\n":          "level=ERROR msg=x",
		"endpointd: first\n" + strings.Repeat("\n", 5000) + "last\n\n\n": "last",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastLine(path); got != want {
			t.Errorf("%.30q: %q, want %q", text, got, want)
		}
	}
	if got := lastLine(path + "none"); !strings.Contains(got, "no such file") {
		t.Errorf("without a file: %q", got)
	}
}

// What a node said in an earlier run is not taken for its word in this one.
func TestReadySince(t *testing.T) {
	began := time.Now()
	node := func(status corev1.ConditionStatus, heartbeat time.Time) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse},
			{Type: corev1.NodeReady, Status: status, LastHeartbeatTime: metav1.NewTime(heartbeat.Truncate(time.Second))},
		}}}
	}
	for _, test := range []struct {
		name string
		node *corev1.Node
		want bool
	}{
		{"now", node(corev1.ConditionTrue, began), true},
		{"not ready", node(corev1.ConditionFalse, began), false},
		{"unknown", node(corev1.ConditionUnknown, began), false},
		{"of an earlier run", node(corev1.ConditionTrue, began.Add(-time.Minute)), false},
		{"new", &corev1.Node{}, false},
	} {
		if got := readySince(test.node, began); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}
