package prober

import (
	"context"
	"fmt"
)

// Exec succeeds if the command that run executes in the container exits with 0. The output of one that does not is the
// message. If run fails, the result is unknown, unless it ran out of time: that is a failure.
func Exec(run func(ctx context.Context) (code int, output string, err error)) Probe {
	return func(ctx context.Context) error {
		code, output, err := run(ctx)
		switch {
		case timedOut(ctx) && (err != nil || code != 0):
			if err == nil {
				err = ctx.Err()
			}
			return &Failure{fmt.Sprintf("command timed out: %v", err)}
		case err != nil:
			return &Unknown{err}
		case code != 0:
			return &Failure{output[:min(len(output), maxOutput)]}
		}
		return nil
	}
}
