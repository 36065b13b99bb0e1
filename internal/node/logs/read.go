package logs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Options say what of a log is wanted. The zero value is all of it, as it is now.
type Options struct {
	// Follow waits for more until Running says no and everything was read.
	Follow bool
	// Running says whether the container of this log may still write. With Follow it is asked again and again, at least every
	// pollEvery, by the goroutine that calls Read; nil = no.
	Running func() bool

	Tail       *int64    // at most so many lines from the end; nil = all
	Since      time.Time // lines written at this time or later; of the lines that Tail leaves
	LimitBytes *int64    // ends after so many bytes of output; nil = no limit
	Timestamps bool      // each line begins with the time it was written, as it is in the log
	Stream     Stream    // "" = both
}

const (
	// pollEvery is how often Running is asked, and how late a change is seen at most where the kernel has no watch left.
	pollEvery = 250 * time.Millisecond
	chunkSize = 64 << 10
)

// Read writes the wanted lines to w and returns when there are no more, or with the error of ctx or w.
// A log that is not there (yet) is an empty one.
func Read(ctx context.Context, path string, o Options, w io.Writer) error {
	if o.LimitBytes != nil && *o.LimitBytes <= 0 {
		return nil
	}
	r := &reader{path: path, chunk: make([]byte, chunkSize)}
	defer func() { closeAll(r.files) }()
	var skip int64
	var err error
	if r.files, err = openAfter(path, nil); err != nil {
		return err
	}
	if o.Tail != nil {
		var first int
		if first, skip, err = seekTail(r.files, max(*o.Tail, 0), o.Stream); err != nil {
			return err
		}
		closeAll(r.files[:first])
		r.files = r.files[first:]
	}
	r.buffer = bufio.NewWriterSize(w, chunkSize)
	r.out = newPrinter(r.buffer, o, skip)
	if o.Follow {
		err = r.follow(ctx, o.Running)
	} else {
		err = r.readAll(ctx, o.Running == nil || !o.Running())
	}
	if flushed := r.buffer.Flush(); err == nil || errors.Is(err, errLimit) {
		err = flushed
	}
	if err != nil {
		return fmt.Errorf("log %s: %w", path, err)
	}
	return nil
}

type reader struct {
	path   string
	files  []*os.File // still to read, oldest first; the last is the newest that is known
	split  splitter
	buffer *bufio.Writer
	out    *printer
	chunk  []byte
}

// readAll reads what is there. A line without an end is taken for one only if nobody can be writing it.
func (r *reader) readAll(ctx context.Context, ended bool) error {
	if err := r.drain(ctx); err != nil {
		return err
	}
	if ended {
		if err := r.split.flush(r.out.line); err != nil {
			return err
		}
	}
	return r.out.end()
}

// follow reads until the container has ended and nothing is left.
func (r *reader) follow(ctx context.Context, running func() bool) error {
	changes := watch(r.path)
	defer changes.close()
	for {
		// Asked before reading: what was written until the end is read after it.
		ended := running == nil || !running()
		if err := r.drain(ctx); err != nil {
			return err
		}
		more, err := r.advance(ctx)
		if err != nil {
			return err
		}
		if more {
			continue
		}
		if ended {
			return r.readAll(ctx, true)
		}
		if err := r.buffer.Flush(); err != nil {
			return err
		}
		if err := changes.wait(ctx); err != nil {
			return err
		}
	}
}

// advance looks for files that are newer than the last one, and puts them up for reading.
func (r *reader) advance(ctx context.Context) (bool, error) {
	var last *os.File
	if len(r.files) > 0 {
		last = r.files[len(r.files)-1]
	}
	newer, err := openAfter(r.path, last)
	if err != nil || len(newer) == 0 {
		return false, err
	}
	// The writer uses one file after the other: now that the next exists, the last is complete.
	r.files = append(r.files, newer...)
	return true, r.drain(ctx)
}

// drain reads all files to their ends and closes all but the last.
func (r *reader) drain(ctx context.Context) error {
	for len(r.files) > 0 {
		if err := r.drainFile(ctx, r.files[0]); err != nil {
			return err
		}
		if len(r.files) == 1 {
			return nil
		}
		if err := r.split.flush(r.out.line); err != nil {
			return err
		}
		closeAll(r.files[:1])
		r.files = r.files[1:]
	}
	return nil
}

func (r *reader) drainFile(ctx context.Context, f *os.File) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(r.chunk)
		if err := r.split.feed(r.chunk[:n], r.out.line); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// changes tells when something happens to a log.
type changes struct {
	watcher *fsnotify.Watcher // nil = the kernel has no more of them: only the clock tells
	events  <-chan fsnotify.Event
	errors  <-chan error
	tick    *time.Ticker
}

// watch begins to look at the folder of the log, as the log itself is renamed.
func watch(path string) *changes {
	c := &changes{tick: time.NewTicker(pollEvery)}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return c
	}
	if err := watcher.Add(filepath.Dir(path)); err != nil {
		_ = watcher.Close() // nothing was watched
		return c
	}
	c.watcher, c.events, c.errors = watcher, watcher.Events, watcher.Errors
	return c
}

// wait returns after a change, or a while.
func (c *changes) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.tick.C:
		return nil
	case <-c.errors: //nolint:errcheck // the queue ran over: there is something to read
	case <-c.events:
	}
	for { // what has come until now is read in one go
		select {
		case <-c.events:
		case <-c.errors: //nolint:errcheck // as above
		default:
			return nil
		}
	}
}

func (c *changes) close() {
	c.tick.Stop()
	if c.watcher != nil {
		_ = c.watcher.Close() // its events are not wanted any more
	}
}
