package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// packet is one message between processes: JSON and descriptors, in one packet of a SOCK_SEQPACKET socket.
const (
	maxPacket = 160 << 10 // bytes; the kernel's default buffers hold it
	maxFiles  = 4
)

// send sends v and files, which stay the caller's.
func send(conn *net.UnixConn, v any, files ...*os.File) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(text) > maxPacket {
		return fmt.Errorf("a message of %d bytes is too long: at most %d", len(text), maxPacket)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(text, rights, nil)
	return err
}

// receiver reads packets from one connection.
type receiver struct {
	conn   *net.UnixConn
	buffer []byte
}

func newReceiver(conn *net.UnixConn) *receiver {
	return &receiver{conn: conn, buffer: make([]byte, maxPacket)}
}

var errEnded = errors.New("the connection has ended")

// next fills v and returns the descriptors, which are the caller's.
func (r *receiver) next(v any) ([]*os.File, error) {
	control := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := r.conn.ReadMsgUnix(r.buffer, control)
	if errors.Is(err, io.EOF) {
		return nil, errEnded
	}
	if err != nil {
		return nil, err
	}
	files, err := received(control[:oobn])
	switch {
	case err != nil:
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("a message was too long")
	case n == 0:
		err = errEnded
	default:
		err = json.Unmarshal(r.buffer[:n], v)
	}
	if err != nil {
		closeFiles(files)
		return nil, err
	}
	return files, nil
}

func received(control []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // another kind of message, which nobody asked for
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // not ours to use
	}
}

// fromHost is a message of the host side.
type fromHost struct {
	Spec   *Spec   `json:",omitempty"` // the first one
	Stop   bool    `json:",omitempty"`
	Opened *opened `json:",omitempty"` // with the listeners, unless there is an Error
}

// fromInside is a message of the inside.
type fromInside struct {
	Event *Event    `json:",omitempty"`
	Open  *openPort `json:",omitempty"`
	Fatal string    `json:",omitempty"` // why the inside ends
}

// openPort asks for listeners on the host's loopback.
type openPort struct {
	ID      int
	Network string // tcp or udp
	Port    uint16
}

type opened struct {
	ID    int
	Error string `json:",omitempty"`
}

// hostLink is the inside's end of the connection to the host side.
type hostLink struct {
	conn *net.UnixConn

	mu      sync.Mutex // guards what follows, and the order of packets
	last    int        // ID
	waiting map[int]chan<- openResult
}

type openResult struct {
	files []*os.File
	err   error
}

func (l *hostLink) send(m fromInside) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return send(l.conn, m)
}

// Open returns what listens on the port of the host's loopback, one file a family; they are the caller's.
func (l *hostLink) Open(ctx context.Context, network string, port uint16) ([]*os.File, error) {
	c := make(chan openResult, 1)
	l.mu.Lock()
	l.last++
	id := l.last
	l.waiting[id] = c
	l.mu.Unlock()
	if err := l.send(fromInside{Open: &openPort{ID: id, Network: network, Port: port}}); err != nil {
		return nil, err
	}
	select {
	case r := <-c:
		return r.files, r.err
	case <-ctx.Done():
		l.mu.Lock()
		defer l.mu.Unlock()
		if _, still := l.waiting[id]; still {
			delete(l.waiting, id)
		} else {
			closeFiles((<-c).files)
		}
		return nil, ctx.Err()
	}
}

// opened hands the answer to whoever waits.
func (l *hostLink) opened(o opened, files []*os.File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, waits := l.waiting[o.ID]
	if !waits {
		closeFiles(files)
		return
	}
	delete(l.waiting, o.ID)
	r := openResult{files: files}
	if o.Error != "" {
		r.err = errors.New(o.Error)
	}
	c <- r
}

// pair is a connection between this process and a child, which gets the file.
func pair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	child := os.NewFile(uintptr(fds[1]), "link")
	conn, err := unixConn(os.NewFile(uintptr(fds[0]), "link"))
	if err != nil {
		_ = child.Close()
		return nil, nil, err
	}
	return conn, child, nil
}

// unixConn takes the file.
func unixConn(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("%s is not a unix socket", f.Name())
	}
	return conn, nil
}
