package server

import (
	"context"
	"time"

	"github.com/endpointd/endpointd/internal/dns/forward"
	"github.com/endpointd/endpointd/internal/dns/wire"
)

// Forward makes a [Forwarder] of the real one.
func Forward(f *forward.Forwarder) Forwarder { return forwarder{f} }

type forwarder struct{ f *forward.Forwarder }

func (f forwarder) Lookup(q *wire.Query, now time.Time) (Answer, bool) {
	a, ok := f.f.Lookup(q, now)
	if !ok {
		return nil, false
	}
	return a, true
}

func (f forwarder) Resolve(ctx context.Context, q *wire.Query) (Answer, error) {
	a, err := f.f.Resolve(ctx, q)
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f forwarder) IsLoopProbe(name []byte) bool { return f.f.IsLoopProbe(name) }
