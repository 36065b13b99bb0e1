package apiserver

import (
	"context"
	"log/slog"

	"k8s.io/klog/v2"
)

// routeKlog sends what the upstream libraries log to log: warnings and errors, whatever level log itself has, for
// klog's info messages are written for people who debug upstream. klog is process-wide, so the last server wins.
func routeKlog(log *slog.Logger) {
	klog.SetSlogLogger(slog.New(atLeastWarn{log.Handler()}).With("component", "kubernetes"))
}

type atLeastWarn struct{ slog.Handler }

func (h atLeastWarn) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && h.Handler.Enabled(ctx, l)
}

func (h atLeastWarn) WithAttrs(a []slog.Attr) slog.Handler {
	return atLeastWarn{h.Handler.WithAttrs(a)}
}
func (h atLeastWarn) WithGroup(n string) slog.Handler { return atLeastWarn{h.Handler.WithGroup(n)} }
