package dptest

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/endpointd/endpointd/internal/model"
)

// A testCase is one row of the table. It says what is so and what a client sees of it.
type testCase struct {
	name string
	run  func(c *Case)
}

// A Case is a row while it runs: it has a Service of its own. Its methods are for the goroutine of the row.
type Case struct {
	*Suite
	Numbered
	ctx      context.Context
	patience time.Duration

	patch, slices string   // as last set
	more          []string // names of slices beside those two

	mu       sync.Mutex // guards failures
	failures []string
	serving  map[*Place]func() error
}

// runCase returns what was wrong. What must happen has to happen before patience ends.
func (s *Suite) runCase(ctx context.Context, number int, row testCase, patience time.Duration) []string {
	c := &Case{Suite: s, Numbered: Numbered(number), ctx: ctx, patience: patience, serving: map[*Place]func() error{}}
	done := make(chan struct{})
	go func() { // Goexit ends a row
		defer close(done)
		defer c.end()
		row.run(c)
	}()
	<-done
	return c.failures
}

// end removes the Service and the servers.
func (c *Case) end() {
	c.clear()
	for _, stop := range c.serving {
		if err := stop(); err != nil {
			c.errorf("stop a server: %v", err)
		}
	}
}

// errorf says what is wrong.
func (c *Case) errorf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = append(c.failures, fmt.Sprintf(format, args...))
}

// must ends the row if there is an error.
func (c *Case) must(err error) {
	if err != nil {
		c.errorf("%v", err)
		runtime.Goexit()
	}
}

// set makes the Service what patch says, and its endpoints, see [Numbered.Service] and [Numbered.Slices]. When it returns, the proxiers have it.
func (c *Case) set(patch, endpoints string) {
	c.serve(podNames(endpoints)...)
	c.patch, c.slices = patch, endpoints
	c.must(c.Change(c.ctx, func(o *Objects) error { return o.Put(c.World, c.Numbered, patch, endpoints) }))
}

// add is for slices of another name, merged with a patch.
func (c *Case) add(name, endpoints, patch string) {
	c.more = append(c.more, name)
	texts, err := c.Slices(c.World, name, endpoints, patch)
	c.must(err)
	c.must(c.Change(c.ctx, func(o *Objects) error { return o.slices(c.Numbered, name, texts) }))
}

// to changes the endpoints alone.
func (c *Case) to(endpoints string) { c.set(c.patch, endpoints) }

// clear removes the Service and its endpoints.
func (c *Case) clear() {
	err := c.Change(context.WithoutCancel(c.ctx), func(o *Objects) error {
		for _, name := range c.more {
			o.withoutSlices(c.Numbered, name, false, true)
		}
		o.Delete(c.Numbered)
		return nil
	})
	if err != nil {
		c.errorf("remove the Service: %v", err)
	}
}

// down has this node know better about pods than the API.
func (c *Case) down(why model.Reason, pods ...string) {
	c.must(c.Change(c.ctx, func(o *Objects) error {
		for _, pod := range pods {
			o.in = o.in.WithDown(c.podUID(pod), why)
		}
		return nil
	}))
}

// up is its opposite.
func (c *Case) up(pods ...string) {
	c.must(c.Change(c.ctx, func(o *Objects) error {
		for _, pod := range pods {
			o.in = o.in.WithoutDown(c.podUID(pod))
		}
		return nil
	}))
}

// serve starts servers on the Service's target port.
func (c *Case) serve(names ...string) {
	for _, name := range names {
		place := c.Place(name)
		if place == nil {
			c.must(fmt.Errorf("no place %q", name))
		}
		if c.serving[place] != nil {
			continue
		}
		stop, err := place.Serve(c.Target())
		c.must(err)
		c.serving[place] = stop
	}
}

// Frontend is an address of the Service, or one that is none, by its name in an expectation:
//
//	cluster nodeport external lb    the Service's own
//	cluster:81                      with another port
//	extra                           the NodePort on an address of the node that is none for NodePorts
//	free                            in the range of ClusterIPs, but nobody's
func (n Numbered) Frontend(name string, v6 bool) (netip.AddrPort, error) {
	name, other, _ := strings.Cut(name, ":")
	port := uint16(Port)
	var addr netip.Addr
	switch name {
	case "cluster":
		addr = n.ClusterIP(v6)
	case "external":
		addr = n.ExternalIP(v6)
	case "lb":
		addr = n.LoadBalancerIP(v6)
	case "nodeport":
		addr, port = pick(v6, nodeV4, nodeV6), n.NodePort()
	case "extra":
		addr, port = Extra(v6), n.NodePort()
	case "free":
		addr = free(v6)
	default:
		return netip.AddrPort{}, fmt.Errorf("no frontend %q", name)
	}
	if other != "" {
		if _, err := fmt.Sscan(other, &port); err != nil {
			return netip.AddrPort{}, fmt.Errorf("port %q: %w", other, err)
		}
	}
	return netip.AddrPortFrom(addr, port), nil
}
