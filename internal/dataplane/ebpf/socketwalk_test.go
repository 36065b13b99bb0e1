package ebpf

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
)

// A client is a connection through a Service, and to which endpoint it was led.
type client struct {
	net.Conn
	network           string
	service, endpoint int
}

// shouldClose says whether a connection has to end in a state of the Services 1, 2, ….
func (c *client) shouldClose(services []spec) bool {
	if c.network == "udp" {
		return !slices.Contains(services[c.service-1].endpoints, c.endpoint)
	}
	return !slices.ContainsFunc(services, func(s spec) bool {
		return slices.Contains(s.endpoints, c.endpoint) || slices.Contains(s.notReady, c.endpoint)
	})
}

// TestSocketWalk goes through random states, agents and numbers of notes. After each, those connections are closed that have to be, and no other.
func TestSocketWalk(t *testing.T) {
	for name, notes := range map[string]uint32{"with room for all notes": 64, "with room for few": 3} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			n := newNoteNode(t, func(o *Options) { o.first.used, o.Compare = notes, 1 })
			var open []*client
			closed := 0
			for range 20 {
				services := []spec{randomSpec(r, 1), randomSpec(r, 2)}
				for _, s := range services {
					n.set(s)
				}
				n.sync()
				if r.IntN(2) == 0 {
					n.settle()
				}
				was := len(open)
				open = slices.DeleteFunc(open, func(c *client) bool {
					if c.shouldClose(services) {
						aborted(t, c)
						return true
					}
					return false
				})
				closed += was - len(open)
				for range 2 {
					open = append(open, n.join(r, services)...)
				}
				switch r.IntN(4) {
				case 0:
					n.restart()
				case 1:
					_, err := n.Verify(t.Context())
					n.must(err)
				}
				n.settle()
				for _, c := range open {
					n.talks(c)
				}
				if t.Failed() {
					t.Fatalf("in state %+v", services)
				}
			}
			t.Logf("%d connections were closed, and %d stayed", closed, len(open))
			if closed == 0 {
				t.Error("no connection was closed")
			}
		})
	}
}

// randomSpec has a Service with some of four endpoints, ready or not.
func randomSpec(r *rand.Rand, number int) spec {
	s := spec{n: number}
	for endpoint := 1; endpoint <= 4; endpoint++ {
		switch r.IntN(4) {
		case 0:
		case 1:
			s.notReady = append(s.notReady, endpoint)
		default:
			s.endpoints = append(s.endpoints, endpoint)
		}
	}
	return s
}

// join is a new client of one of the Services, if that has an endpoint.
func (n *noteNode) join(r *rand.Rand, services []spec) []*client {
	n.t.Helper()
	s := services[r.IntN(len(services))]
	if len(s.endpoints) == 0 {
		return nil
	}
	c := &client{service: s.n, network: []string{"tcp", "udp"}[r.IntN(2)]}
	c.Conn = n.p.mustDial(n.t, c.network, at(clusterIP(r.IntN(2) == 0, s.n)))
	got, err := exchange(c)
	if err == nil {
		_, err = fmt.Sscan(got, &c.endpoint)
	}
	n.must(err)
	return []*client{c}
}
