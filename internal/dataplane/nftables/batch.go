package nftables

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane"
)

// An order is one message of a batch.
type order struct {
	kind, flags uint16
	body        []byte
	what        string // for errors; of elements it is found out
}

// orderHeader is about what a message needs beside its body.
const orderHeader = messageHeader + 4

func (t tableName) newTable(version string) order {
	b := attrString(nil, unix.NFTA_TABLE_NAME, string(t))
	b = attr32(b, unix.NFTA_TABLE_FLAGS, 0)
	b = attr(b, tableUserdata, comment(commentOf(version))...)
	return order{unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE | unix.NLM_F_EXCL, b, "create the table"}
}

func commentOf(version string) string { return "endpointd, shape " + version }

// removeTable is two orders: the first makes the table, so that it is no error if there is none.
func (t tableName) removeTable() []order {
	b := attrString(nil, unix.NFTA_TABLE_NAME, string(t))
	return []order{
		{unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, b, "find the table"},
		{unix.NFT_MSG_DELTABLE, 0, b, "delete the table"},
	}
}

// A tableName is the table of an order.
type tableName string

func (t tableName) newSet(s setID) order {
	l := s.kind().layout()
	flags := l.flags
	b := attrString(nil, unix.NFTA_SET_TABLE, string(t))
	b = attrString(b, unix.NFTA_SET_NAME, s.name())
	b = attr32(b, unix.NFTA_SET_KEY_TYPE, s.datatype(l.key))
	b = attr32(b, unix.NFTA_SET_KEY_LEN, uint32(s.width(l.key)))
	if len(l.data) > 0 {
		flags |= unix.NFT_SET_MAP
		b = attr32(b, unix.NFTA_SET_DATA_TYPE, s.datatype(l.data))
		b = attr32(b, unix.NFTA_SET_DATA_LEN, uint32(s.width(l.data)))
	}
	b = attr32(b, unix.NFTA_SET_FLAGS, flags)
	b = attr32(b, unix.NFTA_SET_ID, uint32(s)+1)
	if l.size > 0 {
		var at int
		b, at = open(b, unix.NFTA_SET_DESC|nested)
		b = shut(attr32(b, unix.NFTA_SET_DESC_SIZE, l.size), at)
	}
	return order{unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, b, "create set " + s.name()}
}

// datatype is how nft shows fields: the kernel doesn't use it. A concatenation has 6 bits for each.
func (s setID) datatype(fields []field) uint32 {
	const (
		integer, ipv4, ipv6, protocol, service, mark = 4, 7, 8, 12, 13, 19
	)
	var t uint32
	for _, f := range fields {
		switch f {
		case fieldVerdict:
			return typeVerdict
		case fieldAddr:
			t = t<<6 | ipv4 + uint32(s.family()-v4)/2
		case fieldProtocol:
			t = t<<6 | protocol
		case fieldPort:
			t = t<<6 | service
		case fieldPool:
			t = t<<12 | mark<<6 | mark
		default:
			t = t<<6 | mark
		}
	}
	if s.kind() == frontends && len(fields) > 3 {
		return integer // more than a concatenation can say
	}
	return t
}

func (t tableName) newChain(c chain) order {
	b := attrString(nil, unix.NFTA_CHAIN_TABLE, string(t))
	b = attrString(b, unix.NFTA_CHAIN_NAME, c.name)
	if c.hook != nil {
		var at int
		b, at = open(b, unix.NFTA_CHAIN_HOOK|nested)
		b = attr32(b, unix.NFTA_HOOK_HOOKNUM, c.hook.number)
		b = shut(attr32(b, unix.NFTA_HOOK_PRIORITY, uint32(c.hook.priority)), at) //nolint:gosec // signed for the kernel
		b = attr32(b, unix.NFTA_CHAIN_POLICY, verdictAccept)
		b = attrString(b, unix.NFTA_CHAIN_TYPE, c.hook.kind)
	}
	return order{unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, b, "create chain " + c.name}
}

func (t tableName) deleteChain(name string) order {
	b := attrString(nil, unix.NFTA_CHAIN_TABLE, string(t))
	return order{unix.NFT_MSG_DELCHAIN, 0, attrString(b, unix.NFTA_CHAIN_NAME, name), "delete chain " + name}
}

func (t tableName) newRules(c chain) []order {
	orders := make([]order, 0, len(c.rules))
	for _, r := range c.rules {
		b := attrString(nil, unix.NFTA_RULE_TABLE, string(t))
		b = attrString(b, unix.NFTA_RULE_CHAIN, c.name)
		b, at := open(b, unix.NFTA_RULE_EXPRESSIONS|nested)
		for _, p := range r {
			b = append(b, p.code...)
		}
		b = shut(b, at)
		text := r.String()
		if strings.Contains(text, "map @") {
			b = attr(b, unix.NFTA_RULE_USERDATA, comment(text)...)
		}
		orders = append(orders, order{unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE | unix.NLM_F_APPEND, b, "add rule " + c.name + " " + text})
	}
	return orders
}

// comment is as nft keeps one: type 0, length, text. It says in a listing what nft itself can't: that a register is of a map's data.
func comment(text string) []byte {
	const longest = 127
	text = text[:min(len(text), longest)] + "\x00"
	return append([]byte{0, byte(len(text))}, text...)
}

// flushSet deletes all elements.
func (t tableName) flushSet(s setID) order {
	b := attrString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, string(t))
	return order{unix.NFT_MSG_DELSETELEM, 0, attrString(b, unix.NFTA_SET_ELEM_LIST_SET, s.name()), "flush set " + s.name()}
}

// An element of a set or map.
type element struct {
	set       setID
	key, data []byte
	end       bool // of an interval: the first key that is not in it
	leads     bool // the data is a verdict: code and chain
	code      int32
	chain     string
}

func (e element) append(b []byte) []byte {
	b, at := open(b, unix.NFTA_LIST_ELEM|nested)
	b, key := open(b, unix.NFTA_SET_ELEM_KEY|nested)
	b = shut(attr(b, unix.NFTA_DATA_VALUE, e.key...), key)
	if e.end {
		b = attr32(b, unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
	}
	switch {
	case e.leads:
		b, data := open(b, unix.NFTA_SET_ELEM_DATA|nested)
		return shut(shut(append(b, verdictData(e.code, e.chain)...), data), at)
	case e.data != nil:
		b, data := open(b, unix.NFTA_SET_ELEM_DATA|nested)
		return shut(shut(attr(b, unix.NFTA_DATA_VALUE, e.data...), data), at)
	}
	return shut(b, at)
}

// A list of elements of one set, in as many messages as it takes.
type list struct {
	full []order
	body []byte
	at   int // where the elements begin
}

// A writer collects orders and sends them: in one batch, or, if they are too many, in several in the order in which they came; but within each,
// deletions of elements precede additions. The first error sticks.
type writer struct {
	table  tableName
	max    int
	send   func([]order) error
	before []order
	gone   [setCount]list
	come   [setCount]list
	after  []order
	size   int
	err    error
}

func (w *writer) grow(n int) {
	if w.size += n; w.size > w.max*3/4 {
		w.flush()
	}
}

// first adds orders that come before all elements of their batch.
func (w *writer) first(orders ...order) {
	for _, o := range orders {
		w.grow(len(o.body) + orderHeader)
		w.before = append(w.before, o)
	}
}

// last adds an order that comes after them.
func (w *writer) last(orders ...order) {
	for _, o := range orders {
		w.grow(len(o.body) + orderHeader)
		w.after = append(w.after, o)
	}
}

func (l *list) add(w *writer, e element, kind, flags uint16) int {
	before := len(l.body)
	if l.body == nil {
		l.body = attrString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, string(w.table))
		l.body = attrString(l.body, unix.NFTA_SET_ELEM_LIST_SET, e.set.name())
		l.body, l.at = open(l.body, unix.NFTA_SET_ELEM_LIST_ELEMENTS|nested)
	}
	l.body = e.append(l.body)
	grown := len(l.body) - before
	if len(l.body)-l.at > maxList {
		l.finish(kind, flags)
	}
	return grown
}

func (l *list) finish(kind, flags uint16) {
	if l.body != nil {
		l.full = append(l.full, order{kind, flags, shut(l.body, l.at), ""})
		l.body = nil
	}
}

// replace writes an element: was says that the key is there, now that it is to be.
func (w *writer) replace(e element, was, now bool) {
	size := 0
	if was {
		gone := e
		gone.data, gone.leads = nil, false
		size += w.gone[e.set].add(w, gone, unix.NFT_MSG_DELSETELEM, 0)
	}
	if now {
		size += w.come[e.set].add(w, e, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	}
	w.grow(size)
}

// flush sends what there is.
func (w *writer) flush() {
	orders := w.before
	for s := range w.gone {
		w.gone[s].finish(unix.NFT_MSG_DELSETELEM, 0)
		orders = append(orders, w.gone[s].full...)
		w.gone[s] = list{}
	}
	for s := range w.come {
		w.come[s].finish(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
		orders = append(orders, w.come[s].full...)
		w.come[s] = list{}
	}
	orders = append(orders, w.after...)
	w.before, w.after, w.size = nil, nil, 0
	if len(orders) > 0 && w.err == nil {
		w.err = w.send(orders)
	}
}

// encode makes a batch of orders: its bytes, and where each order is in them.
func encode(orders []order) (batch []byte, at []int) {
	size := 4 * messageHeader
	for _, o := range orders {
		size += len(o.body) + orderHeader
	}
	batch = raw(make([]byte, 0, size), unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	for i, o := range orders {
		at = append(at, len(batch))
		flags := o.flags
		if i == len(orders)-1 {
			flags |= unix.NLM_F_ACK
		}
		batch = message(batch, o.kind, flags, uint32(i)+1, o.body)
	}
	return raw(batch, unix.NFNL_MSG_BATCH_END, 0, uint32(len(orders))+1, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil), at
}

// A refusal is what the kernel didn't like of a batch. Nothing of it is in force.
type refusal struct {
	table      tableName
	orders     []order
	complaints []complaint
	blamed     []element // what each complaint is about, if it is an element
	named      []string  // the same in words
}

func newRefusal(t tableName, orders []order, batch []byte, at []int, complaints []complaint) error {
	r := &refusal{table: t, orders: orders, complaints: complaints}
	for _, c := range complaints {
		e := blamed(orders, batch, at, c)
		r.blamed, r.named = append(r.blamed, e), append(r.named, nameOf(orders, c, e))
	}
	if f := r.unsupported(); f != "" {
		return &dataplane.UnsupportedError{Feature: f, MinKernel: minKernel, Why: r}
	}
	return r
}

// minKernel has everything that the table needs.
const minKernel = "5.13"

// maxNamed complaints are told.
const maxNamed = 3

func (r *refusal) Error() string {
	var lines []string
	for i, c := range r.complaints[:min(len(r.complaints), maxNamed)] {
		line := r.named[i] + ": " + c.err.Error()
		if c.text != "" {
			line += " (" + c.text + ")"
		}
		lines = append(lines, line)
	}
	if more := len(r.complaints) - maxNamed; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return fmt.Sprintf("nftables table inet %s: %s", r.table, strings.Join(lines, "; "))
}

// Unwrap gives the kernel's errors.
func (r *refusal) Unwrap() []error {
	var errs []error
	for _, c := range r.complaints {
		errs = append(errs, c.err)
	}
	return errs
}

// unsupported names the feature that a kernel lacks, "" if that's not it.
func (r *refusal) unsupported() string {
	for i, c := range r.complaints {
		if c.message == 0 || int(c.message) > len(r.orders) {
			continue
		}
		switch o := r.orders[c.message-1]; o.kind {
		case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_NEWSET, unix.NFT_MSG_NEWRULE:
			// ENOENT is also said of a table that somebody deleted, but then of the first order too.
			if lacks(c.err) || errors.Is(c.err, unix.ENOENT) && o.kind == unix.NFT_MSG_NEWRULE && i == 0 {
				return "nftables: " + r.named[i]
			}
		}
	}
	return ""
}

// lacks says that an error is what a kernel says of what it doesn't know.
func lacks(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// nameOf says what a complaint is about.
func nameOf(orders []order, c complaint, e element) string {
	i := int(c.message) - 1
	if i < 0 || i >= len(orders) {
		return "the whole batch"
	}
	if orders[i].what != "" {
		return orders[i].what
	}
	verb := "add element"
	if orders[i].kind == unix.NFT_MSG_DELSETELEM {
		verb = "delete element"
	}
	if e.key == nil {
		return verb + " of " + setOf(orders[i])
	}
	return fmt.Sprintf("%s %s { %s }", verb, e.set.name(), e.set.render(e.set.kind().layout().key, e.key))
}

// setOf is the name of the set that an order is about.
func setOf(o order) string {
	for kind, value := range attrs(o.body) {
		if kind == unix.NFTA_SET_ELEM_LIST_SET {
			return text(value)
		}
	}
	return "a set"
}

// blamed is the element that a complaint means; it has no key if the kernel doesn't say.
func blamed(orders []order, batch []byte, at []int, c complaint) element {
	i := int(c.message) - 1
	if i < 0 || i >= len(orders) || orders[i].what != "" || c.offset == 0 {
		return element{}
	}
	where, name := at[i]+int(c.offset), setOf(orders[i])
	if where >= len(batch) {
		return element{}
	}
	for kind, value := range attrs(batch[where:]) {
		if kind != unix.NFTA_LIST_ELEM {
			break
		}
		for s := range setCount {
			if s.name() == name {
				e := elementFrom(value)
				e.set = s
				return e
			}
		}
	}
	return element{}
}

// elementFrom reads an element's attributes; the set is not known here.
func elementFrom(b []byte) element {
	var e element
	for kind, value := range attrs(b) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			for kind, value := range attrs(value) {
				if kind == unix.NFTA_DATA_VALUE {
					e.key = value
				}
			}
		case unix.NFTA_SET_ELEM_DATA:
			for kind, value := range attrs(value) {
				switch kind {
				case unix.NFTA_DATA_VALUE:
					e.data = value
				case unix.NFTA_DATA_VERDICT:
					e.code, e.chain = verdictFrom(value)
				}
			}
		case unix.NFTA_SET_ELEM_FLAGS:
			flags, ok := number(value, 4)
			e.end = ok && flags&unix.NFT_SET_ELEM_INTERVAL_END != 0
		}
	}
	return e
}

func verdictFrom(b []byte) (code int32, chain string) {
	for kind, value := range attrs(b) {
		switch kind {
		case unix.NFTA_VERDICT_CODE:
			n, _ := number(value, 4)
			code = int32(uint32(n)) //nolint:gosec // signed for the kernel
		case unix.NFTA_VERDICT_CHAIN:
			chain = text(value)
		}
	}
	return code, chain
}

// A span is a range of addresses, both ends in it.
type span struct{ from, to netip.Addr }

// elements of a span in a set of intervals: its first address, and the first one after it.
func (s span) elements(set setID) []element {
	e := []element{{set: set, key: s.from.AsSlice()}}
	if end := s.to.Next(); end.IsValid() {
		e = append(e, element{set: set, key: end.AsSlice(), end: true})
	}
	return e
}
