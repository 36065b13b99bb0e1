package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/endpointd/endpointd/internal/testkit"
)

// burners are a pod on each node that uses some of a core in one of its containers, and one that uses nothing.
func burners(nodes ...string) string {
	var pods []string
	for _, node := range nodes {
		for name, script := range map[string]string{"busy": "while :; do i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; sleep 0.02; done", "idle": "exec sleep 1000"} {
			pods = append(pods, fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %[1]s-%[2]s, labels: {kind: %[1]s}}, spec: {nodeName: %[2]s, terminationGracePeriodSeconds: 0, containers: [
{name: main, image: endpointd/echo, command: [sh, -c, %[3]q]}, {name: side, image: endpointd/echo, command: [sleep, "1000"]}]}}`, name, node, script))
		}
	}
	return strings.Join(pods, "\n---\n")
}

// TestTop is `kubectl top` on two nodes, one of which freezes.
func TestTop(t *testing.T) {
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 2})
	c := clusterOf(t, u.Server())
	s := c.space(t, c.kubectls[0])
	s.apply(burners("node-1", "node-2"))
	s.run("wait", "--for=condition=Ready", "pods", "--all", "--timeout=20s")
	for _, k := range c.kubectls {
		t.Run(k.Name, func(t *testing.T) { topBoth(t, &space{t, c, k.In(t), s.name}) })
	}
	testkit.Await(t, patience, func() error { // the role is made of others by a controller
		if groups := s.run("get", "clusterrole", "view", "-o", "jsonpath={.rules[*].apiGroups[*]}"); !strings.Contains(groups, "metrics.k8s.io") {
			return errors.New("who may view pods may not see what they use: " + groups)
		}
		return nil
	})

	u.Signal("node-2", syscall.SIGSTOP)
	defer u.Signal("node-2", syscall.SIGCONT)
	testkit.Await(t, patience, func() error { // what it said a moment before is given for a second
		if table := s.run("top", "pods", "--no-headers"); strings.Contains(table, "-node-2 ") || !strings.Contains(table, "busy-node-1 ") {
			return fmt.Errorf("pods of a frozen node, or none of the other:\n%s", table)
		}
		return nil
	})
	table := s.run("top", "nodes")
	s.has(table, "node-1")
	if row := s.row(table, "node-2"); row[1] != "<unknown>" {
		t.Errorf("a frozen node uses %q", row)
	}
}

func topBoth(t *testing.T, s *space) {
	nodes := s.run("top", "nodes")
	s.has(nodes, "NAME CPU(cores) CPU(%) MEMORY(bytes) MEMORY(%)")
	for _, name := range []string{"node-1", "node-2"} {
		if row := s.row(nodes, name); len(row) != 5 || amount(t, row[1], "m") < 20 || amount(t, row[2], "%") < 1 || amount(t, row[3], "Mi") < 50 || amount(t, row[4], "%") < 1 {
			t.Errorf("row %q", row)
		}
	}

	containers := s.run("top", "pods", "--containers")
	s.has(containers, "POD NAME CPU(cores) MEMORY(bytes)")
	use := map[string]int{} // pod and container → millicores
	for _, row := range regexp.MustCompile(`(?m)^(\S+) +(\S+) +(\S+) +(\S+) *$`).FindAllStringSubmatch(containers, -1) {
		if row[1] != "POD" {
			use[row[1]+" "+row[2]] = amount(t, row[3], "m")
			if memory := amount(t, row[4], "Mi"); memory > 64 {
				t.Errorf("memory of a shell: %s", row[0])
			}
		}
	}
	if len(use) != 8 {
		t.Errorf("%d containers, want 8:\n%s", len(use), containers)
	}
	for _, node := range []string{"node-1", "node-2"} {
		busy := use["busy-"+node+" main"]
		for _, idle := range []string{"busy-" + node + " side", "idle-" + node + " main"} {
			if busy < 30 || use[idle] > busy/5 {
				t.Errorf("busy: %d m, %s: %d m", busy, idle, use[idle])
			}
		}
	}
	if sorted := s.run("top", "pods", "--sort-by=cpu", "--no-headers"); !strings.HasPrefix(sorted, "busy-") {
		t.Errorf("sorted by CPU:\n%s", sorted)
	}
	if some := s.run("top", "pods", "-l", "kind=idle", "--no-headers"); strings.Count(some, "\n") != 2 || strings.Contains(some, "busy") {
		t.Errorf("with a label:\n%s", some)
	}
	s.has(s.run("top", "pod", "busy-node-1", "--no-headers"), "busy-node-1")
	s.has(s.run("top", "node", "node-2", "--no-headers"), "node-2")
	s.has(s.run("get", "pods.metrics.k8s.io"), "NAME CPU MEMORY WINDOW", "idle-node-2")
	s.has(s.refused("top", "pod", "nobody"), "not found")
}

// amount reads a number with its unit.
func amount(t *testing.T, text, unit string) int {
	t.Helper()
	digits, ok := strings.CutSuffix(text, unit)
	n, err := strconv.Atoi(digits)
	if !ok || err != nil {
		t.Errorf("%q is no number of %s", text, unit)
	}
	return n
}
