package server

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/testkit"
)

// dial is a UDP socket whose reads end in time.
func dial(t testing.TB, addr netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	packet, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return packet
}

func readMsg(t testing.TB, c net.Conn) *dns.Msg {
	t.Helper()
	buf := make([]byte, dns.MaxMsgSize)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(buf[:n]); err != nil {
		t.Fatalf("%x: %v", buf[:n], err)
	}
	return m
}

// TestManyClients has many clients ask different things at once, more than there are in a batch, of which some have to wait.
func TestManyClients(t *testing.T) {
	t.Parallel()
	f := newFakeForwarder(t)
	const clients, questions = 20, 60
	for i := range clients * questions {
		f.names[fmt.Sprintf("n%d.example.", i)] = []netip.Addr{netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})}
	}
	for _, batch := range []int{1, 3, maxBatch} {
		s := start(t, Options{Forwarder: f, batch: batch, Waiting: 2 * clients * questions})
		var group sync.WaitGroup
		for c := range clients {
			conn := dial(t, s.Addrs()[0])
			group.Go(func() {
				want := map[uint16]string{}
				for i := range questions {
					m, answer := question("web.ns.svc.cluster.test.", dns.TypeA), webAnswer
					if i%3 == 0 {
						n := c*questions + i
						name := fmt.Sprintf("n%d.example.", n)
						m, answer = question(name, dns.TypeA), "NOERROR "+name+" A "+f.names[name][0].String()
					}
					m.Id = uint16(i)
					want[m.Id] = answer
					if _, err := conn.Write(pack(t, m)); err != nil {
						t.Error(err)
					}
				}
				for range questions {
					r := readMsg(t, conn)
					wantBrief(t, r, want[r.Id])
					delete(want, r.Id)
				}
				if len(want) > 0 {
					t.Errorf("answered twice, and not at all: %v", want)
				}
			})
		}
		group.Wait()
	}
}

// TestMalformed sends what is no request among what is one: it is answered by what it deserves, and the others are answered.
func TestMalformed(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	conn := dial(t, s.Addrs()[0])
	good := pack(t, question("web.ns.svc.cluster.test.", dns.TypeA))
	response := append([]byte(nil), good...)
	response[2] |= 0x80
	silent := [][]byte{{}, {1}, good[:11], response, append(slices.Clip(good), make([]byte, maxRequest)...)}
	for _, p := range silent {
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range [][]byte{good[:len(good)-1], append(append([]byte(nil), good[:12]...), 0xc0, 12, 0, 1, 0, 1)} { // cut off, and pointing to itself
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
		if r := readMsg(t, conn); r.Rcode != dns.RcodeFormatError {
			t.Errorf("%x: %s", p, brief(r))
		}
	}
	if _, err := conn.Write(good); err != nil {
		t.Fatal(err)
	}
	wantBrief(t, readMsg(t, conn), webAnswer)
	if got := metric(t, s, "endpointd_dns_malformed_total"); int(got) != len(silent) {
		t.Errorf("%v packets counted as no request, want %d", got, len(silent))
	}
}

// TestTruncated asks for more than fits UDP: the client hears so, and gets all by TCP.
func TestTruncated(t *testing.T) {
	t.Parallel()
	own := netip.MustParsePrefix("127.0.0.2/32")
	s := start(t, Options{
		Listen: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:0")},
		UDPSize: func(a netip.Addr) int {
			if own.Contains(a) {
				return 1 << 20
			}
			return 0
		},
	})
	for _, c := range []struct {
		from  string
		size  uint16 // 0 without EDNS
		limit int
	}{{"127.0.0.1", 0, 512}, {"127.0.0.1", 4096, 512}, {"127.0.0.2", 0, 512}, {"127.0.0.2", 1232, 1232}, {"127.0.0.2", 65535, maxUDPReply}} {
		m := question("many.ns.svc.cluster.test.", dns.TypeA)
		if c.size > 0 {
			m.SetEdns0(c.size, false)
		}
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(c.from)}}
		conn, err := d.Dial("udp", fmt.Sprintf("127.0.0.1:%d", s.Addrs()[0].Port()))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write(pack(t, m)); err != nil {
			t.Fatal(err)
		}
		r := readMsg(t, conn)
		r.Compress = true
		if n := r.Len(); !r.Truncated || n > c.limit || n < c.limit-64 {
			t.Errorf("%s with %d: TC %v, %d octets, want %d", c.from, c.size, r.Truncated, n, c.limit)
		}
		if o := r.IsEdns0(); (o != nil) != (c.size > 0) || o != nil && o.UDPSize() != defaultReply {
			t.Errorf("%s with %d: OPT %v", c.from, c.size, o)
		}
	}
	tcp := askAt(t, fmt.Sprintf("127.0.0.1:%d", s.Addrs()[0].Port()), "tcp", question("many.ns.svc.cluster.test.", dns.TypeA))
	if tcp.Truncated || len(tcp.Answer) != fakeMany {
		t.Errorf("over TCP: TC %v, %d records", tcp.Truncated, len(tcp.Answer))
	}
}

// TestAddresses has each kind of address answer from where it was asked, which a connected socket of the client insists on.
func TestAddresses(t *testing.T) {
	t.Parallel()
	f := newFakeForwarder(t)
	for _, c := range []struct{ listen, dial, network string }{
		{"127.0.0.1:0", "127.0.0.1", "4"},
		{"[::1]:0", "::1", "6"},
		{"0.0.0.0:0", "127.0.0.1", "4"},
		{"0.0.0.0:0", "127.8.8.8", "4"},
		{"[::]:0", "::1", "6"},
	} {
		s := start(t, Options{Listen: []netip.AddrPort{netip.MustParseAddrPort(c.listen)}, Forwarder: f})
		addr := netip.AddrPortFrom(netip.MustParseAddr(c.dial), s.Addrs()[0].Port()).String()
		for _, network := range []string{"udp", "tcp"} {
			wantBrief(t, askAt(t, addr, network+c.network, question("web.ns.svc.cluster.test.", dns.TypeA)), webAnswer)
			f.mu.Lock()
			clear(f.cached) // so that it waits
			f.mu.Unlock()
			wantBrief(t, askAt(t, addr, network+c.network, question("www.example.", dns.TypeA)), "NOERROR www.example. A 192.0.2.1")
		}
	}
}

func TestSeveralAddresses(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("127.0.0.3:0"), netip.MustParseAddrPort("[::1]:0")}})
	for _, a := range s.Addrs() {
		wantBrief(t, askAt(t, a.String(), "udp", question("web.ns.svc.cluster.test.", dns.TypeA)), webAnswer)
	}
}

func TestAddressIsTaken(t *testing.T) {
	t.Parallel()
	first := start(t, Options{})
	for _, sockets := range []int{1, 2} {
		_, err := New(t.Context(), Options{Listen: first.Addrs(), Zone: newFakeZone(), Sockets: sockets})
		if err == nil || !strings.Contains(err.Error(), "another DNS server has "+first.Addrs()[0].String()) || !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%v", err)
		}
	}
	// Of another server that shares its UDP port with whoever wants.
	other, err := New(t.Context(), Options{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Zone: newFakeZone()})
	if err != nil {
		t.Fatal(err)
	}
	_ = other.endpoints[0].tcp.Close()
	defer other.Close()
	if _, err := New(t.Context(), Options{Listen: other.Addrs(), Zone: newFakeZone()}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a UDP port that is shared: %v", err)
	}
	if _, err := New(t.Context(), Options{Listen: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.77:0")}, Zone: newFakeZone()}); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("an address of nobody: %v", err)
	}
}

// TestFewAndMany goes from packets that come one at a time to many at once and back, some of them too long, and gets the same answers.
func TestFewAndMany(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
		s := start(t, Options{Listen: []netip.AddrPort{netip.MustParseAddrPort(addr)}, Sockets: 1})
		conn := dial(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.Addrs()[0].Port()))
		packet, answer := pack(t, question("web.ns.svc.cluster.test.", dns.TypeA)), make([]byte, 512)
		write := func(p []byte) {
			t.Helper()
			if _, err := conn.Write(p); err != nil {
				t.Fatal(err)
			}
		}
		long, tooLong := 0, append(slices.Clone(packet), make([]byte, maxRequest)...)
		for round, many := range []int{1, 1, 1, 50, 1, 3, 1, 2, 2, 1, 1} {
			for range many {
				write(packet)
			}
			if round%2 == 1 {
				write(tooLong)
				long++
			}
			for range many {
				n, err := conn.Read(answer)
				if err != nil {
					t.Fatalf("%s, round %d: %v", addr, round, err)
				}
				var m dns.Msg
				if err := m.Unpack(answer[:n]); err != nil {
					t.Fatal(err)
				}
				wantBrief(t, &m, webAnswer)
			}
		}
		testkit.Await(t, patience, func() error {
			if got := metric(t, s, "endpointd_dns_malformed_total"); int(got) != long {
				return fmt.Errorf("%s: %v packets were too long, want %d", addr, got, long)
			}
			return nil
		})
	}
}

// TestPartialSends has the kernel take fewer messages than it got, refuse one, and have no room.
func TestPartialSends(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for _, c := range []struct {
		name  string
		plan  []any // how many are taken, or why none is
		calls int
		lost  int
	}{
		{"all", []any{8}, 1, 0},
		{"some", []any{3, 4, 1}, 3, 0},
		{"one that cannot be reached", []any{3, unix.EHOSTUNREACH, 4}, 3, 1},
		{"the first and the last", []any{unix.EPERM, 6, unix.EMSGSIZE}, 3, 2},
		{"no room", []any{2, unix.EAGAIN}, 2, 6},
		{"no buffers after a bad one", []any{unix.EPERM, 2, unix.ENOBUFS}, 3, 6},
	} {
		b, err := newBatch(conn, 8, false)
		if err != nil {
			t.Fatal(err)
		}
		calls := 0
		b.sendAll = func(_ uintptr, messages []unix.Mmsghdr) (int, syscall.Errno) {
			step := c.plan[calls]
			calls++
			if errno, ok := step.(syscall.Errno); ok {
				return -1, errno
			}
			if len(messages) < step.(int) {
				t.Errorf("%s: %d messages are left", c.name, len(messages))
			}
			return step.(int), 0
		}
		for i := range 8 {
			b.queue(i, append(b.room()[:0], 1, 2, 3))
		}
		lost, err := b.flush()
		if err != nil || lost != c.lost || calls != c.calls {
			t.Errorf("%s: %d lost after %d calls, %v; want %d after %d", c.name, lost, calls, err, c.lost, c.calls)
		}
	}
}

// TestUnreachableClient has a client that is gone when it is answered: others do not notice.
func TestUnreachableClient(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Sockets: 1})
	for range 50 {
		conn := dial(t, s.Addrs()[0])
		if _, err := conn.Write(pack(t, question("web.ns.svc.cluster.test.", dns.TypeA))); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		wantBrief(t, ask(t, s, "udp", question("web.ns.svc.cluster.test.", dns.TypeA)), webAnswer)
	}
}

// TestEndWaitsForAnswers ends a server while a request waits: it is answered, if it is soon, and the end does not wait for ever.
func TestEndWaitsForAnswers(t *testing.T) {
	t.Parallel()
	for _, answered := range []bool{true, false} {
		for _, network := range []string{"udp", "tcp"} {
			f := newFakeForwarder(t)
			f.block = make(chan struct{})
			o := Options{Forwarder: f, Drain: time.Millisecond, Timeout: time.Hour}
			if answered {
				o.Drain = patience
			}
			s, stop := startUntil(t, o)
			conn, err := dns.DialTimeout(network, s.Addrs()[0].String(), patience)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(patience))
			if err := conn.WriteMsg(question("www.example.", dns.TypeA)); err != nil {
				t.Fatal(err)
			}
			testkit.Await(t, patience, func() error {
				if f.resolving() == 0 {
					return errors.New("not asked yet")
				}
				return nil
			})
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				stop()
			}()
			if answered {
				close(f.block)
				r, err := conn.ReadMsg()
				if err != nil || r.Rcode != dns.RcodeSuccess {
					t.Errorf("%s: %v, %v", network, r, err)
				}
			}
			<-stopped
			_ = conn.Close()
		}
	}
}
