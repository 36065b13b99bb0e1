package dptest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/endpointd/endpointd/internal/model"
)

// flowRows are about more than one packet.
func flowRows() []testCase {
	return []testCase{
		{"affinity: a client stays with its endpoint", func(c *Case) {
			c.set(sticky, "a b x y")
			c.want("c node z outside -> cluster ~ a b x y", "c node outside -> nodeport ~ a b x y", "outside -> lb ~ a b x y")
		}},
		{"affinity: it ends when the endpoint is not ready, and only then", affinityEnds},
		{"affinity: switched on and off while there are clients", func(c *Case) {
			for range 2 {
				c.set(plain, "a b x y")
				c.want("c node outside -> cluster = a b x y")
				c.set(sticky, "a b x y")
				c.want("c node outside -> cluster ~ a b x y", "outside -> nodeport ~ a b x y")
			}
		}},
		{"affinity: it ends when the client has made no connection for so long", affinityExpires},
		{"affinity and external policy Local", func(c *Case) {
			c.set("spec: {externalTrafficPolicy: Local, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 100}}}", "a b x")
			c.want("outside -> nodeport ~ a b kept", "c -> nodeport ~ a b x")
		}},
		{"the choice is fair", fair},
		{"a TCP connection outlives its endpoint's readiness", outlives},
		{"new connections never fail while endpoints come and go", stream},
		{"a packet that conntrack does not know does not reset a connection", invalid},
		{"a UDP socket that is not connected is answered by whom it asked", unconnected},
		{"a client's own address is what it asked for", func(c *Case) {
			c.set(plain, "x")
			for _, v6 := range []bool{false, true} {
				to, err := c.Frontend("cluster", v6)
				c.must(err)
				for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
					conn, err := c.Place("a").Dial(protocol, to, c.patience)
					c.must(err)
					remote, err := conn.Remote()
					c.must(errors.Join(err, conn.Close()))
					if remote != to {
						c.errorf("%s: getpeername says %s, want %s", protocolName(protocol), remote, to)
					}
				}
			}
		}},
	}
}

// each runs f for every protocol and family, at once.
func (c *Case) each(frontend string, f func(protocol model.Protocol, to netip.AddrPort) error) {
	var wg sync.WaitGroup
	for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
		for _, v6 := range []bool{false, true} {
			to, err := c.Frontend(frontend, v6)
			c.must(err)
			wg.Go(func() {
				if err := f(protocol, to); err != nil {
					c.errorf("%s to %s: %v", protocolName(protocol), to, err)
				}
			})
		}
	}
	wg.Wait()
}

// home is who answers a client, the same one n times.
func (c *Case) home(client *Place, protocol model.Protocol, to netip.AddrPort, n int) (string, error) {
	home := ""
	for range n {
		answer, err := client.Ask(protocol, to, c.patience)
		if err != nil {
			return "", fmt.Errorf("from %s: %w", client.Name, err)
		}
		if home != "" && answer.Server != home {
			return "", fmt.Errorf("%s was led to %s, then to %s", client.Name, home, answer.Server)
		}
		home = answer.Server
	}
	return home, nil
}

// affinityEnds takes one endpoint away after the other: whoever had it goes elsewhere, and nobody else does.
func affinityEnds(c *Case) {
	type who struct {
		client   string
		protocol model.Protocol
		to       netip.AddrPort
	}
	var mu sync.Mutex
	homes := map[who]string{}
	left := []string{"a", "b", "x", "y"}
	c.set(sticky, strings.Join(left, " "))
	for len(left) > 0 {
		for _, name := range []string{"c", "node", "outside"} {
			c.each("cluster", func(protocol model.Protocol, to netip.AddrPort) error {
				home, err := c.home(c.Place(name), protocol, to, 4)
				if err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				key := who{name, protocol, to}
				if was := homes[key]; was != home && slices.Contains(left, was) {
					return fmt.Errorf("%s was led to %s, then to %s, though only others went", name, was, home)
				}
				if !slices.Contains(left, home) {
					return fmt.Errorf("%s is led to %s, which is not ready", name, home)
				}
				homes[key] = home
				return nil
			})
		}
		gone := left[0]
		left = left[1:]
		c.to(gone + ":notready " + strings.Join(left, " "))
	}
	c.want("c node outside -> cluster refused")
}

// affinityExpires waits half a second longer than a timeout of one second, until one of the clients goes elsewhere. Nobody does with a chance of 1 in 6
// for each of 16 clients.
func affinityExpires(c *Case) {
	c.set("spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}}", "a b c x y z")
	homes := func() string {
		var mu sync.Mutex
		var found []string
		for _, client := range []*Place{c.Node, c.Outside, c.Peer, c.Place("a")} {
			c.each("cluster", func(protocol model.Protocol, to netip.AddrPort) error {
				home, err := c.home(client, protocol, to, 1)
				mu.Lock()
				defer mu.Unlock()
				found = append(found, fmt.Sprint(client.Name, protocolName(protocol), to, home))
				return err
			})
		}
		slices.Sort(found)
		return strings.Join(found, "\n")
	}
	first := homes()
	pause := time.NewTimer(1500 * time.Millisecond)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-c.ctx.Done():
	}
	if homes() == first {
		c.errorf("nobody was led elsewhere after the affinity's timeout")
	}
}

// fair counts who answers. With 300 connections to 3 endpoints, each has 100 with a standard deviation of 8; 50 has a chance below 1 in 10^9.
func fair(c *Case) {
	c.set(plain, "a b x")
	for _, client := range []*Place{c.Place("c"), c.Outside} {
		counts := map[string]int{}
		to, err := c.Frontend("cluster", false)
		c.must(err)
		for range 300 {
			answer, err := client.Ask(model.TCP, to, c.patience)
			c.must(err)
			counts[answer.Server]++
		}
		for _, name := range []string{"a", "b", "x"} {
			if counts[name] < 50 {
				c.errorf("from %s: %v answered", client.Name, counts)
			}
		}
	}
}

// outlives keeps connections open while what they lead to is taken out of the Service.
func outlives(c *Case) {
	c.set(plain, "a")
	var conns []*Conn
	defer func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	for _, client := range []string{"b", "node", "y", "outside"} {
		for _, frontend := range []string{"cluster", "nodeport"} {
			for _, v6 := range []bool{false, true} {
				to, err := c.Frontend(frontend, v6)
				c.must(err)
				conn, err := c.Place(client).Dial(model.TCP, to, c.patience)
				c.must(err)
				conns = append(conns, conn)
			}
		}
	}
	for _, endpoints := range []string{"a", "a:notready x", "a:terminating x", "a:gone x", "a:gone"} {
		c.to(endpoints)
		for _, conn := range conns {
			if answer, err := conn.Ask(c.patience); err != nil || answer.Server != "a" {
				c.errorf("with endpoints %s: %v, %v", endpoints, answer, err)
			}
		}
	}
}

// stream has clients connect without a pause while endpoints change: every connection is answered, and no packet is lost. Endpoints that are not used
// are terminating: one that is in no slice any more may have its connections closed.
func stream(c *Case) {
	c.set(plain, "a x")
	stop := c.streams()
	defer stop()
	for range 5 {
		for _, endpoints := range []string{"b x", "b y c", "c", "a b c x y z", "a x:notready y", "x:terminating", "a x"} {
			for _, pod := range c.Pods {
				if !slices.Contains(podNames(endpoints), pod.Name) {
					endpoints += " " + pod.Name + ":gone"
				}
			}
			c.to(endpoints)
		}
	}
}

// streams are clients that connect without a pause; stop waits until each has connected often enough, and says what failed.
func (c *Case) streams() (stop func()) {
	c.serve("a", "b", "c", "x", "y", "z")
	ctx, cancel := context.WithCancel(c.ctx)
	var wg sync.WaitGroup
	for i, name := range []string{"a", "y", "node", "outside"} {
		to, err := c.Frontend([]string{"cluster", "nodeport"}[i%2], i >= 2)
		c.must(err)
		wg.Go(func() {
			for n := 1; n <= 400 && (n < 100 || ctx.Err() == nil); n++ {
				if err := c.lossless(c.Place(name), to); err != nil {
					c.errorf("connection %d from %s to %s: %v", n, name, to, err)
					return
				}
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// lossless asks over TCP, and fails if a segment had to be sent again.
func (c *Case) lossless(client *Place, to netip.AddrPort) error {
	conn, err := client.Dial(model.TCP, to, c.patience)
	if err != nil {
		return err
	}
	_, err = conn.Ask(c.patience)
	again, infoErr := conn.Retransmits()
	if err = errors.Join(err, infoErr, conn.Close()); err == nil && again > 0 {
		err = fmt.Errorf("%d segments were lost", again)
	}
	return err
}

// unconnected sends with sendto, as DNS clients do.
func unconnected(c *Case) {
	c.set(plain, "a x")
	for _, client := range []*Place{c.Place("b"), c.Node, c.Outside} {
		for _, v6 := range []bool{false, true} {
			to, err := c.Frontend("cluster", v6)
			c.must(err)
			seen := map[string]int{}
			for i := 0; i < 60 && len(seen) < 2; i++ {
				answer, from, err := client.SendTo(to, c.patience)
				c.must(err)
				if from != to {
					c.errorf("from %s to %s: the answer is from %s", client.Name, to, from)
				}
				seen[answer.Server]++
			}
			if len(seen) < 2 {
				c.errorf("from %s to %s: only %v answered", client.Name, to, seen)
			}
		}
	}
}
