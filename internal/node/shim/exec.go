package shim

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/shim/launch"
)

// quietAfterExit is how long a pipe must have been silent after its command's exit to be taken for one that a process in the
// background keeps open.
const quietAfterExit = 100 * time.Millisecond

func (p *pod) serveAttach(c *conn, request *StreamRequest) {
	b := p.beginStream(c, request.Container)
	if b == nil {
		return
	}
	client := NewFramer(c.File, clientPatience)
	if request.Output {
		b.io.add(client)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		b.io.receive(c)
	}()
	select {
	case <-b.done:
		b.io.remove(client)
		sendResult(client, Result{Code: b.state().ExitCode})
	case <-gone:
		b.io.remove(client)
	}
	_ = c.Close()
	<-gone
	if request.Stdin && b.spec.StdinOnce {
		b.io.closeStdin()
	}
}

// receive hands on what a client sends until it goes.
func (s *streams) receive(from *conn) {
	var buffer []byte
	for {
		kind, data, err := ReadFrame(from.in, &buffer)
		if err != nil {
			return
		}
		switch {
		case kind == Resize:
			s.resize(data)
		case kind == Stdin && len(data) == 0:
			if s.stdinOnce {
				s.closeStdin()
			}
		case kind == Stdin:
			s.mu.Lock()
			stdin := s.stdin
			s.mu.Unlock()
			if stdin != nil && !writePatiently(stdin, data, from.File) {
				return
			}
		}
	}
}

func sendResult(client *Framer, result Result) {
	if data, err := json.Marshal(result); err == nil {
		_ = client.Write(Exit, data)
	}
}

// execution is one command that runs beside a container's own.
type execution struct {
	client *Framer
	child  *child
	stdin  *os.File
	output []*os.File
	pumps  sync.WaitGroup
	exited chan struct{} // closed when the command has exited
}

func (p *pod) serveExec(c *conn, request *StreamRequest) {
	b := p.beginStream(c, request.Container)
	if b == nil {
		return
	}
	client := NewFramer(c.File, clientPatience)
	e, err := p.exec(b, request, client)
	if err != nil {
		sendResult(client, Result{Code: asFailure(err).Code, Failure: asFailure(err)})
		return
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		e.receive(c)
	}()
	var status unix.WaitStatus
	select {
	case status = <-e.child.exited:
	case <-gone: // the client has let go, so the command ends
		_ = e.child.signal(syscall.SIGKILL)
		status = <-e.child.exited
	}
	close(e.exited)
	for _, file := range e.output {
		_ = file.SetReadDeadline(time.Now().Add(quietAfterExit))
	}
	e.pumps.Wait()
	code, _ := exitCode(status)
	sendResult(client, Result{Code: code})
	_ = c.Close()
	<-gone
	e.close()
}

func (e *execution) close() {
	if e.stdin != nil {
		_ = e.stdin.Close()
	}
	for _, file := range e.output {
		_ = file.Close()
	}
	e.child.close()
}

// exec starts a command in the namespaces of a container.
func (p *pod) exec(b *box, request *StreamRequest, client *Framer) (*execution, error) {
	c := b.spec
	c.Args, c.TTY = request.Args, request.TTY
	if err := checkContainer(&c); err != nil {
		return nil, err
	}
	c.Mounts, c.Labels = nil, nil
	options := childOptions{
		spec: launch.Spec{Container: c, Join: true, Leashed: p.bundle.Sandbox.HostPID, OOMScore: p.oomScore},
		join: b.child.pidfd, joinPID: b.ownPIDs, cgroup: b.group,
	}
	e := &execution{client: client, exited: make(chan struct{})}
	var theirs []*os.File
	defer func() {
		for _, file := range theirs {
			_ = file.Close()
		}
	}()
	for i := range options.streams {
		wanted := request.Output
		if i == 0 {
			wanted = request.Stdin
		}
		if request.TTY || !wanted {
			continue
		}
		ours, end, err := pipe(i == 0)
		if err != nil {
			e.abandon()
			return nil, err
		}
		theirs = append(theirs, end)
		options.streams[i] = end
		if i == 0 {
			e.stdin = ours
		} else {
			e.output = append(e.output, ours)
		}
	}
	child, err := p.startChild(options)
	runtime.KeepAlive(b) // its pidfd closes with it
	if err != nil {
		e.abandon()
		return nil, err
	}
	e.child = child
	kinds := []Kind{Stdout, Stderr}
	if child.master != nil {
		e.stdin, e.output, child.master = nil, []*os.File{child.master}, nil
	}
	for i, file := range e.output {
		e.pumps.Go(func() { e.pump(file, kinds[i]) })
	}
	return e, nil
}

func (e *execution) abandon() {
	for _, file := range append(e.output, e.stdin) {
		if file != nil {
			_ = file.Close()
		}
	}
}

func (e *execution) pump(from *os.File, kind Kind) {
	buffer := make([]byte, 8<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 && e.client.Write(kind, buffer[:n]) != nil {
			_ = e.client.conn.Close() // the client is gone or stuck; that ends the command
			return
		}
		if err != nil {
			return
		}
		select {
		case <-e.exited: // while something comes, more may come
			_ = from.SetReadDeadline(time.Now().Add(quietAfterExit))
		default:
		}
	}
}

func (e *execution) receive(from *conn) {
	var buffer []byte
	for {
		kind, data, err := ReadFrame(from.in, &buffer)
		if err != nil {
			return
		}
		in := e.stdin
		terminal := in == nil && len(e.output) == 1
		if terminal {
			in = e.output[0]
		}
		switch {
		case kind == Resize && terminal:
			resizeTerminal(in, data)
		case kind != Stdin || in == nil:
		case len(data) > 0:
			if !writePatiently(in, data, from.File) {
				return
			}
		case terminal:
			_, _ = in.Write([]byte{endOfTransmission})
		default:
			_ = in.Close()
		}
	}
}

// writePatiently waits for a reader that is slow, until the client who sends the data hangs up; then it returns false. A reader
// that is gone is no reason to stop: the client may want the output still.
func writePatiently(to *os.File, data []byte, client *os.File) bool {
	const look = 250 * time.Millisecond
	for len(data) > 0 {
		_ = to.SetWriteDeadline(time.Now().Add(look))
		n, err := to.Write(data)
		data = data[n:]
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return true
		}
		if err != nil && hungUp(client) {
			return false
		}
	}
	return true
}

// hungUp sees the client's end even behind data that was not read.
func hungUp(client *os.File) bool {
	raw, err := client.SyscallConn()
	if err != nil {
		return true
	}
	over := false
	err = raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		_, pollErr := unix.Poll(poll, 0)
		over = pollErr == nil && poll[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return over || err != nil
}

// endOfTransmission is what the terminal takes for the end of input (Ctrl-D).
const endOfTransmission = 4

func resizeTerminal(master *os.File, data []byte) {
	if len(data) != 4 {
		return
	}
	size := &unix.Winsize{Col: binary.BigEndian.Uint16(data), Row: binary.BigEndian.Uint16(data[2:])}
	raw, err := master.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) // a terminal that has just closed has no size
	})
}
