package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// at is the time of the n-th entry of a test's log.
func at(n int) time.Time {
	return time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC).Add(time.Duration(n) * time.Second)
}

// row is a line of the file: "out F text" at the n-th second.
func row(n int, stream, tag, text string) string {
	return fmt.Sprintf("%s std%s %s %s\n", at(n).Format(time.RFC3339Nano), stream, tag, text)
}

// writeLog writes files, oldest first; the last one is the current.
func writeLog(t *testing.T, files ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	for i, content := range files {
		if err := os.WriteFile(numbered(path, len(files)-1-i), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestRead(t *testing.T) {
	three := []string{row(0, "out", "F", "a"), row(1, "err", "F", "b"), row(2, "out", "F", "c") + row(3, "out", "F", "d")}
	chain := row(0, "out", "F", "old") + row(1, "out", "P", "one ") + row(2, "err", "F", "between") + row(3, "out", "P", "two ") + row(4, "out", "F", "three")
	for _, c := range []struct {
		name  string
		files []string
		o     Options
		want  string
	}{
		{"no file", nil, Options{}, ""},
		{"empty file", []string{""}, Options{}, ""},
		{"all files, oldest first", three, Options{}, "a\nb\nc\nd\n"},
		{"one stream", three, Options{Stream: Stderr}, "b\n"},
		{"tail in the current file", three, Options{Tail: new(int64(1))}, "d\n"},
		{"tail over files", three, Options{Tail: new(int64(3))}, "b\nc\nd\n"},
		{"tail of more than there is", three, Options{Tail: new(int64(9))}, "a\nb\nc\nd\n"},
		{"tail of none", three, Options{Tail: new(int64(0))}, ""},
		{"tail below zero is none", three, Options{Tail: new(int64(-1))}, ""},
		{"tail of one stream", three, Options{Tail: new(int64(2)), Stream: Stdout}, "c\nd\n"},
		{"since", three, Options{Since: at(2)}, "c\nd\n"},
		{"since within the tail", three, Options{Tail: new(int64(3)), Since: at(3)}, "d\n"},
		{"since before the tail", three, Options{Tail: new(int64(1)), Since: at(0)}, "d\n"},
		{"limit within a line", three, Options{LimitBytes: new(int64(3))}, "a\nb"},
		{"limit at the end of a line", three, Options{LimitBytes: new(int64(4))}, "a\nb\n"},
		{"limit above", three, Options{LimitBytes: new(int64(100))}, "a\nb\nc\nd\n"},
		{"limit of nothing", three, Options{LimitBytes: new(int64(0))}, ""},
		{"timestamps", three, Options{Timestamps: true, Tail: new(int64(1))}, "2026-01-02T03:04:03Z d\n"},
		{"pieces are joined", []string{chain}, Options{}, "old\nbetween\none two three\n"},
		{"pieces carry the time of the first", []string{chain}, Options{Timestamps: true, Stream: Stdout, Tail: new(int64(1))},
			"2026-01-02T03:04:01Z one two three\n"},
		{"tail takes all pieces", []string{chain}, Options{Tail: new(int64(1))}, "one two three\n"},
		{"tail takes pieces beyond the other stream", []string{chain}, Options{Tail: new(int64(2))}, "between\none two three\n"},
		{"pieces over a rotation", []string{row(0, "out", "P", "x"), row(1, "out", "F", "y")}, Options{}, "xy\n"},
		{"tail of pieces over a rotation", []string{row(0, "out", "F", "w") + row(0, "out", "P", "x"), row(1, "out", "F", "y")},
			Options{Tail: new(int64(1))}, "xy\n"},
		{"a line without an end", []string{row(0, "out", "F", "a") + row(1, "out", "P", "prompt> ")}, Options{}, "a\nprompt> "},
		{"a line without an end is one of the tail", []string{row(0, "out", "F", "a") + row(1, "out", "P", "prompt> ")},
			Options{Tail: new(int64(1))}, "prompt> "},
		{"further tags", []string{row(0, "out", "F:x:y", "a")}, Options{}, "a\n"},
		{"empty lines", []string{row(0, "out", "F", "") + at(1).Format(time.RFC3339) + " stdout F\n"}, Options{}, "\n\n"},
		{"spaces stay", []string{row(0, "out", "F", "  a  b ")}, Options{}, "  a  b \n"},
		{"garbage is left out", []string{"\x00\x01\n" + row(0, "out", "F", "a") + "2026 stdout F no\n\n\nx y z\n", row(1, "in", "F", "no") + row(1, "out", "F", "b")},
			Options{Tail: new(int64(2))}, "a\nb\n"},
		{"a torn line of a rotated file", []string{row(0, "out", "F", "a") + "2026-01-02T03:0", row(1, "out", "F", "b")}, Options{}, "a\nb\n"},
		{"a torn line of an ended container", []string{strings.TrimSuffix(row(0, "out", "F", "dying wor"), "\n")}, Options{}, "dying wor\n"},
		{"a torn line of a running container", []string{strings.TrimSuffix(row(0, "out", "F", "not yet wh"), "\n")},
			Options{Running: func() bool { return true }}, ""},
		{"follow of an ended container", three, Options{Follow: true, Tail: new(int64(2))}, "c\nd\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := Read(t.Context(), writeLog(t, c.files...), c.o, &out); err != nil {
				t.Fatal(err)
			}
			if out.String() != c.want {
				t.Errorf("got %q, want %q", out.String(), c.want)
			}
		})
	}
}

func TestTailAgreesWithReadingAll(t *testing.T) {
	var files []string
	for i := range 3 {
		var b strings.Builder
		for j := range 3000 {
			stream := []string{"out", "err"}[(i+j/7)%2]
			tag := []string{"F", "P", "F"}[(j*j+i)%3]
			b.WriteString(row(j, stream, tag, strings.Repeat("x", j%97)+fmt.Sprintf("%d.%d", i, j)))
		}
		files = append(files, b.String())
	}
	path := writeLog(t, files...)
	for _, stream := range []Stream{"", Stdout, Stderr} {
		var all bytes.Buffer
		if err := Read(t.Context(), path, Options{Stream: stream}, &all); err != nil {
			t.Fatal(err)
		}
		lines := strings.SplitAfter(all.String(), "\n")
		for _, n := range []int{1, 2, 3, 50, 1999, 2500, 4444} {
			var tail bytes.Buffer
			if err := Read(t.Context(), path, Options{Stream: stream, Tail: new(int64(n))}, &tail); err != nil {
				t.Fatal(err)
			}
			// A line that is still open is at the end of all, and counts.
			want := lines
			if want[len(want)-1] == "" {
				want = want[:len(want)-1]
			}
			if got, want := tail.String(), strings.Join(want[max(0, len(want)-n):], ""); got != want {
				t.Errorf("stream %q, last %d lines: got %d bytes, want %d", stream, n, len(got), len(want))
			}
		}
	}
}

func TestTailReadsOnlyTheEnd(t *testing.T) {
	path := writeLog(t, strings.Repeat(row(0, "out", "F", strings.Repeat("x", 100)), 50000))
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, _, err := seekTail([]*os.File{f}, 10, ""); err != nil {
		t.Fatal(err)
	}
	offset, _ := f.Seek(0, io.SeekCurrent)
	info, _ := f.Stat()
	if left := info.Size() - offset; left > 11*200 {
		t.Errorf("the last 10 lines begin %d bytes before the end", left)
	}
}

func TestLongLineIsBounded(t *testing.T) {
	long := strings.Repeat("y", 3*maxLine)
	path := writeLog(t, row(0, "out", "F", "a")+row(1, "out", "F", long)+row(2, "out", "F", "b"))
	for _, o := range []Options{{}, {Tail: new(int64(3))}} {
		var out bytes.Buffer
		if err := Read(t.Context(), path, o, &out); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(out.String(), "\n")
		if len(lines) != 4 || lines[0] != "a" || lines[2] != "b" || len(lines[1]) > maxLine {
			t.Errorf("lines around one of %d bytes are not right: %d lines, the second has %d bytes", len(long), len(lines), len(lines[1]))
		}
	}
	// In pieces, as the runtime writes it, nothing is lost.
	var file strings.Builder
	for range 300 {
		file.WriteString(row(0, "out", "P", strings.Repeat("z", 16<<10)))
	}
	file.WriteString(row(0, "out", "F", "!"))
	var out bytes.Buffer
	if err := Read(t.Context(), writeLog(t, file.String()), Options{}, &out); err != nil {
		t.Fatal(err)
	}
	if out.Len() != 300*(16<<10)+2 || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("300 pieces of 16 KiB became %d bytes, %d lines", out.Len(), strings.Count(out.String(), "\n"))
	}
}

// rotating writes a log as the runtime does: one write an entry, rename upwards, then a new file.
type rotating struct {
	path string
	keep int
	f    *os.File
}

func (r *rotating) write(t *testing.T, s string) {
	if r.f == nil {
		f, err := os.OpenFile(r.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Error(err)
			return
		}
		r.f = f
	}
	if _, err := r.f.WriteString(s); err != nil {
		t.Error(err)
	}
}

func (r *rotating) rotate(t *testing.T) {
	for n := r.keep - 1; n >= 0; n-- {
		if err := os.Rename(numbered(r.path, n), numbered(r.path, n+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
	r.close()
}

func (r *rotating) close() {
	if r.f != nil {
		_ = r.f.Close()
		r.f = nil
	}
}

func TestFollowWhileRotating(t *testing.T) {
	const lines, rotations = 6000, 25
	path := filepath.Join(t.TempDir(), "3.log")
	var ended atomic.Bool
	written := make(chan struct{})
	go func() {
		defer close(written)
		defer ended.Store(true)
		w := &rotating{path: path, keep: rotations + 1}
		defer w.close()
		for i := range lines {
			stream := []string{"out", "err"}[i%2]
			w.write(t, row(i, stream, "P", fmt.Sprintf("%d", i)))
			half := row(i, stream, "F", " whole")
			w.write(t, half[:len(half)/2]) // a reader may see half a line
			if i%(lines/rotations) == 1 {
				w.write(t, half[len(half)/2:])
				w.rotate(t)
				continue
			}
			w.write(t, half[len(half)/2:])
		}
	}()
	var out bytes.Buffer
	err := Read(t.Context(), path, Options{Follow: true, Running: func() bool { return !ended.Load() }}, &out)
	<-written
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(got) != lines {
		t.Fatalf("%d lines were read of %d written", len(got), lines)
	}
	for i, line := range got {
		if want := fmt.Sprintf("%d whole", i); line != want {
			t.Fatalf("line %d is %q, want %q", i, line, want)
		}
	}
}

// lineChan gives each write to a reader of the test.
type lineChan chan string

func (c lineChan) Write(p []byte) (int, error) {
	c <- string(p)
	return len(p), nil
}

func TestFollowShowsLinesAsTheyCome(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	w := &rotating{path: filepath.Join(t.TempDir(), "0.log"), keep: 2}
	defer w.close()
	out := make(lineChan)
	done := make(chan error)
	go func() {
		done <- Read(ctx, w.path, Options{Follow: true, Running: func() bool { return true }}, out)
	}()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-out:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case err := <-done:
			t.Fatalf("ended with %v, want %q", err, want)
		case <-time.After(10 * time.Second):
			t.Fatalf("nothing came, want %q", want)
		}
	}
	w.write(t, row(0, "out", "F", "a")) // the file did not exist before
	next("a\n")
	w.write(t, row(1, "err", "F", "b"))
	next("b\n")
	w.rotate(t)
	w.write(t, row(2, "out", "F", "c"))
	next("c\n")
	w.rotate(t)
	w.rotate(t) // nothing was written: no file at all for a while
	w.write(t, row(3, "out", "F", "d"))
	next("d\n")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a follower whose client left ended with %v", err)
	}
}

func TestReadEndsWithTheWriter(t *testing.T) {
	path := writeLog(t, row(0, "out", "F", "a"))
	gone := errors.New("client is gone")
	err := Read(t.Context(), path, Options{Follow: true, Running: func() bool { return true }}, failing{gone})
	if !errors.Is(err, gone) {
		t.Errorf("got %v, want the writer's error", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestTailForMessages(t *testing.T) {
	path := writeLog(t, row(0, "out", "F", "first"), row(1, "err", "F", "äöü")+row(2, "out", "F", "last"))
	for _, c := range []struct {
		lines, bytes int
		want         string
	}{
		{80, 2048, "first\näöü\nlast\n"},
		{2, 2048, "äöü\nlast\n"},
		{80, 5, "last\n"},
		{80, 7, "\nlast\n"}, // half a character is left out
		{80, 8, "ü\nlast\n"},
	} {
		if got := Tail(path, c.lines, c.bytes); got != c.want {
			t.Errorf("%d lines, %d bytes: got %q, want %q", c.lines, c.bytes, got, c.want)
		}
	}
	if got := Tail(filepath.Join(t.TempDir(), "none"), 80, 2048); got != "" {
		t.Errorf("no log: got %q", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{row(0, "out", "F", "a"), row(1, "err", "P:x", ""), "2026-01-02T03:04:05Z stdout F", "", " ", "\x00 stdout F x"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, ok := parse(line)
		if !ok {
			return
		}
		if e.stream != Stdout && e.stream != Stderr {
			t.Errorf("stream %q", e.stream)
		}
		if !bytes.HasSuffix(line, e.text) || !bytes.HasPrefix(line, e.stamp) {
			t.Errorf("%q was made %q %q", line, e.stamp, e.text)
		}
		tag := "F"
		if e.partial {
			tag = "P"
		}
		again, ok := parse(fmt.Appendf(nil, "%s %s %s %s", e.stamp, e.stream, tag, e.text))
		if !ok || !again.at.Equal(e.at) || again.partial != e.partial || !bytes.Equal(again.text, e.text) {
			t.Errorf("%q is not read back: %+v", line, again)
		}
	})
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(row(0, "out", "F", "a")+row(1, "err", "P", "b")), int64(1))
	f.Add([]byte("garbage\n\n"), int64(0))
	f.Fuzz(func(t *testing.T, content []byte, tail int64) {
		path := writeLog(t, string(content))
		var all, end bytes.Buffer
		if err := Read(t.Context(), path, Options{}, &all); err != nil {
			t.Fatal(err)
		}
		if err := Read(t.Context(), path, Options{Tail: &tail}, &end); err != nil {
			t.Fatal(err)
		}
		if end.Len() > all.Len() || int64(bytes.Count(end.Bytes(), []byte{'\n'})) > max(tail, 0)+1 {
			t.Errorf("the last %d lines of %q are %q", tail, all.String(), end.String())
		}
	})
}

func BenchmarkRead(b *testing.B) {
	path := filepath.Join(b.TempDir(), "0.log")
	line := row(0, "out", "F", strings.Repeat("x", 100))
	content := []byte(strings.Repeat(line, 10<<20/len(line)))
	if err := os.WriteFile(path, content, 0o600); err != nil {
		b.Fatal(err)
	}
	for name, tail := range map[string]*int64{"all": nil, "tail100": new(int64(100))} {
		b.Run(name, func(b *testing.B) {
			if tail == nil {
				b.SetBytes(int64(len(content)))
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := Read(b.Context(), path, Options{Tail: tail}, io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
