package process_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/testkit"
)

// awaitOutput waits until a container has written something.
func awaitOutput(t *testing.T, r container.Runtime, c container.Container, want string) {
	t.Helper()
	testkit.Await(t, patience, func() error {
		if _, err := os.Stat(r.LogFile(c.Pod, c.Name, c.Attempt)); err != nil {
			return err
		}
		if got := output(t, r, c); !strings.Contains(got, want) {
			return fmt.Errorf("output is %q, want %q in it", got, want)
		}
		return nil
	})
}
