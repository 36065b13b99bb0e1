package dptest

import (
	"testing"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/nftables"
)

func TestX(t *testing.T) {
	Run(t, Options{New: func(*World) ([]dataplane.Proxier, error) {
		p, err := nftables.New(nftables.Options{})
		return []dataplane.Proxier{p}, err
	}})
}
