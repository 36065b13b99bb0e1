package ebpf

import (
	"net"
	"net/netip"
	"testing"
)

func TestEveryFrontendIsTranslated(t *testing.T) {
	p := newPlace(t)
	n := newNode(t)
	n.set(spec{n: 1, endpoints: []int{1, 2, 3}})
	n.sync()
	eachNetwork(t, func(t *testing.T, v6 bool, network string) {
		for _, to := range []netip.AddrPort{
			at(clusterIP(v6, 1)), at(externalIP(v6, 1)), at(balancerIP(v6, 1)), netip.AddrPortFrom(nodeAddr(v6), nodePort(1)),
		} {
			p.expect(t, network, to, "1", "2", "3")
		}
	})
}

func TestWhatIsNotTranslated(t *testing.T) {
	p := newPlace(t)
	n := newNode(t)
	n.set(spec{n: 1, endpoints: []int{1}, ranges: []string{"10.0.0.0/8"}})
	n.set(spec{n: 2, notReady: []int{1}})
	n.sync()
	eachNetwork(t, func(t *testing.T, v6 bool, network string) {
		p.refuse(t, network, at(clusterIP(v6, 2)))                             // no endpoint
		p.refuse(t, network, at(clusterIP(v6, 3)))                             // no Service
		p.refuse(t, network, netip.AddrPortFrom(clusterIP(v6, 1), 81))         // no port
		p.expect(t, network, netip.AddrPortFrom(endpointIP(v6, 2), 8080), "2") // no frontend
		p.expect(t, network, at(clusterIP(v6, 1)), "1")                        // ranges are for the load balancer
		if !v6 {
			p.refuse(t, network, at(balancerIP(v6, 1)))
		}
	})
}

func TestTheFrontendIsWhatTheClientSees(t *testing.T) {
	p := newPlace(t)
	n := newNode(t)
	n.set(spec{n: 1, endpoints: []int{1}})
	n.sync()
	eachNetwork(t, func(t *testing.T, v6 bool, network string) {
		to := at(clusterIP(v6, 1))
		c := p.mustDial(t, network, to)
		if got := peer(t, c); got != to {
			t.Errorf("getpeername: %s, want %s", got, to)
		}
		direct := netip.AddrPortFrom(endpointIP(v6, 1), targetPort)
		if got := peer(t, p.mustDial(t, network, direct)); got != direct {
			t.Errorf("getpeername of a direct connection: %s, want %s", got, direct)
		}
		if network == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				t.Fatal(err)
			}
			_, from, err := c.(*net.UDPConn).ReadFromUDPAddrPort(make([]byte, 9))
			if err != nil || unmap(from) != to {
				t.Errorf("recvfrom: %s, %v, want %s", from, err, to)
			}
		}
	})
}
