package podnet

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// dump is the whole network of a place as text.
func (p *place) dump(t testing.TB) []string {
	t.Helper()
	var lines []string
	p.do(t, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			lines = append(lines, fmt.Sprintf("link %s %s mtu %d %s", l.Attrs().Name, l.Attrs().HardwareAddr, l.Attrs().MTU, l.Attrs().Flags))
		}
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			lines = append(lines, fmt.Sprintf("addr %s %d", a.IPNet, a.LinkIndex))
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			lines = append(lines, "route "+r.String())
		}
		rules, err := netlink.RuleList(netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, r := range rules {
			lines = append(lines, "rule "+r.String())
		}
		neighbours, err := netlink.NeighList(0, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, n := range neighbours {
			if n.State == netlink.NUD_PERMANENT {
				lines = append(lines, "neighbour "+n.String())
			}
		}
		rulesets, err := dumpTables()
		lines = append(lines, rulesets...)
		return err
	})
	slices.Sort(lines)
	return lines
}

// dumpTables is what nftables has in the thread's namespace: tables, the number of rules of each chain, elements of sets.
func dumpTables() ([]string, error) {
	nft, err := nftables.New()
	if err != nil {
		return nil, err
	}
	var lines []string
	chains, err := nft.ListChains()
	if err != nil {
		return nil, err
	}
	for _, chain := range chains {
		rules, err := nft.GetRules(chain.Table, chain)
		if err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("chain %s %s has %d rules", chain.Table.Name, chain.Name, len(rules)))
	}
	tables, err := nft.ListTables()
	if err != nil {
		return nil, err
	}
	for _, table := range tables {
		lines = append(lines, fmt.Sprintf("table %s %d", table.Name, table.Family))
		sets, err := nft.GetSets(table)
		if err != nil {
			return nil, err
		}
		for _, set := range sets {
			elements, err := nft.GetSetElements(set)
			if err != nil {
				return nil, err
			}
			for _, e := range elements {
				lines = append(lines, fmt.Sprintf("element %s %s %v %v %v", table.Name, set.Name, e.Key, e.Val, e.IntervalEnd))
			}
		}
	}
	return lines, nil
}

func sameDump(t testing.TB, before, after []string) {
	t.Helper()
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the network differs (-before +after):\n%s", diff)
	}
}
