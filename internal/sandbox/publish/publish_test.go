package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/testkit"
)

const patience = 10 * time.Second

func TestMain(m *testing.M) { testkit.Main(m) }

// host opens ports of 127.0.0.1, whatever their number: number → address.
type host struct {
	mu      sync.Mutex // guards what follows
	address map[Key]string
	taken   map[Key]bool
}

func (h *host) open(_ context.Context, network string, port uint16) ([]*os.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := Key{network, port}
	if h.taken[key] {
		return nil, syscall.EADDRINUSE
	}
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer c.Close() //nolint:errcheck // a test
		h.address[key] = c.LocalAddr().String()
		f, err := c.(*net.UDPConn).File()
		return []*os.File{f}, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close() //nolint:errcheck // a test
	h.address[key] = l.Addr().String()
	f, err := l.(*net.TCPListener).File()
	return []*os.File{f}, err
}

// at waits until the port is open.
func (h *host) at(t *testing.T, key Key) string {
	t.Helper()
	address := ""
	testkit.Await(t, patience, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if address = h.address[key]; address == "" {
			return fmt.Errorf("%v is not open", key)
		}
		return nil
	})
	return address
}

func run(t *testing.T, o Options) (*Publisher, *host) {
	h := &host{address: map[Key]string{}, taken: map[Key]bool{}}
	o.Open, o.Logger = h.open, slog.New(slog.DiscardHandler)
	p := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { p.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		work.Wait()
		for range 3 { // splice(2) needs pipes, which the net package keeps in a pool until they are collected
			runtime.GC()
		}
	})
	return p, h
}

// endpoint answers each connection with its name and what it read until the client's end.
func endpoint(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); work.Wait() })
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer conn.Close() //nolint:errcheck // a test
				text, _ := io.ReadAll(conn)
				_, _ = fmt.Fprintf(conn, "%s %s", name, text)
			})
		}
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// ask closes its side before it reads: the other side must still answer.
func ask(address, text string) (string, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close() //nolint:errcheck // a test
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

func TestTCP(t *testing.T) {
	p, h := run(t, Options{})
	web := Key{"tcp", 30080}
	a, b := endpoint(t, "a"), endpoint(t, "b")
	p.Set([]Port{{Key: web, Endpoints: []netip.AddrPort{a, b}}})
	address := h.at(t, web)
	answers := map[string]int{}
	for range 4 {
		answer, err := ask(address, "hello")
		if err != nil {
			t.Fatal(err)
		}
		answers[answer]++
	}
	if answers["a hello"] != 2 || answers["b hello"] != 2 {
		t.Errorf("endpoints do not take turns: %v", answers)
	}
	long := strings.Repeat("0123456789abcdef", 1<<16)
	if answer, err := ask(address, long); err != nil || answer[2:] != long {
		t.Errorf("%d bytes came back as %d: %v", len(long), len(answer), err)
	}

	p.Set([]Port{{Key: web, Endpoints: []netip.AddrPort{b, a}, InOrder: true}})
	testkit.Await(t, patience, func() error { // "b" every time, which by turns would be every second time
		for range 4 {
			if answer, err := ask(address, "x"); answer != "b x" {
				return fmt.Errorf("%q %w", answer, err)
			}
		}
		return nil
	})

	// A dead endpoint costs a client nothing, and none at all is a refusal.
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := dead.Addr().(*net.TCPAddr).AddrPort()
	_ = dead.Close()
	p.Set([]Port{{Key: web, Endpoints: []netip.AddrPort{gone, b}}})
	testkit.Await(t, patience, func() error {
		for range 2 {
			if answer, err := ask(address, "x"); answer != "b x" {
				return fmt.Errorf("%q %w", answer, err)
			}
		}
		return nil
	})
	p.Set([]Port{{Key: web, Endpoints: nil}})
	testkit.Await(t, patience, func() error {
		if answer, err := ask(address, "x"); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			return fmt.Errorf("%q %w", answer, err)
		}
		return nil
	})
	p.Set(nil)
	testkit.Await(t, patience, func() error {
		if _, err := ask(address, "x"); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("the port is still open: %w", err)
		}
		return nil
	})
}

// A port that somebody else has is told once, is no hindrance to others, and is open when it is free.
func TestTaken(t *testing.T) {
	failed := make(chan string, 100)
	p, h := run(t, Options{Retry: time.Millisecond, Failed: func(k Key, err error) { failed <- fmt.Sprint(k, err) }})
	taken, web := Key{"tcp", 30000}, Key{"tcp", 30001}
	h.taken[taken] = true
	a := []netip.AddrPort{endpoint(t, "a")}
	p.Set([]Port{{Key: taken, Endpoints: a}, {Key: web, Endpoints: a}})
	h.at(t, web)
	if said := <-failed; said != "{tcp 30000} address already in use" {
		t.Errorf("said %q", said)
	}
	h.mu.Lock()
	h.taken[taken] = false
	h.mu.Unlock()
	if answer, err := ask(h.at(t, taken), "x"); answer != "a x" {
		t.Errorf("%q %v", answer, err)
	}
	if len(failed) > 0 {
		t.Errorf("said again: %q", <-failed)
	}
}

func TestUDP(t *testing.T) {
	p, h := run(t, Options{UDPIdle: 200 * time.Millisecond})
	dns := Key{"udp", 30053}
	echo := func(name string) netip.AddrPort {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var work sync.WaitGroup
		t.Cleanup(func() { _ = c.Close(); work.Wait() })
		work.Go(func() {
			buffer := make([]byte, 2000)
			for {
				n, from, err := c.ReadFrom(buffer)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(append([]byte(name+" "), buffer[:n]...), from)
			}
		})
		return c.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	a, b := echo("a"), echo("b")
	p.Set([]Port{{Key: dns, Endpoints: []netip.AddrPort{a, b}}})
	client, err := net.Dial("udp", h.at(t, dns))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // a test
	query := func() string {
		t.Helper()
		_ = client.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(client, "q"); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 100)
		n, err := client.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return string(buffer[:n])
	}
	first := query()
	for range 5 {
		if answer := query(); answer != first {
			t.Errorf("one client's datagrams go to %q and %q", first, answer)
		}
	}
	testkit.Await(t, patience, func() error {
		if n := p.udp.Load(); n != 0 {
			return fmt.Errorf("%d sessions are left after a pause", n)
		}
		return nil
	})
	query()
	p.Set([]Port{{Key: dns, Endpoints: []netip.AddrPort{b}}})
	testkit.Await(t, patience, func() error { // the session to an endpoint that is gone ends
		if answer := query(); answer != "b q" {
			return errors.New(answer)
		}
		return nil
	})
}

// No more connections than that are passed on at once; the others wait.
func TestBounded(t *testing.T) {
	p, h := run(t, Options{MaxConns: 1})
	web := Key{"tcp", 30080}
	p.Set([]Port{{Key: web, Endpoints: []netip.AddrPort{endpoint(t, "a")}}})
	address := h.at(t, web)
	first, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close() //nolint:errcheck // a test
	answered := make(chan string, 1)
	var work sync.WaitGroup
	work.Go(func() {
		answer, _ := ask(address, "second")
		answered <- answer
	})
	defer work.Wait()
	select {
	case answer := <-answered:
		t.Errorf("the second connection got %q beside the first", answer)
	case <-time.After(50 * time.Millisecond):
	}
	_ = first.Close()
	if answer := <-answered; answer != "a second" {
		t.Errorf("%q", answer)
	}
}
