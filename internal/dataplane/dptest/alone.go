package dptest

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"github.com/endpointd/endpointd/internal/model"
)

// aloneRows are run by themselves: they do to the proxiers what every row would notice.
func aloneRows() []testCase {
	return []testCase{
		{"an agent that starts again: no connection is lost, new or old", restart},
		{"what was removed while no agent ran is removed when it starts", func(c *Case) {
			c.set(plain, "a x")
			c.want("b node outside -> cluster = a x")
			c.Suite.mu.Lock()
			for _, v6 := range []bool{false, true} {
				c.in = c.in.WithoutSlice(c.Key().Namespace, sliceName(c.Key().Name, v6))
			}
			c.Suite.mu.Unlock()
			c.must(c.Restart(c.ctx))
			c.want("b node outside -> cluster refused")
			c.must(c.quiet(c.ctx))
		}},
	}
}

// restart closes the proxiers and starts others, with clients old and new.
func restart(c *Case) {
	c.set(sticky, "a b x y")
	outside := map[netip.AddrPort]string{}
	for _, v6 := range []bool{false, true} {
		to, err := c.Frontend("cluster", v6)
		c.must(err)
		outside[to], err = c.home(c.Outside, model.TCP, to, 1)
		c.must(err)
	}
	var conns []*Conn
	defer func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	for _, name := range []string{"b", "node", "outside"} {
		to, err := c.Frontend("lb", false)
		c.must(err)
		conn, err := c.Place(name).Dial(model.TCP, to, c.patience)
		c.must(err)
		conns = append(conns, conn)
	}
	stop := c.streams()
	defer stop()
	for range 5 {
		c.must(c.Restart(c.ctx))
		for _, conn := range conns {
			if _, err := conn.Ask(c.patience); err != nil {
				c.errorf("a connection that was open ended with the agent: %v", err)
			}
		}
		c.must(c.quiet(c.ctx))
	}
	stop()
	for to, was := range outside {
		home, err := c.home(c.Outside, model.TCP, to, 4)
		c.must(err)
		if home != was {
			c.errorf("the affinity of a client that was led to %s did not outlive the agent: now %s", was, home)
		}
	}
}

// damageRow is about what others do to what is in the kernel.
func damageRow(name string, damage func(ctx context.Context) error) testCase {
	return testCase{"repaired: " + name, func(c *Case) {
		c.set(plain, "a x")
		c.must(c.Node.Enter(func() error { return damage(c.ctx) }))
		repaired, err := c.verify(c.ctx)
		c.must(err)
		if !repaired {
			c.errorf("Verify says that there was nothing to repair")
		}
		c.want("b node outside -> cluster = a x", "b outside -> nodeport = a x")
		c.must(c.quiet(c.ctx))
	}}
}

// socketRows are about connections that are closed when what they lead to is gone, for a client that would hang otherwise.
func socketRows() []testCase {
	gone := func(protocol model.Protocol, change func(c *Case)) func(c *Case) {
		return func(c *Case) {
			c.set(plain, "a x")
			c.to("a")
			for _, client := range []*Place{c.Place("b"), c.Node} {
				for _, v6 := range []bool{false, true} {
					c.set(plain, "a")
					to, err := c.Frontend("cluster", v6)
					c.must(err)
					conn, err := client.Dial(protocol, to, c.patience)
					c.must(err)
					_, err = conn.Ask(c.patience)
					c.must(err)
					change(c)
					if _, err := conn.Listen(time.Now().Add(c.patience)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
						c.errorf("%s from %s to %s was not closed: %v", protocolName(protocol), client.Name, to, err)
					}
					c.must(conn.Close())
				}
			}
		}
	}
	return []testCase{
		{"sockets: an idle TCP connection to an endpoint that is gone is closed", gone(model.TCP, func(c *Case) { c.to("x") })},
		{"sockets: a connected UDP socket to an endpoint that left is closed", gone(model.UDP, func(c *Case) { c.to("a:notready x") })},
		{"sockets: a direct connection to an endpoint that left is nobody's business", func(c *Case) {
			c.set(plain, "a")
			conn, err := c.Place("b").Dial(model.TCP, netip.AddrPortFrom(c.Place("a").V4, c.Target()), c.patience)
			c.must(err)
			c.to("x")
			if _, err := conn.Ask(c.patience); err != nil {
				c.errorf("closed: %v", err)
			}
			c.must(conn.Close())
		}},
		{"sockets: a client that is masqueraded does not get the number of a NodePort for its port", func(c *Case) {
			// A server in a pod would answer to it, and with eBPF that is to dial the NodePort: the answer would go to an endpoint. 400 clients with
			// ports at random above 1,023 would all miss 2,768 NodePorts with a chance below 1 in 10^7.
			const first, last = 30000, 32767 // service-node-port-range
			c.set(plain, "a")
			for _, v6 := range []bool{false, true} {
				to, err := c.Frontend("cluster", v6)
				c.must(err)
				for range 400 {
					answer, err := c.Outside.Ask(model.UDP, to, c.patience)
					c.must(err)
					if port := answer.Seen.Port(); port >= first && port <= last {
						c.errorf("outside is seen as %s", answer.Seen)
						break
					}
				}
			}
		}},
		{"sockets: a pod that reaches its Service by way of itself sees itself, and no NAT is involved", func(c *Case) {
			c.set(plain, "a")
			to, err := c.Frontend("cluster", false)
			c.must(err)
			answer, err := c.Place("a").Ask(model.TCP, to, c.patience)
			if err != nil || answer.Seen.Addr() != c.Place("a").V4 {
				c.errorf("%v, %v", answer, err)
			}
		}},
	}
}

// conntrackRows are about UDP clients that keep their port: what conntrack remembers of them must not lead them to what is gone.
func conntrackRows() []testCase {
	moves := func(steps ...[2]string) func(c *Case) { // endpoints, who answers
		return func(c *Case) {
			c.serve("a", "b", "x", "y")
			c.set(plain, steps[0][0])
			clients := map[*Unconnected][]any{}
			for _, name := range []string{"c", "node", "z", "outside"} {
				for _, frontend := range []string{"cluster", "nodeport"} {
					for _, v6 := range []bool{false, true} {
						to, err := c.Frontend(frontend, v6)
						c.must(err)
						socket, err := c.Place(name).Unconnected(v6)
						c.must(err)
						clients[socket] = []any{name, to}
					}
				}
			}
			for _, step := range steps {
				c.to(step[0])
				c.must(c.Node.Enter(func() error { return c.options.Conntrack(c.ctx) }))
				for socket, who := range clients {
					to := who[1].(netip.AddrPort)
					timeout := c.patience
					if step[1] == "" {
						timeout = silence
					}
					answer, _, err := socket.Ask(to, timeout)
					if (step[1] == "") != (err != nil) || answer.Server != step[1] {
						c.errorf("with endpoints %q, the client %v is answered by %q, want %q: %v", step[0], who, answer.Server, step[1], err)
					}
				}
			}
			for socket := range clients {
				c.must(socket.Close())
			}
		}
	}
	return []testCase{
		{"conntrack: a UDP client goes where the endpoint is now", moves([2]string{"a", "a"}, [2]string{"x", "x"}, [2]string{"b", "b"}, [2]string{"a:notready x", "x"})},
		{"conntrack: a UDP client of a Service that had no endpoints", moves([2]string{"", ""}, [2]string{"a", "a"}, [2]string{"", ""}, [2]string{"x", "x"})},
		{"conntrack: a UDP client stays while its endpoint does", moves([2]string{"a", "a"}, [2]string{"a x", "a"}, [2]string{"a x b y", "a"}, [2]string{"a y", "a"})},
	}
}
