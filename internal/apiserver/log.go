package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"k8s.io/klog/v2"
)

// RouteKlog sends what the upstream libraries log to log: warnings and errors, whatever level log itself has, for
// klog's info messages are written for people who debug upstream. klog is process-wide, so the last call wins; [New]
// does it with its Logger.
func RouteKlog(log *slog.Logger) {
	klog.SetSlogLogger(slog.New(upstreamLog{log.Handler()}).With("component", "kubernetes"))
}

// noise is what upstream logs as an error although nothing is wrong and nobody has to do anything. It has no types to
// tell these by; each is a part of the message or of its error.
func noise() []string {
	return []string{
		// A client ended its watch or gave up a request.
		"http2: stream closed", "client disconnected", "Handler timeout", "Post-timeout activity",
		// A controller was faster than its informer and tries again.
		"is not as new as written version", "not allocated; repairing",
	}
}

// upstreamLog lets warnings and errors pass, and turns noise into debug.
type upstreamLog struct{ slog.Handler }

func (h upstreamLog) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && h.Handler.Enabled(ctx, l)
}

func (h upstreamLog) Handle(ctx context.Context, r slog.Record) error {
	if isNoise(r) {
		if r.Level = slog.LevelDebug; !h.Handler.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return h.Handler.Handle(ctx, r)
}

func isNoise(r slog.Record) bool {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "err" {
			text += "\n" + fmt.Sprint(a.Value)
		}
		return true
	})
	for _, part := range noise() {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}

func (h upstreamLog) WithAttrs(a []slog.Attr) slog.Handler {
	return upstreamLog{h.Handler.WithAttrs(a)}
}
func (h upstreamLog) WithGroup(n string) slog.Handler { return upstreamLog{h.Handler.WithGroup(n)} }
