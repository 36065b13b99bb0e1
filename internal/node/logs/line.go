package logs

import (
	"bytes"
	"time"
)

// Stream is one of the two outputs of a container.
type Stream string

// The streams, as the log names them.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// maxLine is how many bytes of a line are kept in memory. The kubelet's own entries have at most 16 KiB.
const maxLine = 1 << 20

// entry is one line of the file: a line of output, or a piece of one.
type entry struct {
	stamp   []byte // the time as it was written
	at      time.Time
	stream  Stream
	partial bool   // more of the same line follows in the next entry of this stream
	text    []byte // without the newline
}

// parse reads `<RFC 3339 time> stdout|stderr F|P[:tag…] <text>`, the format of the CRI's container logs
// (k8s.io/cri-api, LogConfig). The entry refers to line.
func parse(line []byte) (entry, bool) {
	stamp, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return entry{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return entry{}, false
	}
	name, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return entry{}, false
	}
	e := entry{stamp: stamp, at: at}
	switch string(name) {
	case string(Stdout):
		e.stream = Stdout
	case string(Stderr):
		e.stream = Stderr
	default:
		return entry{}, false
	}
	// An empty line may have been written without the space before its text.
	tags, text, _ := bytes.Cut(rest, []byte{' '})
	first, _, _ := bytes.Cut(tags, []byte{':'})
	switch string(first) {
	case "F":
	case "P":
		e.partial = true
	default:
		return entry{}, false
	}
	e.text = text
	return e, true
}

// splitter cuts bytes into lines.
type splitter struct {
	rest []byte // the beginning of a line whose end was not yet seen
	lost bool   // rest is full: what follows of this line is left out
}

// feed calls line for every line that b completes, without its newline.
func (s *splitter) feed(b []byte, line func([]byte) error) error {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			s.keep(b)
			return nil
		}
		whole := b[:i]
		if len(s.rest) > 0 {
			s.keep(whole)
			whole = s.rest
		}
		err := line(whole)
		s.reset()
		if err != nil {
			return err
		}
		b = b[i+1:]
	}
	return nil
}

// flush calls line for what was left without a newline.
func (s *splitter) flush(line func([]byte) error) error {
	defer s.reset()
	if len(s.rest) == 0 {
		return nil
	}
	return line(s.rest)
}

func (s *splitter) keep(b []byte) {
	if s.lost {
		return
	}
	if free := maxLine - len(s.rest); len(b) > free {
		b, s.lost = b[:free], true
	}
	s.rest = append(s.rest, b...)
}

func (s *splitter) reset() {
	if cap(s.rest) > 1<<16 {
		s.rest = nil // a line of this length is rare: do not hold its memory while following
	}
	s.rest, s.lost = s.rest[:0], false
}
