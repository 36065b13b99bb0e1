package apiserver

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestUpstreamLog(t *testing.T) {
	t.Parallel()
	const stale = `sync "default/web" failed with read version: 46 is not as new as written version: 59`
	tests := []struct {
		name  string
		level slog.Level
		text  string
		attr  slog.Attr
		want  slog.Level // of the line; none below warning
	}{
		{"information", slog.LevelInfo, "Starting controller", slog.Attr{}, slog.LevelInfo},
		{"a warning", slog.LevelWarn, "disk is slow", slog.Attr{}, slog.LevelWarn},
		{"an error", slog.LevelError, "Unhandled Error", slog.Any("err", errors.New("no such thing")), slog.LevelError},
		{"a watch that its client ended", slog.LevelError, "Failed to encode watch event", slog.Any("err", errors.New("http2: stream closed")), slog.LevelDebug},
		{"a request that its client gave up", slog.LevelError, "Handler timeout", slog.Attr{}, slog.LevelDebug},
		{"a controller ahead of its informer", slog.LevelError, "Unhandled Error", slog.Any("err", errors.New(stale)), slog.LevelDebug},
		{"the same words in another attribute", slog.LevelError, "create pod", slog.String("name", "Handler timeout"), slog.LevelError},
	}
	for _, tc := range tests {
		for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo} {
			var out bytes.Buffer
			h := upstreamLog{slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level})}
			r := slog.NewRecord(time.Time{}, tc.level, tc.text, 0)
			r.AddAttrs(tc.attr)
			if h.Enabled(context.Background(), r.Level) {
				if err := h.Handle(context.Background(), r); err != nil {
					t.Fatal(err)
				}
			}
			want := ""
			if tc.level >= slog.LevelWarn && tc.want >= level {
				want = "level=" + tc.want.String()
			}
			if got := out.String(); !strings.Contains(got, want) || want == "" && got != "" {
				t.Errorf("%s, logging from %s on: %q, want %q", tc.name, level, got, want)
			}
		}
	}
}
