package dptest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/model"
)

// An expectation is a line such as
//
//	b outside -> cluster = a x          each of them answers some of the connections, and nobody else
//	outside -> nodeport = a kept        and sees the client's own address
//	node -> lb ~ a x                    one of them answers all the connections
//	a -> cluster:81 refused             at once
//	a -> external dropped               no answer, and nobody says so
//	tcp a -> cluster = x                with TCP alone; also udp, ipv4, ipv6
//
// Without kept, the address that a server sees is what [expectation.wantSeen] says.
type expectation struct {
	clients   []string
	frontend  string
	verdict   string // = ~ refused dropped
	endpoints []string
	kept      bool
	protocols []model.Protocol
	families  []bool // IPv6?
}

func parseExpectation(line string) (expectation, error) {
	e := expectation{}
	left, right, ok := strings.Cut(line, "->")
	words := strings.Fields(right)
	if !ok || len(words) < 2 {
		return e, fmt.Errorf("expectation %q: want clients -> frontend verdict", line)
	}
	for word := range strings.FieldsSeq(left) {
		switch word {
		case "tcp":
			e.protocols = append(e.protocols, model.TCP)
		case "udp":
			e.protocols = append(e.protocols, model.UDP)
		case "ipv4", "ipv6":
			e.families = append(e.families, word == "ipv6")
		default:
			e.clients = append(e.clients, word)
		}
	}
	if e.protocols == nil {
		e.protocols = []model.Protocol{model.TCP, model.UDP}
	}
	if e.families == nil {
		e.families = []bool{false, true}
	}
	e.frontend, e.verdict = words[0], words[1]
	for _, word := range words[2:] {
		if word == "kept" {
			e.kept = true
		} else {
			e.endpoints = append(e.endpoints, word)
		}
	}
	switch e.verdict {
	case "=", "~":
		ok = len(e.endpoints) > 0
	case "refused", "dropped":
		ok = len(words) == 2
	default:
		ok = false
	}
	if !ok || len(e.clients) == 0 {
		return e, fmt.Errorf("expectation %q: no such verdict", line)
	}
	return e, nil
}

// want holds expectations, all of them at once, each for all its clients, families and protocols.
func (c *Case) want(lines ...string) {
	var wg sync.WaitGroup
	for _, line := range lines {
		e, err := parseExpectation(line)
		c.must(err)
		for _, name := range e.clients {
			client := c.Place(name)
			if client == nil {
				c.must(fmt.Errorf("expectation %q: no place %q", line, name))
			}
			for _, protocol := range e.protocols {
				for _, v6 := range e.families {
					to, err := c.Frontend(e.frontend, v6)
					c.must(err)
					wg.Go(func() {
						if err := c.holds(e, client, protocol, to); err != nil {
							c.errorf("%s (Service: {%s}, endpoints: %s): %s from %s to %s: %v", line, c.patch, c.slices, protocolName(protocol), name, to, err)
						}
					})
				}
			}
		}
	}
	wg.Wait()
	if len(c.failures) > 0 {
		runtime.Goexit() // what follows would fail too, slowly
	}
}

func protocolName(p model.Protocol) string {
	if p == model.UDP {
		return "UDP"
	}
	return "TCP"
}

// silence is how long a client waits for an answer that must not come. A machine that is so slow that it comes later hides a fault; it never makes one.
const silence = 250 * time.Millisecond

func (c *Case) holds(e expectation, client *Place, protocol model.Protocol, to netip.AddrPort) error {
	switch e.verdict {
	case "refused":
		answer, err := client.Ask(protocol, to, c.patience)
		if !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("not refused: %v, %v", answer, err) //nolint:errorlint // may be nil
		}
		return nil
	case "dropped":
		answer, err := client.Ask(protocol, to, silence)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("not dropped: %v, %v", answer, err) //nolint:errorlint // may be nil
		}
		return nil
	}
	return c.answers(e, client, protocol, to)
}

// answers asks until everybody has answered. That this takes more than 40 times as many connections as there are endpoints, with a fair choice,
// has a chance of less than 1 in 10^15; the fewest are so many that an endpoint too many is hardly missed in all the families and protocols.
func (c *Case) answers(e expectation, client *Place, protocol model.Protocol, to netip.AddrPort) error {
	fewest, most := 4+2*len(e.endpoints), 40*len(e.endpoints)
	if e.verdict == "~" {
		fewest, most = 10, 10
	}
	seen := map[string]int{}
	for i := 0; i < fewest || (len(seen) < len(e.endpoints) && i < most); i++ {
		answer, err := client.Ask(protocol, to, c.patience)
		if err != nil {
			return fmt.Errorf("connection %d, after %v: %w%s", i+1, seen, err, c.flows(to))
		}
		if !slices.Contains(e.endpoints, answer.Server) {
			return fmt.Errorf("connection %d, after %v: %s answered", i+1, seen, answer.Server)
		}
		if err := c.wantSeen(e, client, answer); err != nil {
			return fmt.Errorf("connection %d: %w", i+1, err)
		}
		seen[answer.Server]++
		if e.verdict == "~" && len(seen) > 1 {
			return fmt.Errorf("connection %d went elsewhere: %v", i+1, seen)
		}
	}
	if e.verdict == "=" && len(seen) < len(e.endpoints) {
		return fmt.Errorf("%d connections reached only %v", most, seen)
	}
	return nil
}

// flows are what conntrack of the node knows of a frontend, for somebody who wonders why nobody answers.
func (c *Case) flows(to netip.AddrPort) string {
	var found []string
	err := c.Node.Do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
		for line := range strings.Lines(string(table)) {
			fields := strings.Fields(line)
			if slices.Contains(fields, fmt.Sprintf("dport=%d", to.Port())) &&
				(slices.Contains(fields, "dst="+to.Addr().String()) || slices.Contains(fields, "dst="+to.Addr().StringExpanded())) {
				found = append(found, "\n\t"+strings.Join(fields, " "))
			}
		}
		return err
	})
	if err != nil {
		return ""
	}
	const most = 20
	return strings.Join(found[max(0, len(found)-most):], "")
}

// wantSeen holds the address that a server sees: that of the client if it is a pod of this node, for the answer comes back through the node; else one
// of the node's, for it would not. A pod that reaches itself may be seen as the node or, without NAT, as itself.
func (c *Case) wantSeen(e expectation, client *Place, answer Answer) error {
	seen := answer.Seen.Addr()
	v6 := seen.Is6()
	own := seen == client.Addr(v6)
	node := seen == c.Node.Addr(v6) || seen == Extra(v6)
	ok := node
	switch {
	case answer.Server == c.Node.Name && own: // it has come where it is going: there is no way back to mind
		ok = true
	case client == c.Node:
	case e.kept:
		ok = own
	case c.options.AnySource:
		ok = own || node
	case client.Name == answer.Server:
		ok = own || node
	case c.Here(client):
		ok = own
	}
	if !ok {
		return fmt.Errorf("%s saw %s", answer.Server, seen)
	}
	return nil
}
