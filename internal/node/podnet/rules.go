package podnet

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers of 4 bytes; that of number n begins 4n bytes after the first.
const (
	reg0 = unix.NFT_REG32_00
	reg1 = unix.NFT_REG32_01
	reg4 = unix.NFT_REG32_04
)

// The expressions of rules.

func family(v4 bool) []expr.Any {
	proto := byte(unix.NFPROTO_IPV6)
	if v4 {
		proto = unix.NFPROTO_IPV4
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{proto}},
	}
}

// linkIs matches packets from or to a pod by the name of the interface.
func linkIs(key expr.MetaKey) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte(linkPrefix)},
	}
}

func toLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg0, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

// address loads the source or destination of a packet.
func address(v4, source bool, register uint32) *expr.Payload {
	offset, size := uint32(24), uint32(16)
	if v4 {
		offset, size = 16, 4
	}
	if source {
		offset -= size
	}
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
}

// within matches a source or destination in a prefix.
func within(prefix netip.Prefix, source bool) []expr.Any {
	size := prefix.Addr().BitLen() / 8
	mask := make([]byte, size)
	for i := range prefix.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		address(size == 4, source, unix.NFT_REG_1),
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: uint32(size), Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: prefix.Masked().Addr().AsSlice()},
	}
}

// outside matches a source that is not in a prefix.
func outside(prefix netip.Prefix) []expr.Any {
	exprs := within(prefix, true)
	exprs[len(exprs)-1].(*expr.Cmp).Op = expr.CmpOpNeq
	return exprs
}

// noWayBack matches a source that is not routed to the interface that the packet came from.
func noWayBack() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg0, ResultOIF: true, FlagSADDR: true, FlagIIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: make([]byte, 4)},
	}
}

func (f familyTable) load(source bool, register uint32) []expr.Any {
	return []expr.Any{address(f.v4, source, register)}
}

// after returns the n-th register after an address at the first.
func (f familyTable) after(n uint32) uint32 {
	if f.v4 {
		return reg1 + n
	}
	return reg4 + n
}

func protocolPort(protocol, port uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: protocol},
		&expr.Payload{DestRegister: port, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// dnat looks the key at the first register up and sends the packet there; one that is not found goes on.
func (f familyTable) dnat(m *nftables.Set) []expr.Any {
	proto := uint32(unix.NFPROTO_IPV6)
	if f.v4 {
		proto = unix.NFPROTO_IPV4
	}
	return []expr.Any{
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: proto, RegAddrMin: reg0, RegProtoMin: f.after(0), Specified: true},
	}
}

func member(set *nftables.Set, not bool) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg0, SetName: set.Name, SetID: set.ID, Invert: not}}
}

func snat(to netip.Addr) []expr.Any {
	proto := uint32(unix.NFPROTO_IPV6)
	if to.Is4() {
		proto = unix.NFPROTO_IPV4
	}
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG_1, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: proto, RegAddrMin: unix.NFT_REG_1},
	}
}

// wasTranslated matches connections that somebody led elsewhere.
func wasTranslated() []expr.Any {
	const dnat = 1 << 5 // IPS_DST_NAT
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg0},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dnat), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: make([]byte, 4)},
	}
}

// tcpTo matches TCP to ports from 32768 on, or to those below.
func tcpTo(high bool) []expr.Any {
	op := expr.CmpOpEq
	if high {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: reg0, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 2, Mask: []byte{0x80, 0}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: op, Register: reg0, Data: []byte{0, 0}},
	}
}

// fromElsewhere matches what this node itself did not send.
func fromElsewhere() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg0, ResultADDRTYPE: true, FlagSADDR: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// ownPorts keeps the client's address and has its port be on the same side of 32768 as the server's, see package nftables.
func (f familyTable) ownPorts(high bool) []expr.Any {
	proto, lowest, highest := uint32(unix.NFPROTO_IPV6), []byte{0x04, 0}, []byte{0x7f, 0xff}
	if f.v4 {
		proto = unix.NFPROTO_IPV4
	}
	if high {
		lowest, highest = []byte{0x80, 0}, []byte{0xff, 0xff}
	}
	return append(f.load(true, reg0),
		&expr.Immediate{Register: f.after(0), Data: lowest}, &expr.Immediate{Register: f.after(1), Data: highest},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: proto, RegAddrMin: reg0, RegProtoMin: f.after(0), RegProtoMax: f.after(1), Specified: true})
}
