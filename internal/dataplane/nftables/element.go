package nftables

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane/slots"
	"github.com/endpointd/endpointd/internal/model"
)

// A family is 4 or 6.
type family uint8

const (
	v4 family = 4
	v6 family = 6
)

func families() [2]family { return [...]family{v4, v6} }

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return v4
	}
	return v6
}

// size of an address in bytes.
func (f family) size() int {
	if f == v4 {
		return 4
	}
	return 16
}

// registers that an address takes.
func (f family) registers() register { return register(f.size() / 4) }

func (f family) protocol() byte {
	if f == v4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// A kind of set or map; there is one for each family.
type kind uint8

const (
	frontends kind = iota
	poolSlots
	stickyEndpoints
	affinity
	sources
	hairpins
	addresses
	podRanges
	clusterRanges
	serviceRanges
	untrackedRanges
	entry
	pickInternal
	pickExternal
	rememberInternal
	rememberExternal
	kinds
)

// A setID is a kind and a family.
type setID uint8

func (k kind) of(f family) setID {
	if f == v4 {
		return setID(k) * 2
	}
	return setID(k)*2 + 1
}

const setCount = setID(kinds) * 2

func (s setID) kind() kind { return kind(s / 2) }

func (s setID) family() family { return v4 + family(s%2)*2 }

// A field of a key or of data; each takes whole registers.
type field uint8

const (
	fieldAddr field = iota
	fieldProtocol
	fieldPort
	fieldPool
	fieldNumber
	fieldClass
	fieldVerdict
)

func (f field) size(of family) int {
	switch f {
	case fieldAddr:
		return of.size()
	case fieldPool:
		return 8
	case fieldVerdict:
		return 0
	default:
		return 4
	}
}

// A layout is what a set or map is declared as.
type layout struct {
	name      string
	key, data []field // no data: it's a set
	flags     uint32
	size      uint32 // 0: as many as there is memory for
}

// maxClients bounds what clients can make the kernel remember, for each family: a client more gets no session affinity.
const maxClients = 1 << 18

func (k kind) layout() layout {
	target := []field{fieldAddr, fieldPort}
	verdicts := []field{fieldVerdict}
	number := []field{fieldNumber}
	switch k {
	case frontends:
		return layout{name: "frontends", key: []field{fieldAddr, fieldProtocol, fieldPort}, data: []field{
			fieldNumber, fieldClass, fieldClass, fieldPool, fieldNumber, fieldPool, fieldNumber, fieldNumber, fieldNumber, fieldClass,
		}}
	case poolSlots:
		return layout{name: "slots", key: []field{fieldPool, fieldNumber}, data: target}
	case stickyEndpoints:
		return layout{name: "sticky-endpoints", key: []field{fieldPool, fieldAddr, fieldPort}}
	case affinity:
		return layout{name: "affinity", key: []field{fieldPool, fieldAddr}, data: target, flags: unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL, size: maxClients}
	case sources:
		return layout{name: "sources", key: []field{fieldNumber, fieldAddr, fieldAddr, fieldProtocol, fieldPort}}
	case hairpins:
		return layout{name: "hairpins", key: []field{fieldAddr, fieldAddr}}
	case addresses:
		return layout{name: "addresses", key: []field{fieldAddr}}
	case podRanges:
		return layout{name: "pods", key: []field{fieldAddr}, flags: unix.NFT_SET_INTERVAL}
	case clusterRanges:
		return layout{name: "cluster", key: []field{fieldAddr}, flags: unix.NFT_SET_INTERVAL}
	case serviceRanges:
		return layout{name: "services", key: []field{fieldAddr}, flags: unix.NFT_SET_INTERVAL}
	case untrackedRanges:
		return layout{name: "untracked", key: []field{fieldAddr}, flags: unix.NFT_SET_INTERVAL}
	case entry:
		return layout{name: "entry", key: []field{fieldClass}, data: verdicts}
	case pickInternal:
		return layout{name: "pick-internal", key: []field{fieldClass}, data: verdicts}
	case pickExternal:
		return layout{name: "pick-external", key: []field{fieldClass}, data: verdicts}
	case rememberInternal:
		return layout{name: "remember-internal", key: number, data: verdicts}
	default:
		return layout{name: "remember-external", key: number, data: verdicts}
	}
}

func (s setID) name() string { return fmt.Sprintf("%s%d", s.kind().layout().name, s.family()) }

// width in bytes of fields.
func (s setID) width(fields []field) int {
	size := 0
	for _, f := range fields {
		size += f.size(s.family())
	}
	return size
}

// Registers of a frontend's data, if it is looked up into register 0.
const (
	// What comes first is none that another map is asked for: nft 1.0.6 aborts when it lists that.
	atFlags            register = 0
	atInternalClass    register = 1
	atExternalClass    register = 2
	atInternalPool     register = 3
	atInternalSize     register = 5 // to be overwritten with the number drawn
	atExternalPool     register = 6
	atExternalSize     register = 8
	atInternalAffinity register = 9
	atExternalAffinity register = 10
	atEntry            register = 11 // class of both sides, or classSpecial
	frontendData                = 12 * 4
)

// Flags of a frontend.
const (
	flagKeepSource = 1 << iota
	flagFiltered
	flagSticky // a pool of it has session affinity
)

// A class says how an endpoint is drawn, see [classOf].
const (
	classDrop    = 0xffffffff
	classSpecial = 0xfffffffe // clients are not all treated in the same way
	classReject  = 0          // nobody is led anywhere, and who is not is rejected
	// maxExact is how many endpoints have a chain for their very number. Above it there's one for each power of two: numbers are drawn until
	// one is below the number of endpoints, so each has the same chance.
	maxExact = 64
	// maxPower is the size of the largest pool, 1,048,576 endpoints; further ones get no traffic.
	maxPower = 20
	// draws are made before a pool is drawn from that is half as large. Each fails with a probability below 1/2, so all do once in 65,536 times at worst.
	draws = 16
)

// classOf is the number of endpoints, or the next power of two.
func classOf(t slots.Target) uint32 {
	switch {
	case t.Size == 0 && t.Empty == model.Drop:
		return classDrop
	case t.Size <= maxExact:
		return t.Size
	default:
		return 1 << min(maxPower, bits.Len32(t.Size-1))
	}
}

// frontendKey appends the key of a frontend.
func frontendKey(b []byte, k model.FrontendKey) []byte {
	b = append(b, k.Addr.AsSlice()...)
	b = append(b, byte(k.Protocol), 0, 0, 0)
	return appendPort(b, k.Port)
}

// appendPort is in network order, padded to a register.
func appendPort(b []byte, port uint16) []byte { return append(b, byte(port>>8), byte(port), 0, 0) }

func appendTarget(b []byte, t netip.AddrPort) []byte {
	return appendPort(append(b, t.Addr().AsSlice()...), t.Port())
}

// frontendValue appends what the kernel keeps of a frontend.
func frontendValue(b []byte, f slots.Frontend) []byte {
	var flags uint32
	class := classOf(f.Internal)
	if f.KeepSource {
		flags |= flagKeepSource
	}
	if f.Filtered {
		flags |= flagFiltered
	}
	if f.Internal.Affinity+f.External.Affinity > 0 {
		flags |= flagSticky
	}
	if f.Internal != f.External || flags&(flagFiltered|flagSticky) != 0 {
		class = classSpecial
	}
	b = append(b, native32(flags)...)
	b = append(b, native32(classOf(f.Internal))...)
	b = append(b, native32(classOf(f.External))...)
	for _, t := range []slots.Target{f.Internal, f.External} {
		b = binary.BigEndian.AppendUint64(b, uint64(t.Pool))
		b = binary.NativeEndian.AppendUint32(b, t.Size)
	}
	for _, number := range []uint32{f.Internal.Affinity, f.External.Affinity, class} {
		b = binary.NativeEndian.AppendUint32(b, number)
	}
	return b
}

// frontendOf is the inverse of frontendValue. What nobody of us wrote becomes a frontend that no Snapshot has.
func frontendOf(b []byte) slots.Frontend {
	strange := slots.Frontend{Present: true}
	if len(b) != frontendData {
		return strange
	}
	at := func(r register) uint32 { return binary.NativeEndian.Uint32(b[r*4:]) }
	target := func(class, pool, size, affinity register) slots.Target {
		t := slots.Target{Pool: slots.PoolID(binary.BigEndian.Uint64(b[pool*4:])), Size: at(size), Affinity: at(affinity)}
		if at(class) == classDrop {
			t.Empty = model.Drop
		}
		return t
	}
	f := slots.Frontend{
		Present:    true,
		Internal:   target(atInternalClass, atInternalPool, atInternalSize, atInternalAffinity),
		External:   target(atExternalClass, atExternalPool, atExternalSize, atExternalAffinity),
		KeepSource: at(atFlags)&flagKeepSource != 0, Filtered: at(atFlags)&flagFiltered != 0,
	}
	if string(frontendValue(nil, f)) != string(b) {
		return strange
	}
	return f
}

// frontendKeyOf is the inverse of frontendKey.
func frontendKeyOf(b []byte, f family) (model.FrontendKey, bool) {
	size := f.size()
	if len(b) != size+8 {
		return model.FrontendKey{}, false
	}
	addr, _ := netip.AddrFromSlice(b[:size])
	k := model.FrontendKey{Addr: addr, Protocol: model.Protocol(b[size]), Port: binary.BigEndian.Uint16(b[size+4:])}
	return k, string(frontendKey(nil, k)) == string(b)
}

// targetOf is the inverse of appendTarget.
func targetOf(b []byte, f family) (netip.AddrPort, bool) {
	size := f.size()
	if len(b) != size+4 {
		return netip.AddrPort{}, false
	}
	addr, _ := netip.AddrFromSlice(b[:size])
	t := netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[size:]))
	return t, string(appendTarget(nil, t)) == string(b)
}

// slotKey appends the key of a slot.
func slotKey(b []byte, s slots.Slot) []byte {
	return binary.NativeEndian.AppendUint32(binary.BigEndian.AppendUint64(b, uint64(s.Pool)), s.Index)
}

// sourceKey appends the key of a range that may reach a frontend: its length, then its first address. Ranges of one frontend may lie in each other,
// which sets with intervals refuse; so each length is looked for by itself.
func sourceKey(b []byte, s slots.Source) []byte {
	b = append(b, native32(uint32(s.Range.Bits()))...)
	b = append(b, s.Range.Masked().Addr().AsSlice()...)
	return frontendKey(b, s.Frontend)
}

// sourceOf is the inverse of sourceKey.
func sourceOf(b []byte, f family) (slots.Source, bool) {
	size := f.size()
	if len(b) != 4+2*size+8 {
		return slots.Source{}, false
	}
	addr, _ := netip.AddrFromSlice(b[4 : 4+size])
	length := binary.NativeEndian.Uint32(b)
	if length > uint32(addr.BitLen()) {
		return slots.Source{}, false
	}
	s := slots.Source{Range: netip.PrefixFrom(addr, int(length))}
	var ok bool
	s.Frontend, ok = frontendKeyOf(b[4+size:], f)
	return s, ok && string(sourceKey(nil, s)) == string(b)
}

// A stickyEndpoint may be kept by clients of a pool with session affinity.
type stickyEndpoint struct {
	pool slots.PoolID
	addr netip.AddrPort
}

func stickyKey(b []byte, s stickyEndpoint) []byte {
	return appendTarget(binary.BigEndian.AppendUint64(b, uint64(s.pool)), s.addr)
}

// render is a key or data as nft would print it.
func (s setID) render(fields []field, b []byte) string {
	words := make([]string, 0, len(fields))
	for _, f := range fields {
		size := f.size(s.family())
		if len(b) < size {
			return fmt.Sprintf("%x", b)
		}
		words = append(words, f.render(b[:size]))
		b = b[size:]
	}
	return strings.Join(words, " . ")
}

func (f field) render(b []byte) string {
	switch f {
	case fieldAddr:
		addr, _ := netip.AddrFromSlice(b)
		return addr.String()
	case fieldProtocol:
		switch model.Protocol(b[0]) {
		case model.TCP:
			return "tcp"
		case model.UDP:
			return "udp"
		case model.SCTP:
			return "sctp"
		}
		return fmt.Sprint(b[0])
	case fieldPort:
		return fmt.Sprint(binary.BigEndian.Uint16(b))
	case fieldPool:
		return fmt.Sprintf("%#016x", binary.BigEndian.Uint64(b))
	case fieldVerdict:
		return "a verdict"
	case fieldClass:
		return className(binary.NativeEndian.Uint32(b))
	default:
		return fmt.Sprint(binary.NativeEndian.Uint32(b))
	}
}

func className(class uint32) string {
	switch class {
	case classDrop:
		return "drop"
	case classReject:
		return "reject"
	case classSpecial:
		return "special"
	default:
		return fmt.Sprint(class)
	}
}
