package ebpf

import (
	"encoding/binary"
	"net/netip"

	"github.com/endpointd/endpointd/internal/dataplane/slots"
	"github.com/endpointd/endpointd/internal/model"
)

// Flags and states, as in bpf/layout.h.
const (
	nodeOnly  = 1
	connected = 1
)

// toKernel is an address as the maps have it: in network byte order, IPv4 as ::ffff:a.b.c.d.
func toKernel(a netip.AddrPort) programAddrPort {
	var k programAddrPort
	bytes := a.Addr().As16()
	for i := range k.Addr {
		k.Addr[i] = binary.NativeEndian.Uint32(bytes[4*i:])
	}
	k.Port = bigEndian(a.Port())
	return k
}

// fromKernel is the address again. Any bytes are one.
func fromKernel(k programAddrPort) netip.AddrPort {
	var bytes [16]byte
	for i, word := range k.Addr {
		binary.NativeEndian.PutUint32(bytes[4*i:], word)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(bytes).Unmap(), bigEndian(k.Port))
}

// bigEndian turns a number into one that has its bytes in network order, and back.
func bigEndian(n uint16) uint16 {
	var bytes [2]byte
	binary.BigEndian.PutUint16(bytes[:], n)
	return binary.NativeEndian.Uint16(bytes[:])
}

func frontendKey(key model.FrontendKey) programAddrPort {
	k := toKernel(netip.AddrPortFrom(key.Addr, key.Port))
	k.Protocol = uint16(key.Protocol)
	return k
}

// frontendValue is what the map has of a frontend. It has none, and the zero value is returned, unless the programs may translate it.
func frontendValue(key model.FrontendKey, f slots.Frontend) programFrontend {
	if !f.Present || f.Filtered || f.Internal.Size == 0 || (key.Protocol != model.TCP && key.Protocol != model.UDP) {
		return programFrontend{}
	}
	value := programFrontend{Key: frontendKey(key), Size: f.Internal.Size, Pool: uint64(f.Internal.Pool), Affinity: f.Internal.Affinity}
	if key.Addr.IsLoopback() {
		value.Flags |= nodeOnly
	}
	return value
}

// readFrontend is what slots should know of an entry of the map: as much of it as the map has.
func readFrontend(key programAddrPort, value programFrontend) (model.FrontendKey, slots.Frontend) {
	at := fromKernel(key)
	return model.FrontendKey{Addr: at.Addr(), Port: at.Port(), Protocol: model.Protocol(key.Protocol)}, slots.Frontend{
		Present:  true,
		Internal: slots.Target{Pool: slots.PoolID(value.Pool), Size: value.Size, Affinity: value.Affinity},
	}
}

func slotKey(s slots.Slot) programSlotKey {
	return programSlotKey{Pool: uint64(s.Pool), Index: s.Index}
}

func memberKey(pool slots.PoolID, endpoint netip.AddrPort) programMemberKey {
	return programMemberKey{Pool: uint64(pool), Endpoint: toKernel(endpoint)}
}
