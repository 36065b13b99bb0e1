package rivals

import (
	"runtime"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { dptest.Main(m, true) }

// place is a network namespace with nothing in it.
type place struct {
	t  *testing.T
	ns netns.NsHandle
}

func newPlace(t *testing.T) *place {
	t.Helper()
	testkit.Need(t, testkit.Net())
	p := &place{t: t}
	thread(t, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		p.ns, err = netns.Get()
		return err
	})
	t.Cleanup(func() { _ = p.ns.Close() })
	return p
}

// do runs f in the place.
func (p *place) do(f func() error) {
	p.t.Helper()
	thread(p.t, func() error {
		if err := netns.Set(p.ns); err != nil {
			return err
		}
		return f()
	})
}

// thread runs f on a thread that ends with it.
func thread(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
