package app

import (
	"errors"
	"net"
	"testing"
)

// A listener that is inherited is served beside the server's own, and takes connections on after the server's end.
func TestJoinedListeners(t *testing.T) {
	tcp := func() *net.TCPListener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l.(*net.TCPListener)
	}
	own, outer := tcp(), tcp()
	file, err := outer.File()
	if err != nil {
		t.Fatal(err)
	}
	inherited, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()  //nolint:errcheck // a test
	defer outer.Close() //nolint:errcheck // a test
	joined := joinListeners(own, []net.Listener{inherited})
	if joined.Addr().String() != own.Addr().String() {
		t.Errorf("address %s, want that of the first, %s", joined.Addr(), own.Addr())
	}
	for _, l := range []net.Listener{own, outer} {
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := joined.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if conn.LocalAddr().String() != l.Addr().String() {
			t.Errorf("accepted on %s, want %s", conn.LocalAddr(), l.Addr())
		}
		_, _ = conn.Close(), client.Close()
	}
	if err := joined.Close(); err != nil {
		t.Error(err)
	}
	if _, err := joined.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after the end: %v", err)
	}
	if _, err := net.Dial("tcp", own.Addr().String()); err == nil {
		t.Error("its own listener is still open")
	}
	waiting, err := net.Dial("tcp", outer.Addr().String())
	if err != nil {
		t.Fatalf("the inherited one takes no connection after the server's end: %v", err)
	}
	_ = waiting.Close()
}
