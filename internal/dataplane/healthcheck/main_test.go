package healthcheck

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/endpointd/endpointd/internal/testkit"
)

// TestMain runs the tests in a network namespace of their own, where every port is free.
func TestMain(m *testing.M) {
	if testkit.Inside() {
		if err := loopback(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	testkit.MainInside(m, syscall.CLONE_NEWNET)
}

func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}
