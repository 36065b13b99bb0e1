package dataplane

import (
	"errors"
	"fmt"
)

// ErrNotSupported is what an [UnsupportedError] is.
var ErrNotSupported = errors.New("not supported")

// An UnsupportedError says what this machine lacks for a Proxier.
type UnsupportedError struct {
	Feature   string // e.g. "cgroup/connect4 programs"
	MinKernel string // the first version that has it, e.g. "5.13"; "" if it is no question of the kernel's version
	Why       error  // what the kernel said; may be nil
}

func (e *UnsupportedError) Error() string {
	text := e.Feature + " " + ErrNotSupported.Error()
	if e.MinKernel != "" {
		text += " (Linux " + e.MinKernel + " and later have it)"
	}
	if e.Why != nil {
		text += fmt.Sprintf(": %v", e.Why)
	}
	return text
}

// Is makes it ErrNotSupported.
func (e *UnsupportedError) Is(target error) bool { return target == ErrNotSupported }

func (e *UnsupportedError) Unwrap() error { return e.Why }
