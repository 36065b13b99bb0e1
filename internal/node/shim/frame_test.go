package shim

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/node/container"
)

type memory struct{ bytes.Buffer }

func (*memory) Close() error                     { return nil }
func (*memory) SetWriteDeadline(time.Time) error { return nil }

func TestFrames(t *testing.T) {
	var conn memory
	framer := NewFramer(&conn, time.Second)
	long := strings.Repeat("x", 2*maxFrame+1)
	for _, text := range []string{"hello", "", long} {
		if err := framer.Write(Stdout, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	var buffer []byte
	var sizes []int
	for {
		kind, data, err := ReadFrame(&conn, &buffer)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || kind != Stdout {
			t.Fatal(kind, err)
		}
		sizes = append(sizes, len(data))
	}
	if len(sizes) != 5 || sizes[0] != 5 || sizes[1] != 0 || sizes[2] != maxFrame || sizes[4] != 1 {
		t.Errorf("frames of %v bytes", sizes)
	}
	if _, _, err := ReadFrame(strings.NewReader("\x00\xff\xff\xff\xffx"), &buffer); !errors.Is(err, errFrameSize) {
		t.Errorf("a frame of 4 GB: %v", err)
	}
	if _, _, err := ReadFrame(strings.NewReader("\x00\x00\x00\x00\x05abc"), &buffer); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a frame: %v", err)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x05hello"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var buffer []byte
		for r := bytes.NewReader(data); ; {
			if _, _, err := ReadFrame(r, &buffer); err != nil {
				break
			}
		}
		if cap(buffer) > maxFrame {
			t.Errorf("the buffer has %d bytes", cap(buffer))
		}
	})
}

func TestAllowSysctl(t *testing.T) {
	for name, want := range map[string]bool{
		"net.core.somaxconn": true, "kernel.shmmax": true, "fs.mqueue.msg_max": true,
		"kernel.panic": false, "vm.swappiness": false, "net/core/somaxconn": false, "net...kernel.panic": false, "": false,
	} {
		if err := allowSysctl(name, &container.Sandbox{}); (err == nil) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
	host := &container.Sandbox{HostNetwork: true, HostIPC: true}
	for _, name := range []string{"net.core.somaxconn", "kernel.shmmax", "fs.mqueue.msg_max"} {
		if allowSysctl(name, host) == nil {
			t.Errorf("%s would change the node", name)
		}
	}
}
