package fdstore

import (
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/testkit"
)

const (
	playing  = "FDSTORE_TEST_PLAYS"
	patience = 20 * time.Second
)

// The test binary plays the process that a Store starts, too.
func TestMain(m *testing.M) {
	if os.Getenv(playing) == "" {
		testkit.Main(m)
		return
	}
	if err := play(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// play is a service with a UDP socket and a TCP listener. The first one binds them; those that come after it print the packet and the stream that came
// before them. Each says where it listens and waits for its end.
func play() error {
	k := Inherit()
	for _, v := range variables() {
		if value, ok := os.LookupEnv(v); ok {
			return fmt.Errorf("%s=%s is for a child to inherit", v, value)
		}
	}
	packets, streams := k.Take("packets"), k.Take("streams")
	var conn net.PacketConn
	var l net.Listener
	var err error
	if len(packets) == 0 {
		if conn, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			return err
		}
		if l, err = net.Listen("tcp", conn.LocalAddr().String()); err != nil {
			return err
		}
	} else {
		if conn, l, err = take(packets[0], streams[0]); err != nil {
			return err
		}
	}
	if err := k.Keep("packets", conn.(*net.UDPConn)); err != nil {
		return err
	}
	if err := k.Keep("streams", l.(*net.TCPListener)); err != nil {
		return err
	}
	if err := k.Ready(); err != nil {
		return err
	}
	fmt.Println(conn.LocalAddr())
	select {}
}

func take(packets, streams *os.File) (net.PacketConn, net.Listener, error) {
	for _, f := range []*os.File{packets, streams} {
		if err := with(f, func(fd int) error {
			if flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0); errno != 0 || flags&syscall.FD_CLOEXEC == 0 {
				return fmt.Errorf("descriptor %d is for a child to inherit (%w)", fd, errno)
			}
			return nil
		}); err != nil {
			return nil, nil, err
		}
	}
	conn, err := net.FilePacketConn(packets)
	if err != nil {
		return nil, nil, err
	}
	l, err := net.FileListener(streams)
	if err != nil {
		return nil, nil, err
	}
	text := make([]byte, 100)
	n, _, err := conn.ReadFrom(text)
	if err != nil {
		return nil, nil, err
	}
	stream, err := l.Accept()
	if err != nil {
		return nil, nil, err
	}
	said, err := io.ReadAll(stream)
	if err != nil {
		return nil, nil, err
	}
	fmt.Printf("%s %s\n", text[:n], said)
	return conn, l, stream.Close()
}
