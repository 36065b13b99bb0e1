package dataplane

import (
	"context"

	"github.com/endpointd/endpointd/internal/model"
)

// A Proxier is one mechanism of the kernel. Its methods are called by one goroutine at a time.
type Proxier interface {
	// Sync makes the kernel do what s says; when it returns nil, every new connection follows s. It costs in proportion to what differs from the
	// Snapshot of the last Sync that succeeded. The first Sync takes over what an earlier run left in the kernel, and there is no moment in
	// which a Service that was served before and is served after does not work. After an error the kernel does what it did before or what s
	// says, for each Service, and the next Sync repairs the rest. A second Sync of the same Snapshot writes nothing.
	Sync(ctx context.Context, s *model.Snapshot) error
	// Verify compares the kernel with the Snapshot of the last Sync, and puts right what others changed or deleted. It says whether there was
	// anything. If nothing changed in the kernel since, it costs next to nothing.
	Verify(ctx context.Context) (repaired bool, err error)
	// Close lets go of file descriptors. The kernel forwards on.
	Close() error
	// Remove takes everything of this Proxier out of the kernel, as for an uninstall. Only Close may follow.
	Remove(ctx context.Context) error
}
