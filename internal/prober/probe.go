package prober

import (
	"context"
	"errors"
)

// userAgent is how HTTP and gRPC probes introduce themselves, as the kubelet of the version we follow.
const userAgent = "kube-probe/1.37"

// maxOutput is how much of a body or of a command's output is read, in bytes; the kubelet's number.
const maxOutput = 10 << 10

// A Probe checks a container once. It returns nil for success, a [*Warning] for success with a remark, an [*Unknown] if
// it could not be made and says nothing about the container; any other error, usually a [*Failure], is a failure.
// It ends when ctx does, and may be called concurrently.
type Probe func(ctx context.Context) error

// Failure says how a probe failed, in the kubelet's words.
type Failure struct{ Message string }

func (f *Failure) Error() string { return f.Message }

// Warning says why a probe that succeeded deserves a look.
type Warning struct{ Message string }

func (w *Warning) Error() string { return w.Message }

// Unknown says why a probe could not be made. The verdict on the container stays what it was.
type Unknown struct{ Err error }

func (u *Unknown) Error() string { return u.Err.Error() }
func (u *Unknown) Unwrap() error { return u.Err }

// timedOut says whether ctx ended because its time was over, not because nobody is interested any more.
func timedOut(ctx context.Context) bool { return errors.Is(ctx.Err(), context.DeadlineExceeded) }
