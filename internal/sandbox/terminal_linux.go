package sandbox

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/term"
)

// terminal is a pseudo-terminal for a command, joined to the one of this process: raw, so that every key is the command's.
type terminal struct {
	streams []*os.File // for the command

	outer, master, slave *os.File
	cooked               *term.State // of outer, before
	resized              chan os.Signal
	output, resizing     sync.WaitGroup
}

// openTerminal returns nil unless standard input and output are a terminal.
func openTerminal(streams [3]*os.File) (*terminal, error) {
	in, out := streams[0], streams[1]
	if !term.IsTerminal(int(in.Fd())) || !term.IsTerminal(int(out.Fd())) {
		return nil, nil //nolint:nilnil // none is needed
	}
	master, slave, err := pty.Open()
	if err != nil {
		return nil, fmt.Errorf("a terminal for the command: %w: run it without one: </dev/null", err)
	}
	t := &terminal{outer: in, master: master, slave: slave, streams: []*os.File{slave, slave, slave}, resized: make(chan os.Signal, 1)}
	if !term.IsTerminal(int(streams[2].Fd())) {
		t.streams[2] = streams[2]
	}
	_ = pty.InheritSize(in, master) // 0×0 is what it is without
	signal.Notify(t.resized, syscall.SIGWINCH)
	t.resizing.Go(func() {
		for range t.resized {
			_ = pty.InheritSize(in, master) // as above
		}
	})
	if t.cooked, err = term.MakeRaw(int(in.Fd())); err != nil {
		t.close()
		return nil, fmt.Errorf("raw terminal: %w", err)
	}
	// Nothing ends a read from a terminal but a key; this process ends right after the command.
	go func() { _, _ = io.Copy(master, in) }()
	t.output.Go(func() { _, _ = io.Copy(out, master) }) // ends with EIO when the last slave is closed
	return t, nil
}

// close shows what the command wrote last and makes the terminal as it was.
func (t *terminal) close() {
	signal.Stop(t.resized)
	close(t.resized)
	t.resizing.Wait()
	_ = t.slave.Close()
	if t.cooked != nil {
		t.output.Wait()
		_ = term.Restore(int(t.outer.Fd()), t.cooked) // nobody could be told
	}
	_ = t.master.Close()
}
