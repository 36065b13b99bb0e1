package server

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/testkit"
)

func connect(t testing.TB, s *Server) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", s.Addrs()[0].String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

func frame(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	p := pack(t, m)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...)
}

// wantClosed waits for the server to close a connection.
func wantClosed(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Error("the connection is still open")
		}
	}
}

// TestPipeline sends many requests at once: what has to wait holds nothing up, and is answered later.
func TestPipeline(t *testing.T) {
	t.Parallel()
	f := newFakeForwarder(t)
	f.block = make(chan struct{})
	s := start(t, Options{Forwarder: f})
	c := connect(t, s)
	conn := &dns.Conn{Conn: c}
	slow := question("www.example.", dns.TypeA)
	packets := frame(t, slow)
	want := map[uint16]bool{}
	for range 100 {
		m := question("web.ns.svc.cluster.test.", dns.TypeA)
		packets = append(packets, frame(t, m)...)
		want[m.Id] = true
	}
	for _, part := range [][]byte{packets[:1], packets[1:40], packets[40:]} { // however they are cut
		if _, err := c.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	for len(want) > 0 {
		r, err := conn.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		wantBrief(t, r, webAnswer)
		delete(want, r.Id)
		if len(want) == 0 {
			break
		}
	}
	close(f.block)
	r, err := conn.ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	if r.Id != slow.Id {
		t.Errorf("another answer: %s", brief(r))
	}
	wantBrief(t, r, "NOERROR www.example. A 192.0.2.1")
}

// TestWaitingOfAConnection bounds how many requests of one connection wait, and answers them all in the end.
func TestWaitingOfAConnection(t *testing.T) {
	t.Parallel()
	f := newFakeForwarder(t)
	f.block = make(chan struct{})
	s := start(t, Options{Forwarder: f})
	c := connect(t, s)
	var packets []byte
	const asked = 3 * streamWaiting
	for range asked {
		packets = append(packets, frame(t, question("www.example.", dns.TypeA))...)
	}
	if _, err := c.Write(packets); err != nil {
		t.Fatal(err)
	}
	testkit.Await(t, patience, func() error {
		if n := f.resolving(); n != streamWaiting {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	wantBrief(t, ask(t, s, "tcp", question("web.ns.svc.cluster.test.", dns.TypeA)), webAnswer)
	if n := f.resolving(); n != streamWaiting {
		t.Errorf("%d wait, want %d", n, streamWaiting)
	}
	close(f.block)
	for range asked {
		r, err := (&dns.Conn{Conn: c}).ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		wantBrief(t, r, "NOERROR www.example. A 192.0.2.1")
	}
}

func TestBadStreamsAreClosed(t *testing.T) {
	t.Parallel()
	s := start(t, Options{TCP: TCPOptions{Idle: 50 * time.Millisecond, Transfer: 50 * time.Millisecond}})
	good := frame(t, question("web.ns.svc.cluster.test.", dns.TypeA))
	for name, sent := range map[string][]byte{
		"nothing":           {},
		"half a length":     {0},
		"half a request":    good[:10],
		"no request":        {0, 3, 1, 2, 3},
		"an endless one":    {0xff, 0xff, 1, 2, 3},
		"a response":        append(append([]byte{}, good[:4]...), append([]byte{good[4] | 0x80}, good[5:]...)...),
		"one, then nothing": good,
	} {
		c := connect(t, s)
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		t.Log(name)
		wantClosed(t, c)
	}
	testkit.Await(t, patience, func() error {
		if n := s.streams.count(); n > 0 {
			return fmt.Errorf("%d connections are left", n)
		}
		return nil
	})
}

// TestClientThatNeverReads asks for more and more and reads nothing: it is closed, and others are answered meanwhile.
func TestClientThatNeverReads(t *testing.T) {
	t.Parallel()
	s := start(t, Options{TCP: TCPOptions{Transfer: 100 * time.Millisecond, Idle: time.Hour}})
	c := connect(t, s)
	_ = c.SetReadBuffer(4096)
	packet := frame(t, question("many.ns.svc.cluster.test.", dns.TypeA))
	wrote := make(chan error, 1)
	go func() {
		for {
			if _, err := c.Write(packet); err != nil {
				wrote <- err
				return
			}
		}
	}()
	wantBrief(t, ask(t, s, "tcp", question("web.ns.svc.cluster.test.", dns.TypeA)), webAnswer)
	if err := <-wrote; errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	testkit.Await(t, patience, func() error {
		if n := s.streams.count(); n > 0 {
			return fmt.Errorf("%d connections are left", n)
		}
		return nil
	})
	if got := metric(t, s, "endpointd_dns_unsent_total"); got != 1 {
		t.Errorf("%v responses were not taken, want 1", got)
	}
}

func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	for _, o := range []TCPOptions{{PerClient: 3}, {Connections: 3}} {
		o.Idle = time.Hour
		s := start(t, Options{TCP: o})
		var kept []*net.TCPConn
		for range 3 {
			c := connect(t, s)
			kept = append(kept, c)
			if _, err := c.Write(frame(t, question("web.ns.svc.cluster.test.", dns.TypeA))); err != nil {
				t.Fatal(err)
			}
			if _, err := (&dns.Conn{Conn: c}).ReadMsg(); err != nil {
				t.Fatal(err)
			}
		}
		for range 20 {
			wantClosed(t, connect(t, s))
		}
		if got := metric(t, s, "endpointd_dns_closed_connections_total"); got != 20 {
			t.Errorf("%v connections were too many, want 20", got)
		}
		_ = kept[0].Close()
		testkit.Await(t, patience, func() error {
			if n := s.streams.count(); n != 2 {
				return fmt.Errorf("%d connections", n)
			}
			return nil
		})
		wantBrief(t, ask(t, s, "tcp", question("web.ns.svc.cluster.test.", dns.TypeA)), webAnswer)
	}
}
