package shim

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"
)

const (
	// maxPartial is the longest piece of a line in one log entry, as CRI runtimes have it.
	maxPartial = 16 << 10
	maxLogSize = 10 << 20 // bytes of a file before it is rotated
	maxLogs    = 5        // files, the current one included
)

// logFile is the log of one attempt, in the format of the CRI (KEP-2411 has a description):
// time, stream, F for a whole line or P for a piece, text.
type logFile struct {
	path string
	max  int64

	mu   sync.Mutex // guards what follows; both streams write
	file *os.File   // nil when it could not be opened; then output is lost, and the container goes on
	size int64
}

func openLog(path string, limit int64) (*logFile, error) {
	l := &logFile{path: path, max: limit}
	return l, l.open()
}

func (l *logFile) open() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	l.file, l.size = file, info.Size()
	return nil
}

// write appends whole entries. What the disk does not take is lost, never the container that wrote it.
func (l *logFile) write(entries []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(entries)) > l.max {
		l.rotate()
	}
	if l.file == nil && l.open() != nil {
		return
	}
	n, err := l.file.Write(entries)
	if err != nil && n > 0 {
		// Half an entry would spoil the next one.
		if l.file.Truncate(l.size) == nil {
			n = 0
		}
	}
	l.size += int64(n)
}

// rotate moves path to path.1, path.1 to path.2 and so on. A reader that has the file open sees its end and then the new one.
func (l *logFile) rotate() {
	for i := maxLogs - 2; i >= 1; i-- {
		_ = os.Rename(l.path+"."+strconv.Itoa(i), l.path+"."+strconv.Itoa(i+1))
	}
	if err := os.Rename(l.path, l.path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		// It cannot be moved, so it starts anew: the bound counts more than the old lines.
		if l.file != nil && l.file.Truncate(0) == nil {
			l.size = 0
		}
		return
	}
	l.close()
}

func (l *logFile) close() {
	if l.file != nil {
		_ = l.file.Close()
		l.file, l.size = nil, 0
	}
}

// Close lets go of the file.
func (l *logFile) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.close()
}

// lineWriter turns one stream into entries. It keeps at most maxPartial bytes.
type lineWriter struct {
	log    *logFile
	stream string
	rest   []byte // the line so far
	out    []byte // entries of one call
}

// Write never fails.
func (w *lineWriter) Write(data []byte) {
	now := time.Now()
	w.out = w.out[:0]
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n')
		take := end
		if end < 0 {
			take = len(data)
		}
		if room := maxPartial - len(w.rest); take > room {
			w.rest = append(w.rest, data[:room]...)
			data = data[room:]
			w.entry(now, 'P')
			continue
		}
		w.rest = append(w.rest, data[:take]...)
		data = data[take:]
		if end >= 0 {
			data = data[1:]
			w.entry(now, 'F')
		}
	}
	if len(w.out) > 0 {
		w.log.write(w.out)
	}
	if cap(w.out) > 4*maxPartial {
		w.out = nil // after a flood of short lines
	}
}

// Flush writes what is left without an end of line, as a piece.
func (w *lineWriter) Flush() {
	if len(w.rest) > 0 {
		w.out = w.out[:0]
		w.entry(time.Now(), 'P')
		w.log.write(w.out)
	}
}

func (w *lineWriter) entry(now time.Time, tag byte) {
	w.out = now.UTC().AppendFormat(w.out, time.RFC3339Nano)
	w.out = append(w.out, ' ')
	w.out = append(w.out, w.stream...)
	w.out = append(w.out, ' ', tag, ' ')
	w.out = append(w.out, w.rest...)
	w.out = append(w.out, '\n')
	w.rest = w.rest[:0]
}
