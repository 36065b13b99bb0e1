package nftables

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane/slots"
	"github.com/endpointd/endpointd/internal/model"
)

// Connections between pods that nobody translates need no conntrack, whose table can be full, and which costs them some of their rate: where eBPF leads
// the pods' sockets, that is nearly all. What is translated must be tracked both ways, and its answers go from pod to pod, too. They are told apart by
// their ports: a client takes one from 32768 on and servers have lower ones, while all that is translated between pods has both below, or both not:
// see [family.ownPorts], and package podnet for host ports.

const rawPriority = -300 // before conntrack, at -200

// untracked has the chain for a family.
func (s *shape) untracked(f family) {
	// The source port and the destination port are four bytes.
	const high = 0x80 // in the first byte of a port from 32768 on
	ports := func(text string, source, destination byte) part {
		return join(text, payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 4, 0), and(0, []byte{high, 0, high, 0}), compare(0, true, source, 0, destination, 0))
	}
	between := []part{f.sourceIn(untrackedRanges), f.destinationIn(untrackedRanges), notrack()}
	s.add(f.chain("untracked"),
		append(rule{tcp(), ports("th sport >= 32768 th dport < 32768", high, 0)}, between...),
		append(rule{tcp(), ports("th sport < 32768 th dport >= 32768", 0, high)}, between...),
	)
}

// untracked are the ranges of pods whose connections with each other are not tracked: none if others' rules may rest on conntrack, or if something in
// them has to be translated.
func untracked(n *model.Network, mistakable int, alone bool) []netip.Prefix {
	within := func(p netip.Prefix) bool { return slices.ContainsFunc(n.NodePodCIDRs, p.Overlaps) }
	if !alone || mistakable > 0 || slices.ContainsFunc(n.ServiceCIDRs, within) ||
		slices.ContainsFunc(n.NodePortAddrs, func(a netip.Addr) bool { return within(netip.PrefixFrom(a, a.BitLen())) }) {
		return nil
	}
	return n.NodePodCIDRs
}

// mistakableAfter counts the frontends whose address is among those of pods.
func (s *state) mistakableAfter(c *slots.Change, was, now *model.Snapshot) int {
	ranges := now.Network.NodePodCIDRs
	n := s.mistakable
	count := func(key model.FrontendKey, by int) {
		if slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(key.Addr) }) {
			n += by
		}
	}
	if n < 0 || was == nil || !slices.Equal(was.Network.NodePodCIDRs, ranges) {
		n = 0
		for key := range s.table.Frontends {
			count(key, 1)
		}
	}
	for _, f := range c.Frontends {
		if f.Was.Present {
			count(f.Key, -1)
		}
		if f.Now.Present {
			count(f.Key, 1)
		}
	}
	return n
}

// lookAround sees whether the rules in this network are our own alone. Others' may be about the state of connections, or translate them. It reports
// whether that is otherwise than before.
func (p *Proxier) lookAround() (changed bool, err error) {
	if !p.options.Untracked {
		return false, nil
	}
	first := tableName(p.options.Table)
	own := append([]string{string(first), string(p.otherName(first))}, p.options.Kin...)
	stranger := ""
	err = p.socket.askAbout(unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, nil, func(_ uint16, body []byte) error {
		for kind, value := range attrs(body) {
			if name := text(value); kind == unix.NFTA_TABLE_NAME && !slices.Contains(own, name) {
				stranger = "nftables table " + name
			}
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, file := range []string{"ip_tables_names", "ip6_tables_names"} { // what iptables has that is not nftables
		names, _ := os.ReadFile("/proc/thread-self/net/" + file) // without the module there is none
		if table, _, _ := strings.Cut(string(names), "\n"); table != "" {
			stranger = "iptables table " + table
		}
	}
	changed, p.alone = p.alone != (stranger == ""), stranger == ""
	switch {
	case changed && p.alone:
		p.log.Info("connections between pods pass conntrack by", "component", "nftables")
	case changed:
		p.log.Info("connections between pods are tracked, for others' rules may need that", "component", "nftables", "whose", stranger)
	}
	return changed, nil
}
