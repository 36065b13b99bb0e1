package logs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"unicode/utf8"
)

const (
	// backBlock is how much is read at a time from the end of a file.
	backBlock = 32 << 10
	// chainWindow is how far before the last lines the first pieces of one of them are looked for, where the other
	// stream's lines lie in between.
	chainWindow = 256 << 10
)

// backward gives the lines of a file from its last to its first.
type backward struct {
	f    *os.File
	pos  int64  // where buf begins in the file
	buf  []byte // read, and not yet given
	done bool   // the first line was given
}

func newBackward(f *os.File) (*backward, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &backward{f: f, pos: info.Size()}, nil
}

// line returns the next line and where it begins, io.EOF before the first. The first call gives what follows the
// last newline, maybe nothing. Of a line longer than maxLine the end is missing. The bytes are good until the next call.
func (b *backward) line() (start int64, line []byte, err error) {
	unseen := len(b.buf) // no newline is known to be in buf[unseen:]
	for {
		if i := bytes.LastIndexByte(b.buf[:unseen], '\n'); i >= 0 {
			line = b.buf[i+1:]
			b.buf = b.buf[:i]
			return b.pos + int64(i) + 1, line, nil
		}
		if b.pos == 0 {
			if b.done {
				return 0, nil, io.EOF
			}
			b.done = true
			line, b.buf = b.buf, nil
			return 0, line, nil
		}
		n := min(backBlock, b.pos)
		kept := b.buf
		if len(kept) > maxLine {
			kept = kept[:maxLine]
		}
		block := make([]byte, n, int(n)+len(kept))
		if _, err := b.f.ReadAt(block, b.pos-n); err != nil {
			return 0, nil, err
		}
		b.buf, b.pos, unseen = append(block, kept...), b.pos-n, int(n)
	}
}

// tailSearch finds where the last lines begin. A line is where its last piece is.
type tailSearch struct {
	want   int64
	stream Stream // "" = both

	count   int64           // lines found
	skip    int64           // lines between the place that was found and the first that is wanted
	cut     bool            // all wanted lines were found: what comes now are the pieces of them, and older lines
	window  int64           // bytes visited since cut
	seen    map[Stream]bool // streams with an entry after this one
	settled map[Stream]bool // streams whose wanted lines are whole
}

// add visits the entry before the last one added, and says when to stop: reading begins with this entry.
func (t *tailSearch) add(e entry, size int) (stop bool) {
	ends := !e.partial
	if !t.cut {
		open := e.partial && !t.seen[e.stream] // a line still being written
		if ends || open {
			t.count++
		}
		t.cut = t.count > t.want
		if !t.cut {
			t.seen[e.stream] = true
			return false
		}
	}
	if ends {
		t.skip++
		t.settled[e.stream] = true
	}
	t.window += int64(size)
	return t.window > chainWindow || t.whole()
}

// whole says that no stream with wanted lines may have pieces of them further up.
func (t *tailSearch) whole() bool {
	for stream := range t.seen {
		if !t.settled[stream] {
			return false
		}
	}
	return true
}

// seekTail sets the files to where the last n lines of a stream begin, and returns the index of the first file to
// read and how many lines to leave out there.
func seekTail(files []*os.File, n int64, stream Stream) (first int, skip int64, err error) {
	t := &tailSearch{want: n, stream: stream, seen: map[Stream]bool{}, settled: map[Stream]bool{}}
	for i, f := range slices.Backward(files) {
		start, stop, err := t.file(f)
		if err != nil {
			return 0, 0, fmt.Errorf("log %s: %w", f.Name(), err)
		}
		if stop {
			if _, err := f.Seek(start, io.SeekStart); err != nil {
				return 0, 0, fmt.Errorf("log %s: %w", f.Name(), err)
			}
			return i, t.skip, nil
		}
	}
	return 0, t.skip, nil // there are no more lines than that, or pieces of the first reach up to the beginning
}

func (t *tailSearch) file(f *os.File) (start int64, stop bool, err error) {
	b, err := newBackward(f)
	if err != nil {
		return 0, false, err
	}
	for {
		start, line, err := b.line()
		if err == io.EOF { //nolint:errorlint // b.line returns it bare
			return 0, false, nil
		}
		if err != nil {
			return 0, false, err
		}
		e, ok := parse(line)
		if !ok || t.stream != "" && e.stream != t.stream {
			continue
		}
		if t.add(e, len(line)) {
			return start, true, nil
		}
	}
}

// Tail returns the end of a log: at most maxLines lines of both streams, and of these at most the last maxBytes bytes,
// beginning with a whole character. It is for terminationMessagePolicy FallbackToLogsOnError. What cannot be read is
// left out.
func Tail(path string, maxLines, maxBytes int) string {
	lines := int64(maxLines)
	last := &lastBytes{max: maxBytes}
	_ = Read(context.Background(), path, Options{Tail: &lines}, last) // the message is a help, its absence no failure
	text := last.buf
	if last.cut {
		for len(text) > 0 && !utf8.RuneStart(text[0]) {
			text = text[1:]
		}
	}
	return string(text)
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	max int
	buf []byte
	cut bool
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.buf = append(l.buf, p...)
	if over := len(l.buf) - l.max; over > 0 {
		l.cut = true
		l.buf = append(l.buf[:0], l.buf[over:]...)
	}
	return len(p), nil
}
