package nftables

import (
	"testing"

	"github.com/endpointd/endpointd/internal/testkit"
)

func TestShape(t *testing.T) {
	testkit.Golden(t, "shape.golden", []byte(staticShape(true).String()))
}

func BenchmarkShape(b *testing.B) {
	for b.Loop() {
		staticShape(true)
	}
}
