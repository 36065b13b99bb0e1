package e2e

import (
	"testing"

	"github.com/endpointd/endpointd/internal/testkit"
)

// nodeScenario is a test of pods. Each has a namespace of its own on a sandbox that all share.
type nodeScenario struct {
	name string
	run  func(*nodes)
}

// TestNode is one `endpointd up --nodes 3` for everything that breaks neither a node nor the server.
func TestNode(t *testing.T) {
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 3, Args: []string{"--images", imageTable(t)}})
	c := clusterOf(t, u.Server())
	for _, group := range []struct {
		name      string
		scenarios []nodeScenario
	}{
		{"basic", basicScenarios()},
		{"crash", podCrashScenarios()},
		{"probe", probeScenarios()},
		{"end", endScenarios()},
		{"life", lifeScenarios()},
		{"spec", specScenarios()},
		{"volume", volumeScenarios()},
		{"external", externalScenarios()},
	} {
		for _, s := range group.scenarios {
			t.Run(group.name+"/"+s.name, func(t *testing.T) {
				t.Parallel()
				s.run(nodesOf(t, c, u))
			})
		}
	}
}
