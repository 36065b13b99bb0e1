package nftables

import (
	"testing"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/dptest"
)

func TestMain(m *testing.M) { dptest.Main(m, false) }

func TestSuite(t *testing.T) {
	dptest.Run(t, dptest.Options{New: func(*dptest.World) ([]dataplane.Proxier, error) {
		p, err := New(Options{})
		return []dataplane.Proxier{p}, err
	}})
}
