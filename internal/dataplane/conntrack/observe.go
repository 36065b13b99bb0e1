package conntrack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// errInterrupted: the table changed so much while it was read that the kernel may have left some of it out.
var errInterrupted = errors.New("the dump was interrupted")

// observe asks the kernel, and calls found with each flow that it has. The flow is good until found returns. An error of found ends it,
// as does one of a message that cannot be read.
func (s *socket) observe(q question, found func(*flow) error) error {
	s.seq++
	s.sent = q.dump(s.sent[:0], s.seq)
	if err := s.send(s.sent); err != nil {
		return err
	}
	var failed error // does not end it: the kernel takes no other request before it has sent all
	var f flow
	for {
		b, err := s.receive()
		if err != nil {
			return errors.Join(failed, err)
		}
		done := false
		for r, err := range replies(b) {
			if err != nil {
				return errors.Join(failed, err)
			}
			if r.seq != s.seq {
				continue
			}
			if r.flags&unix.NLM_F_DUMP_INTR != 0 && failed == nil {
				failed = errInterrupted
			}
			switch {
			case r.kind == unix.NLMSG_DONE, r.kind == unix.NLMSG_ERROR:
				done = true
				failed = errors.Join(failed, r.errno())
			case failed == nil && r.kind == unix.NFNL_SUBSYS_CTNETLINK<<8|ctNew:
				if err := decode(r.body, &f); err != nil {
					failed = fmt.Errorf("entry of the kernel: %w", err)
				} else {
					failed = found(&f)
				}
			}
		}
		if done {
			return failed
		}
	}
}
