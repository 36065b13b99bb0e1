package shim

import (
	"encoding/binary"
	"errors"
	"io"
	"strconv"
	"sync"
	"time"
)

// Kind says what a frame carries.
type Kind byte

// Kinds of frames. From the client: Stdin (empty = end of file) and Resize; to it: Stdout, Stderr and, last, Exit.
const (
	Stdin  Kind = iota
	Stdout Kind = iota
	Stderr Kind = iota
	Resize Kind = iota // columns and rows, two bytes each, big endian
	Exit   Kind = iota // a Result as JSON
)

const (
	frameHeader = 5
	// maxFrame bounds what a reader must keep.
	maxFrame = 16 << 10
	// clientPatience is how long output waits for a client that does not read, before the client is dropped.
	clientPatience = 10 * time.Second
)

var errFrameSize = errors.New("frame is longer than allowed")

// Conn is what frames are written to: an *os.File here, a net.Conn in the agent.
type Conn interface {
	io.WriteCloser
	SetWriteDeadline(t time.Time) error
}

// Framer writes frames to a connection, from several goroutines.
type Framer struct {
	conn     Conn
	patience time.Duration // 0 = for ever

	mu      sync.Mutex // guards scratch and the order on conn
	scratch []byte
}

// NewFramer writes to conn, and fails when that takes longer than patience (0 = for ever).
func NewFramer(conn Conn, patience time.Duration) *Framer {
	return &Framer{conn: conn, patience: patience}
}

// Write sends one frame. Data is not kept.
func (f *Framer) Write(kind Kind, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.patience > 0 {
		if err := f.conn.SetWriteDeadline(time.Now().Add(f.patience)); err != nil {
			return err
		}
	}
	for first := true; first || len(data) > 0; first = false {
		n := min(len(data), maxFrame)
		f.scratch = append(f.scratch[:0], byte(kind))
		f.scratch = binary.BigEndian.AppendUint32(f.scratch, uint32(n))
		f.scratch = append(f.scratch, data[:n]...)
		if _, err := f.conn.Write(f.scratch); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// ReadFrame reads one frame into buffer, which grows as needed; data is valid until the next call.
func ReadFrame(r io.Reader, buffer *[]byte) (kind Kind, data []byte, err error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	size := int(binary.BigEndian.Uint32(header[1:]))
	if size > maxFrame {
		return 0, nil, errFrameSize
	}
	if cap(*buffer) < size {
		*buffer = make([]byte, size)
	}
	data = (*buffer)[:size]
	_, err = io.ReadFull(r, data)
	return Kind(header[0]), data, err
}

func itoa(n int) string { return strconv.Itoa(n) }
