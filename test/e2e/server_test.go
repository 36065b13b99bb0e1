package e2e

import (
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/testkit"
)

// a scenario runs in a namespace of its own, beside others on the same server.
type scenario struct {
	name string
	run  func(*space)
}

// TestServer is everything that one server can show to many users at once.
func TestServer(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testkit.ServerOptions{Args: []string{"--service-cidr", "10.96.0.0/16,fd00:96::/112"}})
	c.kubectls[0].Run("apply", "-f", played(t, "nodes.yaml"))
	for _, group := range []struct {
		name      string
		scenarios []scenario
		kubectls  []testkit.Kubectl
	}{
		{"seed", seedScenarios(), c.kubectls},
		{"rule", ruleScenarios(), c.kubectls[:1]}, // what is tested is the controllers; one kubectl is enough
		{"kubectl", kubectlScenarios(), c.kubectls},
		{"bad", badScenarios(), c.kubectls},
		{"access", accessScenarios(), c.kubectls},
	} {
		for _, scenario := range group.scenarios {
			for _, kubectl := range group.kubectls {
				t.Run(group.name+"/"+scenario.name+"/"+strings.TrimSuffix(kubectl.Name, " kubectl"), func(t *testing.T) {
					t.Parallel()
					scenario.run(c.space(t, kubectl))
				})
			}
		}
	}
}
