package ebpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// aborted expects that a connection is closed under its owner's hands.
func aborted(t testing.TB, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("read: %v, want that the connection was aborted", err)
	}
}

func TestSocketsToWhatIsGoneAreClosed(t *testing.T) {
	here, there := newPlace(t), newPlace(t)
	var n *testNode
	here.do(t, func() error {
		n = newNode(t, func(o *Options) {
			o.Namespaces = func() []string { return []string{there.path, here.path, "/proc/0/ns/net"} }
		})
		return nil
	})
	for name, p := range map[string]*place{"in the node's namespace": here, "in a pod's": there} {
		t.Run(name, func(t *testing.T) {
			eachNetwork(t, func(t *testing.T, v6 bool, network string) {
				n.t = t
				n.set(spec{n: 1, endpoints: []int{1}})
				n.set(spec{n: 2, endpoints: []int{2}})
				n.sync()
				dial := func(to netip.AddrPort) net.Conn {
					c := p.mustDial(t, network, to)
					if _, err := exchange(c); err != nil {
						t.Fatal(err)
					}
					return c
				}
				gone, stays, direct := dial(at(clusterIP(v6, 1))), dial(at(clusterIP(v6, 2))), dial(netip.AddrPortFrom(endpointIP(v6, 1), targetPort))

				// Not ready is gone for UDP; TCP has time to finish.
				n.set(spec{n: 1, endpoints: []int{3}, notReady: []int{1}})
				n.sync()
				if network == "udp" {
					aborted(t, gone)
					gone = dial(at(clusterIP(v6, 1)))
				} else if _, err := exchange(gone); err != nil {
					t.Errorf("a connection to an endpoint that is not ready: %v", err)
				}
				n.set(spec{n: 1, endpoints: []int{4}})
				n.sync()
				aborted(t, gone)

				n.unset(1)
				n.sync()
				for who, c := range map[string]net.Conn{"another endpoint": stays, "the endpoint without the Service": direct} {
					if _, err := exchange(c); err != nil {
						t.Errorf("a connection to %s: %v", who, err)
					}
				}
				n.unset(2)
				n.sync()
				aborted(t, stays)
			})
		})
	}
}

func TestMappedSocketsAreClosed(t *testing.T) {
	p := newPlace(t)
	var n *testNode
	p.do(t, func() error { n = newNode(t); return nil })
	for name, kind := range map[string]int{"tcp": unix.SOCK_STREAM, "udp": unix.SOCK_DGRAM} {
		t.Run(name, func(t *testing.T) {
			n.set(spec{n: 1, endpoints: []int{1}})
			n.sync()
			var fd int
			p.do(t, func() (err error) {
				if fd, err = unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0); err != nil {
					return err
				}
				return errors.Join(
					unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}),
					unix.Connect(fd, toSockaddr(at(clusterIP(false, 1)), true)))
			})
			defer func() { _ = unix.Close(fd) }()
			n.unset(1)
			n.sync()
			if _, _, err := recvfrom(fd, make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("read: %v", err)
			}
		})
	}
}

// What is gone while no agent runs is closed by the next one.
func TestANewAgentCloses(t *testing.T) {
	p := newPlace(t)
	var n *testNode
	p.do(t, func() error { n = newNode(t); return nil })
	eachNetwork(t, func(t *testing.T, v6 bool, network string) {
		n.t = t
		n.set(spec{n: 1, endpoints: []int{1}})
		n.sync()
		c := p.mustDial(t, network, at(clusterIP(v6, 1)))
		p.do(t, func() error { n.restart(); return nil })
		n.set(spec{n: 1, endpoints: []int{2}})
		n.sync()
		aborted(t, c)
	})
}

// Whoever dials an endpoint that answers nothing, and leaves the pool, need not wait for two minutes.
func TestAConnectThatNobodyAnswersIsClosed(t *testing.T) {
	p := newPlace(t)
	var n *testNode
	p.do(t, func() error { n = newNode(t); return silence() })
	n.set(spec{n: 1, endpoints: []int{77}})
	n.sync()
	result := make(chan error)
	go func() {
		_, err := p.dial("tcp", at(clusterIP(false, 1)))
		result <- err
	}()
	for { // until the client has chosen
		sockets, err := n.translated(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(sockets) > 0 {
			break
		}
		yield()
	}
	n.set(spec{n: 1, endpoints: []int{1}, notReady: []int{77}})
	n.sync()
	if err := <-result; !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("dial: %v, want that the connection was aborted", err)
	}
}

// translated lists the sockets of TCP over IPv4 in the agent's namespace.
func (n *testNode) translated(*place) (sockets []socket, err error) {
	d, err := diagnose(n.closer.own)
	if err != nil {
		return nil, err
	}
	defer d.close()
	return d.connected(unix.AF_INET, unix.IPPROTO_TCP, n.maps.records.FD())
}

// A client that dials while endpoints change never waits for one that is gone.
func TestNoSocketSlipsThrough(t *testing.T) {
	p := newPlace(t)
	var n *testNode
	p.do(t, func() error { n = newNode(t); return nil })
	n.set(spec{n: 1, endpoints: []int{1}})
	n.sync()
	to := at(clusterIP(false, 1))
	found := make(chan net.Conn, 10000)
	stop := make(chan struct{})
	go func() {
		defer close(found)
		for range cap(found) {
			select {
			case <-stop:
				return
			default:
			}
			c, err := p.dial("udp", to)
			if err != nil {
				t.Error(err)
				return
			}
			found <- c
		}
	}()
	for len(found) < 50 {
		yield()
	}
	n.set(spec{n: 1, endpoints: []int{2}})
	n.sync()
	for after := len(found) + 50; len(found) < min(after, cap(found)); {
		yield()
	}
	close(stop)
	were := map[string]int{}
	for c := range found {
		defer func() { _ = c.Close() }()
		// Either closed soon, or led to the endpoint that is there: what answers is 2.
		end := time.Now().Add(deadline)
		for {
			got, err := exchange(c)
			if errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EDESTADDRREQ) { // what reading and what writing says
				were["closed"]++
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if got == "2" {
				were["led to the new endpoint"]++
				break
			}
			if time.Now().After(end) {
				t.Fatal("a socket still talks to the endpoint that is gone")
			}
			yield()
		}
	}
	t.Log(fmt.Sprint(were))
}

// silence has nobody answer for endpoint 77, nor say that there is none.
func silence() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "hole"
	hole := &netlink.Veth{LinkAttrs: attrs, PeerName: "end"}
	if err := netlink.LinkAdd(hole); err != nil {
		return err
	}
	end, err := netlink.LinkByName("end")
	if err != nil {
		return err
	}
	dst := &net.IPNet{IP: endpointIP(false, 77).AsSlice(), Mask: net.CIDRMask(32, 32)}
	return errors.Join(netlink.LinkSetUp(hole), netlink.LinkSetUp(end),
		netlink.RouteAdd(&netlink.Route{LinkIndex: hole.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}),
		netlink.NeighAdd(&netlink.Neigh{LinkIndex: hole.Attrs().Index, IP: dst.IP, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}, State: netlink.NUD_PERMANENT}))
}
