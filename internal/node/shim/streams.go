package shim

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
)

// streams carry a container's output to its log and to the clients that are attached, and their input to it.
type streams struct {
	log       *logFile
	stdinOnce bool
	tty       bool
	hasStdin  bool

	theirs []*os.File  // the container's ends, until it has started
	out    [2]*os.File // our ends of stdout and stderr
	pumps  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	stdin   *os.File   // our end; nil = none or closed
	master  *os.File   // of the terminal; nil = none
	clients map[*Framer]struct{}
}

func newStreams(c *container.Container, log *logFile) *streams {
	return &streams{
		log: log, stdinOnce: c.StdinOnce, tty: c.TTY, hasStdin: c.Stdin || c.TTY, clients: map[*Framer]struct{}{},
	}
}

// pipe gives a pipe whose end for the child blocks, as programs expect, while ours is polled.
func pipe(childReads bool) (ours, theirs *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	read, write := fds[0], fds[1]
	if childReads {
		read, write = write, read
	}
	if err := unix.SetNonblock(read, true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(read), unix.Close(write))
	}
	return os.NewFile(uintptr(read), "pipe"), os.NewFile(uintptr(write), "pipe"), nil
}

// childEnds makes the pipes. With a terminal there are none: the launcher makes it.
func (s *streams) childEnds() (ends [3]*os.File, err error) {
	if s.tty {
		return ends, nil
	}
	if s.hasStdin {
		if s.stdin, ends[0], err = pipe(true); err != nil {
			return ends, err
		}
		s.theirs = append(s.theirs, ends[0])
	}
	for i := range s.out {
		if s.out[i], ends[1+i], err = pipe(false); err != nil {
			return ends, err
		}
		s.theirs = append(s.theirs, ends[1+i])
	}
	return ends, nil
}

func (s *streams) closeChildEnds() {
	for _, file := range s.theirs {
		_ = file.Close()
	}
	s.theirs = nil
}

// abandon closes everything of a container that did not start.
func (s *streams) abandon() {
	s.closeChildEnds()
	for _, file := range []*os.File{s.stdin, s.out[0], s.out[1]} {
		if file != nil {
			_ = file.Close()
		}
	}
	s.log.Close()
}

// run begins to read the output.
func (s *streams) run(master *os.File) {
	if master != nil {
		s.mu.Lock()
		s.master, s.stdin = master, master
		s.mu.Unlock()
		s.pumps.Go(func() { s.pump(master, Stdout, "stdout") })
		return
	}
	s.pumps.Go(func() { s.pump(s.out[0], Stdout, "stdout") })
	s.pumps.Go(func() { s.pump(s.out[1], Stderr, "stderr") })
}

func (s *streams) pump(from *os.File, kind Kind, name string) {
	lines := &lineWriter{log: s.log, stream: name}
	buffer := make([]byte, maxPartial)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			lines.Write(buffer[:n])
			s.broadcast(kind, buffer[:n])
		}
		if err != nil { // EOF; EIO from a terminal; a deadline from drain
			break
		}
	}
	lines.Flush()
	_ = from.Close()
}

// broadcast waits for clients that are slow: the container waits too, as at a terminal that was stopped, but not for ever.
func (s *streams) broadcast(kind Kind, data []byte) {
	s.mu.Lock()
	clients := make([]*Framer, 0, len(s.clients))
	for client := range s.clients {
		clients = append(clients, client)
	}
	s.mu.Unlock()
	for _, client := range clients {
		if client.Write(kind, data) != nil {
			s.remove(client)
			_ = client.conn.Close()
		}
	}
}

// drain waits until all output is in the log, or until grace is over and nothing more is there to be read.
func (s *streams) drain(grace time.Duration) {
	done := make(chan struct{})
	go func() {
		s.pumps.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(grace):
		// Someone outside holds the pipe. What it holds is read before the deadline counts.
	}
}

// finish ends everything, some time after the container's exit.
func (s *streams) finish() {
	deadline := time.Now().Add(time.Second)
	for _, file := range []*os.File{s.out[0], s.out[1], s.master} {
		if file != nil {
			_ = file.SetReadDeadline(deadline)
		}
	}
	s.pumps.Wait()
	s.closeStdin()
	s.log.Close()
}

func (s *streams) closeStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stdin != nil && s.master == nil {
		_ = s.stdin.Close()
		s.stdin = nil
	}
}

func (s *streams) add(client *Framer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients[client] = struct{}{}
}

func (s *streams) remove(client *Framer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, client)
}

func (s *streams) resize(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.master != nil {
		resizeTerminal(s.master, data)
	}
}
