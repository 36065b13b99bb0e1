package ebpf

import (
	"testing"

	"github.com/endpointd/endpointd/internal/dataplane/dptest"
)

func TestMain(m *testing.M) { dptest.Main(m, true) }
