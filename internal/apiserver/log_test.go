package apiserver

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"
)

func TestUpstreamLog(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		log  func(*slog.Logger)
		want bool
	}{
		{"information", func(l *slog.Logger) { l.Info("Starting controller") }, false},
		{"a warning", func(l *slog.Logger) { l.Warn("disk is slow") }, true},
		{"an error", func(l *slog.Logger) { l.Error("Unhandled Error", "err", errors.New("no such thing")) }, true},
		{"a watch that its client ended", func(l *slog.Logger) {
			l.Error("Failed to encode watch event", "err", errors.New("http2: stream closed"))
		}, false},
		{"a controller ahead of its informer", func(l *slog.Logger) {
			l.Error("Unhandled Error", "err", errors.New(`sync "default/web" failed with read version: 46 is not as new as written version: 59`))
		}, false},
		{"the same words in another attribute", func(l *slog.Logger) { l.Error("create pod", "name", "http2: stream closed") }, true},
	}
	for _, tc := range tests {
		var out bytes.Buffer
		tc.log(slog.New(upstreamLog{slog.NewTextHandler(&out, nil)}))
		if got := out.Len() > 0; got != tc.want {
			t.Errorf("%s: logged %v, want %v: %s", tc.name, got, tc.want, out.String())
		}
	}
	var out bytes.Buffer
	slog.New(upstreamLog{slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})}).Error("Handler timeout")
	if !bytes.Contains(out.Bytes(), []byte("level=DEBUG")) {
		t.Errorf("noise on debug: %q", out.String())
	}
}
