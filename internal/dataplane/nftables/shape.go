package nftables

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The shape of the table: all that never changes, however many Services there are. testdata/shape.golden shows it.

// A chain with its rules.
type chain struct {
	name  string
	hook  *hook // nil: others lead to it
	rules []rule
}

// A hook is where a chain is called from.
type hook struct {
	kind     string // "nat" or "filter"
	number   uint32
	priority int32
}

// A verdictElement leads from a class to a chain.
type verdictElement struct {
	set   setID
	class uint32
	code  int32
	chain string
}

// A shape is the static part of the table.
type shape struct {
	chains   []chain // those with hooks are last
	verdicts []verdictElement
	version  string // two tables of one version have the same sets, chains and rules
}

// Priorities. Ours translates before those of others at the usual -100 and 100, such as the host ports of pods: a frontend is the
// cluster's word for an address. What no one has translated is judged after them all.
const (
	dnatPriority   = -105
	snatPriority   = 95
	judgePriority  = -90
	filterPriority = 0
)

// A side is a kind of clients.
type side struct {
	name                        string
	class, pool, size, affinity register
	pick, remember              kind
}

func internal() side {
	return side{"internal", atInternalClass, atInternalPool, atInternalSize, atInternalAffinity, pickInternal, rememberInternal}
}

func external() side {
	return side{"external", atExternalClass, atExternalPool, atExternalSize, atExternalAffinity, pickExternal, rememberExternal}
}

func sides() [2]side { return [...]side{internal(), external()} }

// staticShape makes it; it's always the same. Not every kernel is built with the expression socket.
func staticShape(withSocket bool) shape {
	var s shape
	for _, f := range families() {
		s.translate(f)
		for _, side := range sides() {
			s.choose(f, side)
		}
		s.afterwards(f)
		s.untracked(f)
	}
	s.hooks()
	if withSocket {
		s.chains = append(s.chains, chain{socketChain, &hook{"filter", unix.NF_INET_LOCAL_IN, filterPriority}, []rule{
			{invalid(), join("socket exists", socketExists()), accept()},
			{invalid(), tcp(), drop()},
		}})
	}
	s.version = s.hash()
	return s
}

// outline is the shape without what its rules say, which is no longer needed when the kernel has them.
func (s shape) outline() *shape {
	s.chains = slices.Clone(s.chains)
	for i := range s.chains {
		s.chains[i].rules = make([]rule, len(s.chains[i].rules))
	}
	return &s
}

// socketChain is for what conntrack takes for invalid and is sent to this node, but to nobody here: a packet of an endpoint to a connection that was masqueraded.
// Were it let pass, this node would reset the connection.
const socketChain = "judge-input"

func invalid() part { return conntrackBit("ct state invalid", unix.NFT_CT_STATE, ctStateInvalid, true) }

// conntrackBit matches a bit of a state or status.
func conntrackBit(text string, key, bit uint32, has bool) part {
	return join(text, conntrack(key, 0), and(0, native32(bit)), compare32(0, !has, 0))
}

func (s *shape) add(name string, rules ...rule) {
	s.chains = append(s.chains, chain{name: name, rules: rules})
}

func (f family) chain(name string) string { return fmt.Sprintf("%s%d", name, f) }

// address loads the source or destination of a packet.
func (f family) address(source bool, to register) part {
	offset, size := uint32(24), uint32(16)
	if f == v4 {
		offset, size = 16, 4
	}
	if source {
		offset -= size
	}
	return payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, size, to)
}

func port(to register) part { return payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, to) }

// ip is what nft calls the header.
func (f family) ip() string {
	if f == v4 {
		return "ip"
	}
	return "ip6"
}

// dialled goes on if the packet goes to a frontend, with the frontend's data in the registers.
func (f family) dialled() part {
	n := f.registers()
	return join(fmt.Sprintf("%s daddr . meta l4proto . th dport map @%s", f.ip(), frontends.of(f).name()),
		f.address(false, 0), meta(unix.NFT_META_L4PROTO, n), port(n+1), translate(frontends.of(f), 0, 0))
}

// dialledFirst is the same by where the connection went before it was translated.
func (f family) dialledFirst() part {
	n, key := f.registers(), uint32(unix.NFT_CT_DST_IP6)
	if f == v4 {
		key = unix.NFT_CT_DST_IP
	}
	return join(fmt.Sprintf("ct original %s daddr . meta l4proto . ct original proto-dst map @%s", f.ip(), frontends.of(f).name()),
		conntrack(key, 0), meta(unix.NFT_META_L4PROTO, n), conntrack(unix.NFT_CT_PROTO_DST, n+1), translate(frontends.of(f), 0, 0))
}

// flag matches frontends that have one, or have not.
func flag(name string, bit uint32, has bool) part {
	text := "flags & " + name + " == 0"
	if has {
		text = "flags & " + name + " != 0"
	}
	return join(text, and(atFlags, native32(bit)), compare32(atFlags, !has, 0))
}

func (f family) sourceIn(k kind) part {
	return join(fmt.Sprintf("%s saddr @%s", f.ip(), k.of(f).name()), f.address(true, 0), member(k.of(f), 0))
}

func (f family) destinationIn(k kind) part {
	return join(fmt.Sprintf("%s daddr @%s", f.ip(), k.of(f).name()), f.address(false, 0), member(k.of(f), 0))
}

// translate has the chains that lead a new connection to the choice of an endpoint.
func (s *shape) translate(f family) {
	// Each lookup sees the elements of its own moment: if a change comes between that of the frontend and that of the slot, the slot may be gone. Then
	// the verdict's chain returns, and the second try sees the change.
	lead := rule{f.dialled(), join("entry vmap @"+entry.of(f).name(), dispatch(entry.of(f), atEntry))}
	s.add(f.chain("services"), lead, lead)
	s.add(f.chain("special"),
		rule{f.dialled(), flag("filtered", flagFiltered, true), jump(f.chain("filtered"))},
		rule{sourceIsLocal(), goTo(f.chain("internal"))},
		rule{f.sourceIn(clusterRanges), goTo(f.chain("internal"))},
		rule{goTo(f.chain("external"))},
	)
	var rules []rule
	n := f.registers()
	for length := f.size() * 8; length >= 0; length-- {
		mask := make([]byte, f.size())
		for i := range length {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		rules = append(rules, rule{
			join(fmt.Sprintf("%d . %s saddr/%d . %s daddr . meta l4proto . th dport @%s", length, f.ip(), length, f.ip(), sources.of(f).name()),
				immediate(0, native32(uint32(length))...), f.address(true, 1), and(1, mask), f.address(false, 1+n),
				meta(unix.NFT_META_L4PROTO, 1+2*n), port(2+2*n), member(sources.of(f), 0)), back(),
		})
	}
	s.add(f.chain("filtered"), append(rules, rule{drop()})...)
	s.verdicts = append(s.verdicts, verdictElement{entry.of(f), classSpecial, unix.NFT_JUMP, f.chain("special")})
}

// choose has the chains that choose an endpoint for one kind of clients.
func (s *shape) choose(f family, side side) {
	name, pick := f.chain(side.name), side.pick.of(f)
	s.add(name,
		rule{f.dialled(), join("affinity != 0", compare32(side.affinity, false, 0)), jump("sticky-" + name)},
		rule{f.dialled(), join("class vmap @"+pick.name(), dispatch(pick, side.class))},
	)
	client := join("pool . "+f.ip()+" saddr", f.address(true, side.pool+2))
	kept := join("map @"+affinity.of(f).name(), translate(affinity.of(f), side.pool, side.pool+2))
	valid := join("pool . it @"+stickyEndpoints.of(f).name(), member(stickyEndpoints.of(f), side.pool))
	s.add("sticky-"+name,
		rule{f.dialled(), client, kept, valid, f.dnat(side.pool+2, side.pool+2+f.registers())},
		rule{f.dialled(), client, join("delete @"+affinity.of(f).name(), dynset(affinity.of(f), dynsetDelete, side.pool, 0, 0))},
	)
	draw := func(n uint32) rule {
		return rule{
			f.dialled(), join(fmt.Sprintf("pool . numgen random mod %d map @%s", n, poolSlots.of(f).name()),
				random(n, side.size), translate(poolSlots.of(f), side.pool, 0)), f.dnat(0, f.registers()),
		}
	}
	class := func(class uint32, rules ...rule) {
		chain := fmt.Sprintf("pick-%s-%d", name, class)
		s.add(chain, rules...)
		s.lead(f, side, verdictElement{pick, class, unix.NFT_JUMP, chain})
	}
	for n := uint32(1); n <= maxExact; n++ {
		class(n, draw(n))
	}
	for power := uint32(2 * maxExact); power <= 1<<maxPower; power *= 2 {
		once := fmt.Sprintf("draw-%s-%d", name, power)
		s.add(once, draw(power))
		var rules []rule
		for range draws {
			rules = append(rules, rule{jump(once)})
		}
		class(power, append(rules, draw(power/2))...)
	}
	s.lead(f, side, verdictElement{pick, classDrop, verdictDrop, ""})
	s.add("remember-"+name, rule{f.dialledFirst(), join("affinity vmap @"+side.remember.of(f).name(), dispatch(side.remember.of(f), side.affinity))})
}

// lead adds a verdict of a side. Frontends that treat all clients alike go where the internal ones do, at once: by a map of its own, because the kernel
// would see a loop in one map for both.
func (s *shape) lead(f family, side side, v verdictElement) {
	s.verdicts = append(s.verdicts, v)
	if side.pick == pickInternal {
		v.set = entry.of(f)
		s.verdicts = append(s.verdicts, v)
	}
}

// afterwards has the chains for connections that were translated, and for those that were not and should have been.
func (s *shape) afterwards(f family) {
	s.add(f.chain("remember"),
		rule{sourceIsLocal(), goTo("remember-" + f.chain("internal"))},
		rule{f.sourceIn(clusterRanges), goTo("remember-" + f.chain("internal"))},
		rule{goTo("remember-" + f.chain("external"))},
	)
	sticky := rule{f.dialledFirst(), flag("sticky", flagSticky, true), jump(f.chain("remember"))}
	s.add(f.chain("received"), sticky)
	itself := join(fmt.Sprintf("%s saddr . %s daddr @%s", f.ip(), f.ip(), hairpins.of(f).name()),
		f.address(true, 0), f.address(false, f.registers()), member(hairpins.of(f), 0))
	s.add(f.chain("masquerade"),
		rule{join("meta oiftype loopback", meta(unix.NFT_META_OIFTYPE, 0), compare(0, true, native16(linkLoopback)...)), accept()},
		rule{itself, masquerade()},
		rule{f.sourceIn(podRanges), tcp(), highDestination(false), f.ownPorts(false)},
		rule{f.sourceIn(podRanges), tcp(), highDestination(true), f.ownPorts(true)},
		rule{f.sourceIn(podRanges), accept()},
		rule{f.dialledFirst(), flag("keep-source", flagKeepSource, false), masquerade()},
		rule{sourceIsLocal(), masquerade()},
		rule{f.sourceIn(clusterRanges), masquerade()},
	)
	ours := rule{f.dialledFirst(), goTo(f.chain("masquerade"))}
	s.add(f.chain("translated"), sticky, ours, ours) // twice: kernels before 6.18 may miss an element that is just being replaced
	// A client that is reset knows at once; ICMP is limited to a few a second for each client.
	reset := reject("reject with tcp reset", unix.NFT_REJECT_TCP_RST, 0)
	unreachable := reject("reject with icmpx port-unreachable", unix.NFT_REJECT_ICMPX_UNREACH, unix.NFT_REJECT_ICMPX_PORT_UNREACH)
	s.add(f.chain("refuse"), rule{tcp(), reset}, rule{unreachable})
	s.add(f.chain("unserved"),
		rule{f.dialled(), join("internal class reject", compare32(atInternalClass, true, classReject)), goTo(f.chain("refuse"))},
		rule{f.dialled(), join("external class reject", compare32(atExternalClass, true, classReject)), goTo(f.chain("refuse"))},
		rule{f.dialled(), drop()}, // it changes just now; the client tries again
		rule{f.destinationIn(addresses), goTo(f.chain("refuse"))},
		rule{f.destinationIn(serviceRanges), drop()},
	)
}

// native16 is what is stored of a number of 16 bits.
func native16(value uint16) []byte { return native32(uint32(value))[:2] }

// hooks has the chains that the kernel calls. Those for NAT see the first packet of a connection only.
func (s *shape) hooks() {
	is := func(f family) part {
		return join(fmt.Sprintf("meta nfproto ipv%d", f), meta(unix.NFT_META_NFPROTO, 0), compare(0, true, f.protocol()))
	}
	fresh := conntrackBit("ct state new", unix.NFT_CT_STATE, ctStateNew, true)
	translated := conntrackBit("ct status dnat", unix.NFT_CT_STATUS, ctStatusDNAT, true)
	untouched := conntrackBit("ct status ! dnat", unix.NFT_CT_STATUS, ctStatusDNAT, false)
	each := func(name, kind string, number uint32, priority int32, to string, parts ...part) {
		c := chain{name: name, hook: &hook{kind, number, priority}}
		for _, f := range families() {
			c.rules = append(c.rules, append(rule{is(f)}, append(parts, goTo(f.chain(to)))...))
		}
		s.chains = append(s.chains, c)
	}
	each("untracked", "filter", unix.NF_INET_PRE_ROUTING, rawPriority, "untracked")
	each("prerouting", "nat", unix.NF_INET_PRE_ROUTING, dnatPriority, "services")
	each("output", "nat", unix.NF_INET_LOCAL_OUT, dnatPriority, "services")
	each("postrouting", "nat", unix.NF_INET_POST_ROUTING, snatPriority, "translated", translated)
	each("input", "nat", unix.NF_INET_LOCAL_IN, snatPriority, "received", translated)
	for _, judge := range []struct {
		name   string
		number uint32
	}{{"judge-prerouting", unix.NF_INET_PRE_ROUTING}, {"judge-output", unix.NF_INET_LOCAL_OUT}} {
		each(judge.name, "filter", judge.number, judgePriority, "unserved", fresh, untouched)
		last := &s.chains[len(s.chains)-1] // the state first: it ends most packets' way
		for i, r := range last.rules {
			last.rules[i] = rule{r[1], r[2], r[0], r[3]}
		}
	}
	// What conntrack takes for invalid is not translated back, so a client would get an answer from somebody it does not know, and reset its connection.
	// Errors by ICMP about what is not tracked are invalid, too, and must arrive: the path's MTU is learned from them.
	s.chains = append(s.chains, chain{"forward", &hook{"filter", unix.NF_INET_FORWARD, filterPriority}, []rule{
		{invalid(), protocolIsNot("icmp", unix.IPPROTO_ICMP), protocolIsNot("ipv6-icmp", unix.IPPROTO_ICMPV6), drop()},
	}})
}

// timeoutChain is the chain that remembers for so many seconds which endpoint a client has; the one part of the table that comes and goes.
func timeoutChain(f family, side side, seconds uint32) chain {
	n, data := f.registers(), side.pool+2+f.registers()
	if data+n > 15 {
		data = 0
	}
	return chain{name: timeoutName(f, side, seconds), rules: []rule{{
		f.dialledFirst(), join(fmt.Sprintf("update @%s { pool . %s saddr timeout %ds : %s daddr . th dport }", affinity.of(f).name(), f.ip(), seconds, f.ip()),
			f.address(true, side.pool+2), f.address(false, data), port(data+n),
			dynset(affinity.of(f), unix.NFT_DYNSET_OP_UPDATE, side.pool, data, seconds)),
	}}}
}

func timeoutName(f family, side side, seconds uint32) string {
	return fmt.Sprintf("remember-%s-%d", f.chain(side.name), seconds)
}

func (s shape) String() string {
	var b strings.Builder
	for id := range setCount {
		l := id.kind().layout()
		fmt.Fprintf(&b, "set %s: %d → %d bytes, flags %#x, size %d\n", id.name(), id.width(l.key), id.width(l.data), l.flags, l.size)
	}
	for _, c := range s.chains {
		fmt.Fprintf(&b, "chain %s", c.name)
		if c.hook != nil {
			fmt.Fprintf(&b, ": type %s hook %d priority %d", c.hook.kind, c.hook.number, c.hook.priority)
		}
		b.WriteByte('\n')
		for _, r := range c.rules {
			fmt.Fprintf(&b, "\t%s\n", r)
		}
	}
	for _, v := range s.verdicts {
		fmt.Fprintf(&b, "element %s %s → %d %s\n", v.set.name(), className(v.class), v.code, v.chain)
	}
	return b.String()
}

func (s shape) hash() string {
	h := sha256.New()
	h.Write([]byte(s.String()))
	for _, c := range s.chains {
		for _, r := range c.rules {
			for _, p := range r {
				h.Write(p.code)
			}
		}
	}
	for _, f := range families() {
		for _, side := range sides() {
			for _, p := range timeoutChain(f, side, 1).rules[0] {
				h.Write(p.code)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
