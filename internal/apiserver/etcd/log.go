package etcd

import (
	"context"
	"log/slog"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newZap gives etcd the logger that it insists on. Its Fatal and Panic end in f. While serving is false everything is debug:
// etcd warns at every start of what a single member can't have, and calls every closed listener an error.
func newZap(l *slog.Logger, f *failure, serving *atomic.Bool) *zap.Logger {
	return zap.New(&core{log: l.With("component", "etcd"), serving: serving}, zap.WithFatalHook(f), zap.WithPanicHook(f))
}

// core writes zap entries to slog.
type core struct {
	log     *slog.Logger
	serving *atomic.Bool
}

// level: what etcd calls info is its start-up diary and is debug here. Nothing above error exists: those entries become
// the error of Server.Err and would otherwise be said twice, as would what bbolt says before it returns an error.
func (c *core) level(logger string, l zapcore.Level) slog.Level {
	switch {
	case l <= zapcore.InfoLevel || !c.serving.Load() || logger == "bbolt":
		return slog.LevelDebug
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	default:
		return slog.LevelError
	}
}

// Enabled is part of zapcore.Core.
func (c *core) Enabled(l zapcore.Level) bool {
	return l <= zapcore.ErrorLevel && c.log.Enabled(context.Background(), c.level("", l))
}

// With is part of zapcore.Core.
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{log: c.log.With(args(fields)...), serving: c.serving}
}

// Check is part of zapcore.Core.
func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if e.Level <= zapcore.ErrorLevel && c.log.Enabled(context.Background(), c.level(e.LoggerName, e.Level)) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write is part of zapcore.Core.
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.log.Log(context.Background(), c.level(e.LoggerName, e.Level), e.Message, args(fields)...) //nolint:sloglint // the message is etcd's
	return nil
}

// Sync is part of zapcore.Core.
func (c *core) Sync() error { return nil }

// args names an error "err", like every other part of the program.
func args(fields []zapcore.Field) []any {
	out := make([]any, 0, len(fields))
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			out = append(out, slog.String("err", err.Error()))
			continue
		}
		enc := zapcore.NewMapObjectEncoder()
		f.AddTo(enc)
		for k, v := range enc.Fields {
			out = append(out, slog.Any(k, v))
		}
	}
	return out
}
