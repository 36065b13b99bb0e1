package server

import (
	"fmt"
	"os"
	"testing"

	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) {
	if batch := os.Getenv(benchServer); batch != "" {
		if err := serveBenchmark(batch); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv(foreignSocket) != "" {
		if err := sendForeign(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	testkit.Main(m)
}
