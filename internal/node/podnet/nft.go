package podnet

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The table, as nft would print it (the same once more for ip6):
//
//	table inet endpointd-pods {
//		set inside4    { type ipv4_addr; flags interval }                  # all pods and nodes
//		set hairpin4   { type ipv4_addr . ipv4_addr }                      # pod . the same pod, if it has host ports
//		map port4      { type inet_proto . inet_service : ipv4_addr . inet_service }
//		map address4   { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//		chain guard {
//			type filter hook prerouting priority raw
//			iifname "edp*" ip daddr 127.0.0.0/8 drop          # route_localnet must not open the node's own services
//			iifname "edp*" ip saddr 127.0.0.0/8 drop
//			iifname "edp*" ip6 saddr != fe80::/10 fib saddr . iif oif 0 drop   # a forged source; for IPv4 rp_filter does it
//		}
//		chain prerouting  { type nat hook prerouting priority dstnat; fib daddr type local jump host-ports }
//		chain output      { type nat hook output priority dstnat; fib daddr type local jump host-ports }
//		chain host-ports {
//			dnat ip to ip daddr . meta l4proto . th dport map @address4
//			dnat ip to meta l4proto . th dport map @port4
//		}
//		chain postrouting {
//			type nat hook postrouting priority srcnat
//			ip saddr . ip daddr @hairpin4 snat ip to <node>         # a pod that reached itself through its host port
//			ip saddr 127.0.0.0/8 oifname "edp*" snat ip to <node>   # the node, through 127.0.0.1
//			ip saddr <pod range> ip daddr != @inside4 masquerade
//			# what says that packets between pods were translated, for those whose ports do not say so may not be tracked
//			ct status dnat tcp dport < 32768 ip saddr @inside4 fib saddr type != local snat ip to ip saddr:1024-32767
//			ct status dnat tcp dport >= 32768 ip saddr @inside4 fib saddr type != local snat ip to ip saddr:32768-65535
//		}
//	}
//
// Chains are written anew at each start, in one transaction; sets and maps keep what is in them.

// familyTable is what exists once for each family.
type familyTable struct {
	v4                            bool
	inside, hairpin, port, byAddr *nftables.Set
}

func table() *nftables.Table {
	return &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
}

func (k *kernel) nft() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.WithNetNSFd(int(k.ns)))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return c, nil
}

// sets returns the sets of both families. Their numbers are given here because the library's own counter is shared by everybody.
func sets() [2]familyTable {
	t := table()
	make := func(id uint32, v4 bool) familyTable {
		suffix, addr := "6", nftables.TypeIP6Addr
		if v4 {
			suffix, addr = "4", nftables.TypeIPAddr
		}
		target := nftables.MustConcatSetType(addr, nftables.TypeInetService)
		return familyTable{
			v4:      v4,
			inside:  &nftables.Set{Table: t, ID: id + 1, Name: "inside" + suffix, KeyType: addr, Interval: true},
			hairpin: &nftables.Set{Table: t, ID: id + 2, Name: "hairpin" + suffix, KeyType: nftables.MustConcatSetType(addr, addr)},
			port: &nftables.Set{Table: t, ID: id + 3, Name: "port" + suffix, IsMap: true, DataType: target,
				KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)},
			byAddr: &nftables.Set{Table: t, ID: id + 4, Name: "address" + suffix, IsMap: true, DataType: target,
				KeyType: nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService)},
		}
	}
	return [2]familyTable{make(0, true), make(10, false)}
}

// setTable makes the table or brings that of an earlier run up to date.
func (k *kernel) setTable(c config) error {
	nft, err := k.nft()
	if err != nil {
		return err
	}
	t := nft.AddTable(table())
	families := sets()
	for _, f := range families {
		for _, set := range []*nftables.Set{f.inside, f.hairpin, f.port, f.byAddr} {
			if err := nft.AddSet(set, nil); err != nil {
				return fmt.Errorf("make nftables set %s: %w", set.Name, err)
			}
		}
	}
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		ch := nft.AddChain(&nftables.Chain{Table: t, Name: name, Type: kind, Hooknum: hook, Priority: priority})
		nft.FlushChain(ch)
		return ch
	}
	rule := func(ch *nftables.Chain, exprs ...[]expr.Any) {
		var all []expr.Any
		for _, e := range exprs {
			all = append(all, e...)
		}
		nft.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: all})
	}
	ports := chain("host-ports", "", nil, nil)
	guard := chain("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	prerouting := chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	output := chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	postrouting := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)

	loopback := netip.MustParsePrefix("127.0.0.0/8")
	rule(guard, linkIs(expr.MetaKeyIIFNAME), family(true), within(loopback, false), verdict(expr.VerdictDrop, ""))
	rule(guard, linkIs(expr.MetaKeyIIFNAME), family(true), within(loopback, true), verdict(expr.VerdictDrop, ""))
	rule(guard, linkIs(expr.MetaKeyIIFNAME), family(false), outside(netip.MustParsePrefix("fe80::/10")), noWayBack(), verdict(expr.VerdictDrop, ""))
	rule(prerouting, toLocal(), verdict(expr.VerdictJump, ports.Name))
	rule(output, toLocal(), verdict(expr.VerdictJump, ports.Name))
	for _, f := range families {
		rule(ports, family(f.v4), f.load(false, reg0), protocolPort(f.after(0), f.after(1)), f.dnat(f.byAddr))
		rule(ports, family(f.v4), protocolPort(reg0, reg1), f.dnat(f.port))
	}
	for _, prefix := range c.cidrs {
		f := families[1]
		from := netip.PrefixFrom(netip.IPv6Loopback(), 128)
		if prefix.Addr().Is4() {
			f, from = families[0], loopback
		}
		node := c.node.of(prefix.Addr())
		rule(postrouting, family(f.v4), f.load(true, reg0), f.load(false, f.after(0)), member(f.hairpin, false), snat(node))
		rule(postrouting, linkIs(expr.MetaKeyOIFNAME), family(f.v4), within(from, true), snat(node))
		rule(postrouting, family(f.v4), within(prefix, true), f.load(false, reg0), member(f.inside, true), []expr.Any{&expr.Masq{}})
		translated := func(high bool) [][]expr.Any {
			return [][]expr.Any{wasTranslated(), family(f.v4), tcpTo(high), f.load(true, reg0), member(f.inside, false), fromElsewhere(), f.ownPorts(high)}
		}
		rule(postrouting, translated(false)...)
		rule(postrouting, translated(true)...)
	}
	if err := k.wrote(nft.Flush()); err != nil {
		return fmt.Errorf("write nftables table %s: %w; the kernel needs nf_tables with nat and fib (Linux 5.13 or newer)", Table, err)
	}
	return nil
}

// hasTable says whether the table is there, judged by its last set.
func (k *kernel) hasTable() (bool, error) {
	nft, err := k.nft()
	if err != nil {
		return false, err
	}
	last := sets()[1].byAddr
	if _, err := nft.GetSetByName(last.Table, last.Name); errors.Is(err, unix.ENOENT) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look for nftables table %s: %w", Table, err)
	}
	return true, nil
}

// droppers names the chains of others that drop forwarded packets unless they say otherwise: pods would be cut off from other nodes. What
// legacy iptables has is not seen.
func (k *kernel) droppers() ([]string, error) {
	nft, err := k.nft()
	if err != nil {
		return nil, err
	}
	chains, err := nft.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	var names []string
	for _, c := range chains {
		if c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			names = append(names, c.Table.Name+" "+c.Name)
		}
	}
	return names, nil
}

// removeTable removes the table, also one that is not there.
func (k *kernel) removeTable() error {
	nft, err := k.nft()
	if err != nil {
		return err
	}
	nft.DelTable(nft.AddTable(table()))
	if err := k.wrote(nft.Flush()); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", Table, err)
	}
	return nil
}

// element is a host port in the kernel's words: a map with its element, and the element of the hairpin set.
type element struct {
	set     *nftables.Set
	element nftables.SetElement
}

func elementOf(f forward) element {
	t := sets()[1]
	if f.host.Addr().Is4() {
		t = sets()[0]
	}
	key := append([]byte{f.protocol, 0, 0, 0}, portBytes(f.host.Port())...)
	set := t.port
	if !f.host.Addr().IsUnspecified() {
		set = t.byAddr
		key = append(f.host.Addr().AsSlice(), key...)
	}
	return element{set, nftables.SetElement{Key: key, Val: append(f.target.Addr().AsSlice(), portBytes(f.target.Port())...)}}
}

// forwardOf is the inverse of elementOf.
func forwardOf(set *nftables.Set, e nftables.SetElement, v4 bool) (forward, bool) {
	size, host := 16, netip.IPv6Unspecified()
	if v4 {
		size, host = 4, netip.IPv4Unspecified()
	}
	key := e.Key
	if set.KeyType.Bytes > 8 {
		if len(key) < size {
			return forward{}, false
		}
		host, _ = netip.AddrFromSlice(key[:size])
		key = key[size:]
	}
	if len(key) < 6 || len(e.Val) < size+2 {
		return forward{}, false
	}
	target, _ := netip.AddrFromSlice(e.Val[:size])
	return forward{
		protocol: key[0],
		host:     netip.AddrPortFrom(host, binaryutil.BigEndian.Uint16(key[4:6])),
		target:   netip.AddrPortFrom(target, binaryutil.BigEndian.Uint16(e.Val[size:size+2])),
	}, true
}

// portBytes is a port in network order, padded to a register.
func portBytes(port uint16) []byte { return append(binaryutil.BigEndian.PutUint16(port), 0, 0) }

func hairpinOf(f forward) nftables.SetElement {
	addr := f.target.Addr().AsSlice()
	return nftables.SetElement{Key: append(slices.Clip(addr), addr...)}
}

func hairpinSet(f forward) *nftables.Set {
	if f.host.Addr().Is4() {
		return sets()[0].hairpin
	}
	return sets()[1].hairpin
}

// changePorts adds and removes host ports in one transaction. What is to be removed and is not there is no error.
func (k *kernel) changePorts(add, drop []forward) error {
	if len(add)+len(drop) == 0 {
		return nil
	}
	err := k.writePorts(add, drop)
	if len(drop) > 0 && errors.Is(err, unix.ENOENT) {
		err = nil // some are gone: each by itself, then
		for _, f := range drop {
			if one := k.writePorts(nil, []forward{f}); one != nil && !errors.Is(one, unix.ENOENT) {
				err = errors.Join(err, one)
			}
		}
		if err == nil && len(add) > 0 {
			err = k.writePorts(add, nil)
		}
	}
	if err != nil {
		return fmt.Errorf("write host ports: %w", err)
	}
	return nil
}

func (k *kernel) writePorts(add, drop []forward) error {
	nft, err := k.nft()
	if err != nil {
		return err
	}
	keep := map[netip.Addr]bool{} // pods whose hairpin element stays
	for _, f := range add {
		keep[f.target.Addr()] = true
	}
	gone := map[netip.Addr]bool{}
	for _, f := range drop {
		e := elementOf(f)
		if err := nft.SetDeleteElements(e.set, []nftables.SetElement{{Key: e.element.Key}}); err != nil {
			return err
		}
		if addr := f.target.Addr(); !keep[addr] && !gone[addr] {
			gone[addr] = true
			// Added first, so that it is there to be removed: another port of the pod may have removed it.
			if err := errors.Join(nft.SetAddElements(hairpinSet(f), []nftables.SetElement{hairpinOf(f)}),
				nft.SetDeleteElements(hairpinSet(f), []nftables.SetElement{hairpinOf(f)})); err != nil {
				return err
			}
		}
	}
	for _, f := range add {
		e := elementOf(f)
		if err := errors.Join(nft.SetAddElements(e.set, []nftables.SetElement{e.element}),
			nft.SetAddElements(hairpinSet(f), []nftables.SetElement{hairpinOf(f)})); err != nil {
			return err
		}
	}
	return k.wrote(nft.Flush())
}

// observePorts reads the host ports back.
func (k *kernel) observePorts() ([]forward, error) {
	nft, err := k.nft()
	if err != nil {
		return nil, err
	}
	var found []forward
	for _, f := range sets() {
		for _, set := range []*nftables.Set{f.port, f.byAddr} {
			elements, err := nft.GetSetElements(set)
			if err != nil {
				return nil, fmt.Errorf("read nftables map %s: %w", set.Name, err)
			}
			for _, e := range elements {
				if port, ok := forwardOf(set, e, f.v4); ok {
					found = append(found, port)
				}
			}
		}
	}
	return found, nil
}

// observeInside reads back where pods are seen with their own address.
func (k *kernel) observeInside() ([]addrRange, error) {
	nft, err := k.nft()
	if err != nil {
		return nil, err
	}
	var found []addrRange
	for _, f := range sets() {
		elements, err := nft.GetSetElements(f.inside)
		if err != nil {
			return nil, fmt.Errorf("read nftables set %s: %w", f.inside.Name, err)
		}
		found = append(found, rangesOf(elements)...)
	}
	return found, nil
}

// setInside changes where pods are seen with their own address, in one transaction.
func (k *kernel) setInside(have, wanted []addrRange) error {
	if slices.Equal(have, wanted) {
		return nil
	}
	nft, err := k.nft()
	if err != nil {
		return err
	}
	for _, f := range sets() {
		nft.FlushSet(f.inside)
		if elements := elementsOf(wanted, f.v4); len(elements) > 0 {
			if err := nft.SetAddElements(f.inside, elements); err != nil {
				return fmt.Errorf("write nftables set %s: %w", f.inside.Name, err)
			}
		}
	}
	if err := k.wrote(nft.Flush()); err != nil {
		return fmt.Errorf("write the ranges of pods and nodes: %w", err)
	}
	return nil
}

// elementsOf writes ranges as the kernel wants them: the first address, and as the end the one after the last.
func elementsOf(ranges []addrRange, v4 bool) []nftables.SetElement {
	var elements []nftables.SetElement
	for _, r := range ranges {
		if r.from.Is4() != v4 {
			continue
		}
		elements = append(elements, nftables.SetElement{Key: r.from.AsSlice()})
		if end := r.to.Next(); end.IsValid() {
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return elements
}

// rangesOf is the inverse of elementsOf, for the elements of one family in any order.
func rangesOf(elements []nftables.SetElement) []addrRange {
	slices.SortFunc(elements, func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	var ranges []addrRange
	for i, e := range elements {
		from, ok := netip.AddrFromSlice(e.Key)
		if !ok || e.IntervalEnd {
			continue
		}
		to := lastOf(netip.PrefixFrom(from, 0))
		if i+1 < len(elements) {
			if next, ok := netip.AddrFromSlice(elements[i+1].Key); ok {
				to = next.Prev()
			}
		}
		ranges = append(ranges, addrRange{from, to})
	}
	return ranges
}
