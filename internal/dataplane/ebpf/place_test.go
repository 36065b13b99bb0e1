package ebpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/testkit"
)

// A place is a network namespace that has no network but lo, with the addresses of the node and of endpoints 1 to 9. On each endpoint somebody
// listens, for TCP and UDP, and answers with the number of the endpoint. No route leads to an address of a Service, so whoever dials one
// is translated or gets ENETUNREACH.
type place struct {
	jobs chan func()
	path string
}

// deadline is how long anything may take that must happen.
const deadline = 20 * time.Second

func newPlace(t testing.TB) *place {
	t.Helper()
	p := &place{jobs: make(chan func())}
	ended := make(chan struct{})
	made := make(chan error)
	go func() {
		defer close(ended)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		p.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		made <- err
		for job := range p.jobs {
			job()
		}
	}()
	t.Cleanup(func() { close(p.jobs); <-ended })
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	p.do(t, setUp)
	testkit.Await(t, deadline, func() (err error) {
		p.do(t, func() error { err = settled(); return nil })
		return err
	})
	for number := 1; number <= 9; number++ {
		for _, v6 := range []bool{false, true} {
			p.serve(t, netip.AddrPortFrom(endpointIP(v6, number), targetPort), fmt.Sprint(number))
		}
	}
	return p
}

// do runs f on the place's thread.
func (p *place) do(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	p.jobs <- func() {
		err := errors.New("the test has ended") // if f does not return
		defer func() { done <- err }()
		err = f()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func setUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	errs := []error{os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("0"), 0), netlink.LinkSetUp(lo)}
	for _, v6 := range []bool{false, true} {
		addrs := []netip.Addr{nodeAddr(v6)}
		for number := 1; number <= 9; number++ {
			addrs = append(addrs, endpointIP(v6, number))
		}
		for _, addr := range addrs {
			mask := net.CIDRMask(addr.BitLen(), addr.BitLen())
			errs = append(errs, netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: mask}, Flags: unix.IFA_F_NODAD}))
		}
	}
	return errors.Join(errs...)
}

// settled says what the kernel still has to do: an address of IPv6 is local a little after it was added.
func settled() error {
	for number := 1; number <= 9; number++ {
		addr := endpointIP(true, number)
		routes, err := netlink.RouteGet(addr.AsSlice())
		if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
			return fmt.Errorf("%s is not local yet (%v)", addr, err) //nolint:errorlint // may be nil
		}
	}
	return nil
}

// serve answers with a name until the test ends.
func (p *place) serve(t testing.TB, addr netip.AddrPort, name string) {
	t.Helper()
	var l net.Listener
	var c net.PacketConn
	p.do(t, func() (err error) {
		if l, err = net.Listen("tcp", addr.String()); err != nil {
			return err
		}
		c, err = net.ListenPacket("udp", addr.String())
		return err
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			s, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { answer(s, name) })
		}
	})
	wg.Go(func() {
		buffer := make([]byte, 100)
		for {
			_, from, err := c.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(name), from)
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		_ = c.Close()
		wg.Wait()
	})
}

// answer says the name for every byte that comes.
func answer(s net.Conn, name string) {
	defer func() { _ = s.Close() }()
	buffer := make([]byte, 1)
	for {
		if _, err := s.Read(buffer); err != nil {
			return
		}
		if _, err := s.Write([]byte(name)); err != nil {
			return
		}
	}
}

// dial connects from the place.
func (p *place) dial(network string, to netip.AddrPort) (net.Conn, error) {
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result)
	p.jobs <- func() {
		c, err := net.DialTimeout(network, to.String(), deadline)
		done <- result{c, err}
	}
	r := <-done
	return r.c, r.err
}

// mustDial is a connection that ends with the test.
func (p *place) mustDial(t testing.TB, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := p.dial(network, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ask returns who answers: the number of an endpoint.
func (p *place) ask(network string, to netip.AddrPort) (string, error) {
	c, err := p.dial(network, to)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	return exchange(c)
}

func exchange(c net.Conn) (string, error) {
	buffer := make([]byte, 100)
	if err := c.SetDeadline(time.Now().Add(deadline)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	n, err := c.Read(buffer)
	return string(buffer[:n]), err
}

// expect asks until every one of the endpoints has answered; others must not.
func (p *place) expect(t testing.TB, network string, to netip.AddrPort, endpoints ...string) {
	t.Helper()
	seen := map[string]bool{}
	for range 1000 {
		got, err := p.ask(network, to)
		if err != nil {
			t.Fatalf("%s %s: %v", network, to, err)
		}
		if !strings.Contains(" "+strings.Join(endpoints, " ")+" ", " "+got+" ") {
			t.Fatalf("%s %s: %s answers, want one of %v", network, to, got, endpoints)
		}
		if seen[got] = true; len(seen) == len(endpoints) {
			return
		}
	}
	t.Fatalf("%s %s: in 1000 connections only %v answered, want %v", network, to, seen, endpoints)
}

// refuse expects that the frontend is not translated.
func (p *place) refuse(t testing.TB, network string, to netip.AddrPort) {
	t.Helper()
	c, err := p.dial(network, to)
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("%s %s: %v, want no route", network, to, err)
	}
}

// families and protocols, for loops.
func eachNetwork(t *testing.T, f func(t *testing.T, v6 bool, network string)) {
	for _, v6 := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			t.Run(fmt.Sprintf("%s%s", network, map[bool]string{false: "4", true: "6"}[v6]), func(t *testing.T) { f(t, v6, network) })
		}
	}
}
