package app

import (
	"context"
	"log/slog"
	"sync/atomic"
)

// hush is a handler that turns everything into debug once stopping is set: the upstream libraries report each request that
// a stop interrupts as an error.
type hush struct {
	slog.Handler
	stopping *atomic.Bool
}

// Handle is part of slog.Handler.
func (h hush) Handle(ctx context.Context, r slog.Record) error {
	if h.stopping.Load() {
		r.Level = slog.LevelDebug
		if !h.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs is part of slog.Handler.
func (h hush) WithAttrs(a []slog.Attr) slog.Handler {
	return hush{h.Handler.WithAttrs(a), h.stopping}
}

// WithGroup is part of slog.Handler.
func (h hush) WithGroup(name string) slog.Handler {
	return hush{h.Handler.WithGroup(name), h.stopping}
}
