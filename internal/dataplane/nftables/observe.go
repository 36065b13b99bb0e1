package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane/slots"
)

// An observation is what was found of a table.
type observation struct {
	exists bool
	// damage says what of its shape is not as this program makes it; "" if all is.
	damage string
	state  *state // nil if it's damaged
	// left is the state's table; if the damage is not in its elements, it is there nevertheless.
	left *slots.Table
}

// maxReads is how often tables are read again because they changed meanwhile.
const maxReads = 20

// observe reads a table back, as it was at one moment.
func (p *Proxier) observe(t tableName) (observation, error) {
	for range maxReads {
		before, err := p.generation()
		if err != nil {
			return observation{}, err
		}
		o, err := p.observeOnce(t)
		if errors.Is(err, errInterrupted) {
			continue
		} else if err != nil {
			return o, fmt.Errorf("read nftables table inet %s: %w", t, err)
		}
		after, err := p.generation()
		if err != nil || before == after {
			p.watch.heard = after // what comes later will be heard
			return o, err
		}
	}
	return observation{}, fmt.Errorf("read nftables table inet %s: %w", t, errInterrupted)
}

// generation counts what anybody has changed in this network namespace.
func (p *Proxier) generation() (uint32, error) {
	var generation uint32
	err := p.socket.ask(unix.NFT_MSG_GETGEN, 0, nil, func(_ uint16, body []byte) error {
		for kind, value := range attrs(body) {
			if n, ok := number(value, 4); ok && kind == unix.NFTA_GEN_ID {
				generation = uint32(n)
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read the generation of nftables: %w", err)
	}
	return generation, nil
}

func (p *Proxier) observeOnce(t tableName) (observation, error) {
	exists, damage, err := p.checkTable(t)
	if !exists || damage != "" || err != nil {
		return observation{exists: exists, damage: damage}, err
	}
	o := observation{exists: true, state: newState()}
	timeouts := map[uint32]int{} // seconds → elements that lead to a chain
	reader := elementReader{state: o.state, verdicts: map[verdictElement]bool{}, timeouts: timeouts}
	for s := range setCount {
		if s.kind() == affinity {
			continue // the clients' own
		}
		if err := p.readSet(t, s, &reader); err != nil {
			return o, err
		}
	}
	reader.finish()
	if reader.damage == "" {
		o.left = o.state.table
		for _, v := range p.shape.verdicts {
			if !reader.verdicts[v] {
				reader.damage = fmt.Sprintf("element %s of %s is gone", className(v.class), v.set.name())
			}
			delete(reader.verdicts, v)
		}
		if len(reader.verdicts) > 0 {
			reader.damage = "it leads to other chains than it should"
		}
	}
	if reader.damage == "" {
		reader.damage, err = p.checkChains(t, timeouts)
	}
	if reader.damage != "" {
		o.damage, o.state = reader.damage, nil
	}
	return o, err
}

// checkTable looks for a table of our shape.
func (p *Proxier) checkTable(t tableName) (exists bool, damage string, err error) {
	damage = "it is of another version"
	dormant := false
	err = p.askTable(t, func(body []byte) {
		exists = true
		for kind, value := range attrs(body) {
			switch {
			case kind == tableUserdata && len(value) > 2 && p.knows(text(value[2:])):
				damage = ""
			case kind == unix.NFTA_TABLE_FLAGS:
				flags, _ := number(value, 4)
				dormant = flags != 0
			}
		}
	})
	if dormant && damage == "" {
		damage = "somebody has set flags of it"
	}
	if errors.Is(err, unix.ENOENT) {
		return false, "", nil
	}
	return exists, damage, err
}

// askTable reads a table's own attributes; there's none if it is ENOENT.
func (p *Proxier) askTable(t tableName, each func(body []byte)) error {
	return p.socket.ask(unix.NFT_MSG_GETTABLE, 0, attrString(nil, unix.NFTA_TABLE_NAME, string(t)), func(_ uint16, body []byte) error {
		each(body)
		return nil
	})
}

// askChains reads the chains of a table.
func (p *Proxier) askChains(t tableName, each func(foundChain)) error {
	return p.socket.ask(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, nil, func(_ uint16, body []byte) error {
		if c := chainFrom(body); c.table == string(t) {
			each(c)
		}
		return nil
	})
}

// hooked says that packets come into a table: it is in force, right or wrong.
func (p *Proxier) hooked(t tableName) (yes bool, err error) {
	for range maxReads {
		err = p.askChains(t, func(c foundChain) { yes = yes || c.hook.kind != "" })
		if !errors.Is(err, errInterrupted) {
			break
		}
	}
	return yes, err
}

// knows says whether a table's comment is that of a shape that we make, and takes that shape for the one in force.
func (p *Proxier) knows(comment string) bool {
	if comment == commentOf(p.full.version) {
		p.shape = p.full
		return true
	}
	if p.small == nil {
		p.small = staticShape(false).outline()
	}
	if comment == commentOf(p.small.version) {
		p.shape = p.small
		return true
	}
	return false
}

// timeoutChains is how many chains a timeout has: for each family and side.
const timeoutChains = 4

// checkChains compares chains and rules. The kernel numbers rules as they are made, and the static ones are made together: so one that is gone, new
// or replaced is known by its number, without a look at what it does.
func (p *Proxier) checkChains(t tableName, timeouts map[uint32]int) (damage string, err error) {
	want := map[string]*chain{}
	for i := range p.shape.chains {
		want[p.shape.chains[i].name] = &p.shape.chains[i]
	}
	extra := map[string]bool{}
	for seconds, n := range timeouts {
		if n != timeoutChains {
			return fmt.Sprintf("affinity of %d s is not complete", seconds), nil
		}
		for _, f := range families() {
			for _, side := range sides() {
				extra[timeoutName(f, side, seconds)] = true
			}
		}
	}
	found := 0
	err = p.askChains(t, func(c foundChain) {
		found++
		switch w := want[c.name]; {
		case w == nil && !extra[c.name]:
			damage = "somebody added chain " + c.name
		case w != nil && w.hook != nil && (c.hook != *w.hook || c.policy != verdictAccept):
			damage = "somebody changed chain " + c.name
		}
	})
	if err == nil && damage == "" && found != len(want)+len(extra) {
		damage = "somebody deleted a chain"
	}
	if err != nil || damage != "" {
		return damage, err
	}
	return p.checkRules(t, extra)
}

func (p *Proxier) checkRules(t tableName, extra map[string]bool) (damage string, err error) {
	handles := map[string][]uint64{}
	request := attrString(nil, unix.NFTA_RULE_TABLE, string(t))
	err = p.socket.ask(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, request, func(_ uint16, body []byte) error {
		var name, table string
		var handle uint64
		for kind, value := range attrs(body) {
			switch kind {
			case unix.NFTA_RULE_TABLE:
				table = text(value)
			case unix.NFTA_RULE_CHAIN:
				name = text(value)
			case unix.NFTA_RULE_HANDLE:
				handle, _ = number(value, 8)
			}
		}
		if table == string(t) {
			handles[name] = append(handles[name], handle)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	var next uint64
	hooked := false
	for _, c := range p.shape.chains {
		got := handles[c.name]
		if len(got) != len(c.rules) {
			return fmt.Sprintf("chain %s has %d rules instead of %d", c.name, len(got), len(c.rules)), nil
		}
		for _, handle := range got {
			if c.hook != nil && !hooked {
				next, hooked = 0, true // they were made later than the others
			}
			if next != 0 && handle != next {
				return "somebody changed a rule of chain " + c.name, nil
			}
			next = handle + 1
		}
	}
	for name := range extra {
		if len(handles[name]) != 1 {
			return "somebody changed chain " + name, nil
		}
	}
	return "", nil
}

// A foundChain is one of anybody.
type foundChain struct {
	table, name string
	hook        hook
	policy      uint32
}

func chainFrom(b []byte) foundChain {
	var c foundChain
	for kind, value := range attrs(b) {
		switch kind {
		case unix.NFTA_CHAIN_TABLE:
			c.table = text(value)
		case unix.NFTA_CHAIN_NAME:
			c.name = text(value)
		case unix.NFTA_CHAIN_TYPE:
			c.hook.kind = text(value)
		case unix.NFTA_CHAIN_POLICY:
			n, _ := number(value, 4)
			c.policy = uint32(n)
		case unix.NFTA_CHAIN_HOOK:
			for kind, value := range attrs(value) {
				n, _ := number(value, 4)
				switch kind {
				case unix.NFTA_HOOK_HOOKNUM:
					c.hook.number = uint32(n)
				case unix.NFTA_HOOK_PRIORITY:
					c.hook.priority = int32(uint32(n)) //nolint:gosec // signed in the kernel
				}
			}
		}
	}
	return c
}

func (p *Proxier) readSet(t tableName, s setID, r *elementReader) error {
	request := attrString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, string(t))
	request = attrString(request, unix.NFTA_SET_ELEM_LIST_SET, s.name())
	err := p.socket.ask(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, request, func(_ uint16, body []byte) error {
		for kind, value := range attrs(body) {
			if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, value := range attrs(value) {
				e := elementFrom(value)
				e.set = s
				r.read(e)
			}
		}
		return nil
	})
	switch {
	case err == nil || errors.Is(err, errInterrupted):
		return err
	case errors.Is(err, unix.ENOENT): // an agent ended while it built the table
		r.damage = fmt.Sprintf("set %s is not there", s.name())
		return nil
	}
	return fmt.Errorf("set %s: %w", s.name(), err)
}

// An elementReader makes a state of elements. What it can't read is damage.
type elementReader struct {
	state    *state
	slots    []readSlot
	bounds   [rangeKinds][2][]bound // the second index is of the family
	verdicts map[verdictElement]bool
	timeouts map[uint32]int
	damage   string
}

type readSlot struct {
	slots.Slot
	addr netip.AddrPort
}

// A bound begins or ends an interval.
type bound struct {
	addr netip.Addr
	end  bool
}

func (r *elementReader) read(e element) {
	if !r.accept(e) {
		r.damage = fmt.Sprintf("set %s has an element that is none: %x", e.set.name(), e.key)
	}
}

func (r *elementReader) accept(e element) bool {
	f := e.set.family()
	switch e.set.kind() {
	case frontends:
		key, ok := frontendKeyOf(e.key, f)
		if ok {
			r.state.table.Frontends[key] = frontendOf(e.data)
		}
		return ok
	case poolSlots:
		if len(e.key) != 12 {
			return false
		}
		addr, ok := targetOf(e.data, f)
		slot := slots.Slot{Pool: slots.PoolID(binary.BigEndian.Uint64(e.key)), Index: binary.NativeEndian.Uint32(e.key[8:])}
		r.slots = append(r.slots, readSlot{slot, addr})
		return ok
	case stickyEndpoints:
		if len(e.key) != 8+f.size()+4 {
			return false
		}
		addr, ok := targetOf(e.key[8:], f)
		r.state.sticky[stickyEndpoint{slots.PoolID(binary.BigEndian.Uint64(e.key)), addr}] = 1
		return ok
	case sources:
		source, ok := sourceOf(e.key, f)
		if ok {
			r.state.table.AddSource(source)
		}
		return ok
	case hairpins, addresses:
		return r.address(e, f)
	case podRanges, clusterRanges, serviceRanges, untrackedRanges:
		addr, ok := netip.AddrFromSlice(e.key)
		if ok && len(e.key) == f.size() {
			bounds := &r.bounds[e.set.kind()-podRanges][e.set%2]
			*bounds = append(*bounds, bound{addr, e.end})
			return true
		}
		return false
	default:
		return r.verdict(e)
	}
}

func (r *elementReader) address(e element, f family) bool {
	size := f.size()
	if len(e.key) < size {
		return false
	}
	addr, _ := netip.AddrFromSlice(e.key[:size])
	if e.set.kind() == addresses {
		r.state.addresses[addr] = 1
		return len(e.key) == size
	}
	r.state.table.Hairpins[addr] = 1
	return len(e.key) == 2*size && string(e.key[size:]) == string(e.key[:size])
}

func (r *elementReader) verdict(e element) bool {
	if len(e.key) != 4 {
		return false
	}
	n := binary.NativeEndian.Uint32(e.key)
	switch e.set.kind() {
	case rememberInternal, rememberExternal:
		side := internal()
		if e.set.kind() == rememberExternal {
			side = external()
		}
		r.timeouts[n]++
		r.state.timeouts[n] = 1
		return e.code == unix.NFT_GOTO && e.chain == timeoutName(e.set.family(), side, n)
	default:
		r.verdicts[verdictElement{e.set, n, e.code, e.chain}] = true
		return true
	}
}

// finish fills in what needs all elements.
func (r *elementReader) finish() {
	for _, s := range r.slots {
		// Pools have no holes but where something was deleted; a slot far outside would take memory for what isn't there.
		if int64(s.Index) >= int64(len(r.slots)) || s.Index >= 1<<24 {
			r.damage = fmt.Sprintf("slot %d is outside of its pool", s.Index)
			return
		}
	}
	for _, s := range r.slots {
		r.state.table.SetSlot(s.Slot, s.addr)
	}
	for i := range r.bounds {
		for _, bounds := range r.bounds[i] {
			spans, ok := spansFrom(bounds)
			if !ok {
				r.damage = "intervals overlap"
			}
			r.state.ranges[i] = append(r.state.ranges[i], spans...)
		}
	}
}

// spansFrom is the inverse of [span.elements] for those of a set, in any order.
func spansFrom(bounds []bound) (spans []span, ok bool) {
	slices.SortFunc(bounds, func(a, b bound) int { return a.addr.Compare(b.addr) })
	ok = true
	for _, b := range bounds {
		inside := len(spans) > 0 && !spans[len(spans)-1].to.IsValid()
		switch {
		case b.end && inside && b.addr.Prev().IsValid():
			spans[len(spans)-1].to = b.addr.Prev()
		case b.end && !inside && b.addr.IsUnspecified(): // the kernel may begin with one
		case !b.end && !inside:
			spans = append(spans, span{from: b.addr})
		default:
			ok = false
		}
	}
	if n := len(spans); n > 0 && !spans[n-1].to.IsValid() {
		last := spans[n-1].from
		spans[n-1].to = lastOf(netip.PrefixFrom(last, 0))
	}
	return spans, ok
}

// otherName is the second name that a table can have: while one is in force the next is built under the other.
func (p *Proxier) otherName(t tableName) tableName {
	if first := tableName(p.options.Table); t != first {
		return first
	}
	return tableName(p.options.Table + nextSuffix)
}

const nextSuffix = "-b"
