package shim

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// backlog is how many clients may wait to be accepted.
const backlog = 128

// listen makes the socket in the working directory: a path of a socket has at most 107 bytes.
func listen() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: SocketFile}), unix.Listen(fd, backlog)); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), SocketFile), nil
}

// serve returns only with an error.
func (p *pod) serve(listener *os.File) error {
	raw, err := listener.SyscallConn()
	if err != nil {
		return err
	}
	for {
		client, acceptErr := -1, error(nil)
		err := raw.Read(func(fd uintptr) bool {
			client, _, acceptErr = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return !errors.Is(acceptErr, unix.EAGAIN)
		})
		if err != nil {
			return err
		}
		if acceptErr == nil {
			go p.talk(os.NewFile(uintptr(client), "client"))
		}
	}
}

// conn is a client's connection.
type conn struct {
	*os.File
	in *bufio.Reader
}

// answer sends one line. A client that is gone has nothing to be told.
func (c *conn) answer(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = c.Write(append(data, '\n'))
	return err
}

// talk serves one request.
func (p *pod) talk(file *os.File) {
	c := &conn{File: file, in: bufio.NewReaderSize(file, 1<<10)}
	defer file.Close() //nolint:errcheck // everything was written
	defer p.rest.Reset(restAfter)
	line, err := c.in.ReadBytes('\n')
	if err != nil {
		return
	}
	var request Request
	if err := json.Unmarshal(line, &request); err != nil {
		_ = c.answer(Reply{Error: err.Error()})
		return
	}
	switch {
	case request.Watch:
		p.serveEvents(c)
	case request.Start != nil:
		// What was begun goes on when the client does not: half a container would be nobody's.
		status, err := p.start(request.Start)
		reply := StartReply{Failure: asFailure(err)}
		if err == nil {
			reply.Status = &status
		}
		_ = c.answer(reply)
	case request.Signal != nil:
		var reply Reply
		if err := p.signal(request.Signal.Container, syscall.Signal(request.Signal.Signal)); err != nil {
			reply.Error = err.Error()
		}
		_ = c.answer(reply)
	case request.Exec != nil:
		p.serveExec(c, request.Exec)
	case request.Attach != nil:
		p.serveAttach(c, request.Attach)
	default:
		_ = c.answer(Reply{Error: fmt.Sprintf("the shim of this pod does not know the request %.100s", line)})
	}
}

// beginStream finds the container and says that frames follow; nil = it does not run.
func (p *pod) beginStream(c *conn, name string) *box {
	p.mu.Lock()
	b := p.containers[name]
	p.mu.Unlock()
	if b == nil || !b.running() {
		_ = c.answer(Reply{Error: "it is not running"})
		return nil
	}
	if c.answer(Reply{}) != nil {
		return nil
	}
	return b
}

// awaitEnd returns when the client hangs up. It sends nothing more.
func (c *conn) awaitEnd() {
	_, _ = io.Copy(io.Discard, c.in)
}
