package logs

import (
	"errors"
	"io"
	"math"
	"time"
)

// errLimit ends a reading whose LimitBytes were written.
var errLimit = errors.New("the limit of bytes is reached")

// printer turns entries into lines of output.
type printer struct {
	w          io.Writer
	stream     Stream // "" = both
	since      time.Time
	timestamps bool
	left       int64 // bytes that may still be written
	skip       int64 // lines that are left out first

	lines map[Stream]*pending
}

// pending is a line whose end is not yet there.
type pending struct {
	buf   []byte
	begun bool // a piece of it was seen
	old   bool // it is from before since
}

func newPrinter(w io.Writer, o Options, skip int64) *printer {
	p := &printer{
		w: w, stream: o.Stream, since: o.Since, timestamps: o.Timestamps, left: math.MaxInt64, skip: skip,
		lines: map[Stream]*pending{Stdout: {}, Stderr: {}},
	}
	if o.LimitBytes != nil {
		p.left = *o.LimitBytes
	}
	return p
}

// line takes a line of the file. One that is no entry is left out.
func (p *printer) line(raw []byte) error {
	e, ok := parse(raw)
	if !ok || p.stream != "" && e.stream != p.stream {
		return nil
	}
	l := p.lines[e.stream]
	if !l.begun {
		l.begun = true
		l.old = e.at.Before(p.since)
		if p.timestamps {
			l.buf = append(append(l.buf, e.stamp...), ' ')
		}
	}
	l.buf = append(l.buf, e.text...)
	if e.partial {
		if len(l.buf) < maxLine {
			return nil
		}
		return p.write(l) // too long to be held back; the rest follows
	}
	l.buf = append(l.buf, '\n')
	err := p.write(l)
	if p.skip > 0 {
		p.skip--
	}
	l.begun = false
	return err
}

// end writes what has no end yet.
func (p *printer) end() error {
	for _, stream := range []Stream{Stdout, Stderr} {
		if err := p.write(p.lines[stream]); err != nil {
			return err
		}
	}
	return nil
}

func (p *printer) write(l *pending) error {
	out := l.buf
	l.buf = l.buf[:0]
	if cap(l.buf) > 1<<16 {
		l.buf = nil
	}
	if p.skip > 0 || l.old || len(out) == 0 {
		return nil
	}
	full := int64(len(out)) >= p.left
	if full {
		out = out[:p.left]
	}
	p.left -= int64(len(out))
	if _, err := p.w.Write(out); err != nil {
		return err
	}
	if full {
		return errLimit
	}
	return nil
}
