package nftables

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// What golang.org/x/sys/unix has no name for, from include/uapi/linux/netfilter.
const (
	tableUserdata  = 6  // NFTA_TABLE_USERDATA
	dynsetDelete   = 2  // NFT_DYNSET_OP_DELETE, Linux 5.4
	ctStateInvalid = 1  // NF_CT_STATE_INVALID_BIT
	ctStateNew     = 8  // NF_CT_STATE_BIT(IP_CT_NEW)
	ctStatusDNAT   = 32 // IPS_DST_NAT
	portsGiven     = 2  // NF_NAT_RANGE_PROTO_SPECIFIED
	randomFully    = 16 // NF_NAT_RANGE_PROTO_RANDOM_FULLY
	portOffset     = 32 // NF_NAT_RANGE_PROTO_OFFSET: looks for a free port from that of the client on, modulo the range, Linux 4.18
	linkLoopback   = unix.ARPHRD_LOOPBACK
	typeVerdict    = 0xffffff00 // NFT_DATA_VERDICT

	socketKey, socketRegister = 1, 2 // NFTA_SOCKET_KEY, NFTA_SOCKET_DREG
	socketTransparent         = 0    // NFT_SOCKET_TRANSPARENT
)

// A part of a rule: as nft would say it, and as the kernel wants it.
type part struct {
	text string
	code []byte
}

// A rule is parts in their order. Registers don't survive from one rule to the next: Linux refuses to load what a rule has not stored.
type rule []part

func (r rule) String() string {
	words := make([]string, 0, len(r))
	for _, p := range r {
		if p.text != "" {
			words = append(words, p.text)
		}
	}
	return strings.Join(words, " ")
}

// A register of 4 bytes, 0 to 15.
type register uint32

func (r register) number() uint32 { return unix.NFT_REG32_00 + uint32(r) }

// expression encodes one; fill appends what is particular to it.
func expression(name string, fill func([]byte) []byte) []byte {
	b, element := open(nil, unix.NFTA_LIST_ELEM|nested)
	b = attrString(b, unix.NFTA_EXPR_NAME, name)
	b, data := open(b, unix.NFTA_EXPR_DATA|nested)
	if fill != nil {
		b = fill(b)
	}
	return shut(shut(b, data), element)
}

// join makes one part of several.
func join(text string, parts ...part) part {
	p := part{text: text}
	for _, one := range parts {
		p.code = append(p.code, one.code...)
	}
	return p
}

func meta(key uint32, to register) part {
	return part{code: expression("meta", func(b []byte) []byte {
		return attr32(attr32(b, unix.NFTA_META_KEY, key), unix.NFTA_META_DREG, to.number())
	})}
}

func payload(base, offset, size uint32, to register) part {
	return part{code: expression("payload", func(b []byte) []byte {
		b = attr32(b, unix.NFTA_PAYLOAD_DREG, to.number())
		b = attr32(b, unix.NFTA_PAYLOAD_BASE, base)
		b = attr32(b, unix.NFTA_PAYLOAD_OFFSET, offset)
		return attr32(b, unix.NFTA_PAYLOAD_LEN, size)
	})}
}

const original = 0 // IP_CT_DIR_ORIGINAL

// conntrack loads what conntrack knows; those of the tuple are of the original direction.
func conntrack(key uint32, to register) part {
	return part{code: expression("ct", func(b []byte) []byte {
		b = attr32(attr32(b, unix.NFTA_CT_KEY, key), unix.NFTA_CT_DREG, to.number())
		switch key {
		case unix.NFT_CT_DST_IP, unix.NFT_CT_DST_IP6, unix.NFT_CT_PROTO_DST:
			b = attr(b, unix.NFTA_CT_DIRECTION, original)
		}
		return b
	})}
}

// compare goes on if the register is equal to the value, or is not.
func compare(from register, equal bool, value ...byte) part {
	return part{code: expression("cmp", func(b []byte) []byte {
		op := uint32(unix.NFT_CMP_NEQ)
		if equal {
			op = unix.NFT_CMP_EQ
		}
		b = attr32(attr32(b, unix.NFTA_CMP_SREG, from.number()), unix.NFTA_CMP_OP, op)
		b, data := open(b, unix.NFTA_CMP_DATA|nested)
		return shut(attr(b, unix.NFTA_DATA_VALUE, value...), data)
	})}
}

func compare32(from register, equal bool, value uint32) part {
	return compare(from, equal, native32(value)...)
}

// native32 is a number as the kernel has it in a register.
func native32(value uint32) []byte { return binary.NativeEndian.AppendUint32(nil, value) }

// and masks registers in place.
func and(at register, mask []byte) part {
	return part{code: expression("bitwise", func(b []byte) []byte {
		b = attr32(attr32(b, unix.NFTA_BITWISE_SREG, at.number()), unix.NFTA_BITWISE_DREG, at.number())
		b = attr32(b, unix.NFTA_BITWISE_LEN, uint32(len(mask)))
		b, data := open(b, unix.NFTA_BITWISE_MASK|nested)
		b = shut(attr(b, unix.NFTA_DATA_VALUE, mask...), data)
		b, data = open(b, unix.NFTA_BITWISE_XOR|nested)
		return shut(attr(b, unix.NFTA_DATA_VALUE, make([]byte, len(mask))...), data)
	})}
}

// immediate stores a value.
func immediate(to register, value ...byte) part {
	return part{code: expression("immediate", func(b []byte) []byte {
		b = attr32(b, unix.NFTA_IMMEDIATE_DREG, to.number())
		b, data := open(b, unix.NFTA_IMMEDIATE_DATA|nested)
		return shut(attr(b, unix.NFTA_DATA_VALUE, value...), data)
	})}
}

func lookup(s setID, from register, to uint32, hasTo bool) part {
	return part{code: expression("lookup", func(b []byte) []byte {
		b = attrString(b, unix.NFTA_LOOKUP_SET, s.name())
		b = attr32(b, unix.NFTA_LOOKUP_SET_ID, uint32(s)+1)
		b = attr32(b, unix.NFTA_LOOKUP_SREG, from.number())
		if hasTo {
			b = attr32(b, unix.NFTA_LOOKUP_DREG, to)
		}
		return b
	})}
}

// member goes on if the set has what begins at the register.
func member(s setID, from register) part { return lookup(s, from, 0, false) }

// translate goes on if the map has what begins at the first register, and stores what it is led to.
func translate(s setID, from, to register) part { return lookup(s, from, to.number(), true) }

// dispatch takes the verdict that the map has for the register, and goes on if it has none.
func dispatch(s setID, from register) part { return lookup(s, from, unix.NFT_REG_VERDICT, true) }

// verdictData is the verdict in a rule or an element. Codes are negative for chains' own.
func verdictData(code int32, chain string) []byte {
	b, at := open(nil, unix.NFTA_DATA_VERDICT|nested)
	b = attr32(b, unix.NFTA_VERDICT_CODE, uint32(code)) //nolint:gosec // the kernel reads it as signed again
	if chain != "" {
		b = attrString(b, unix.NFTA_VERDICT_CHAIN, chain)
	}
	return shut(b, at)
}

// Verdicts of netfilter; nf_tables' own are in unix.
const (
	verdictDrop   = 0
	verdictAccept = 1
)

func verdict(text string, code int32, chain string) part {
	return part{text: text, code: expression("immediate", func(b []byte) []byte {
		b = attr32(b, unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		b, data := open(b, unix.NFTA_IMMEDIATE_DATA|nested)
		return shut(append(b, verdictData(code, chain)...), data)
	})}
}

func jump(chain string) part { return verdict("jump "+chain, unix.NFT_JUMP, chain) }
func goTo(chain string) part { return verdict("goto "+chain, unix.NFT_GOTO, chain) }
func back() part             { return verdict("return", unix.NFT_RETURN, "") }
func drop() part             { return verdict("drop", verdictDrop, "") }
func accept() part           { return verdict("accept", verdictAccept, "") }

// random stores a number below n.
func random(n uint32, to register) part {
	return part{code: expression("numgen", func(b []byte) []byte {
		b = attr32(attr32(b, unix.NFTA_NG_DREG, to.number()), unix.NFTA_NG_MODULUS, n)
		return attr32(attr32(b, unix.NFTA_NG_TYPE, unix.NFT_NG_RANDOM), unix.NFTA_NG_OFFSET, 0)
	})}
}

func (f family) dnat(addr, port register) part {
	return part{text: "dnat", code: expression("nat", func(b []byte) []byte {
		b = attr32(attr32(b, unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT), unix.NFTA_NAT_FAMILY, uint32(f.protocol()))
		return attr32(attr32(b, unix.NFTA_NAT_REG_ADDR_MIN, addr.number()), unix.NFTA_NAT_REG_PROTO_MIN, port.number())
	})}
}

// masquerade chooses the port at random, so that connections that begin at the same moment hardly ever take the same one, and above the usual range of
// NodePorts: else an answer to such a client would look like something sent to a NodePort, and be led elsewhere by a data plane that sees it leave.
func masquerade() part {
	lowest, highest := register(0), register(1)
	p := part{code: expression("masq", func(b []byte) []byte {
		b = attr32(b, unix.NFTA_MASQ_FLAGS, randomFully|portsGiven)
		b = attr32(b, unix.NFTA_MASQ_REG_PROTO_MIN, lowest.number())
		return attr32(b, unix.NFTA_MASQ_REG_PROTO_MAX, highest.number())
	})}
	return join("masquerade to :32768-65535 fully-random", immediate(lowest, 0x80, 0), immediate(highest, 0xff, 0xff), p)
}

// ownPorts gives a connection that keeps its client's address another source port, below those that clients take for themselves (32768-60999): the same
// for the same port, if that is free. Else an endpoint that a client dials both at its own address and through a Service would see connections of one
// four-tuple whose clocks have nothing to do with each other (the offset of TCP's timestamps, RFC 7323, section 5.4, depends on what was dialled and
// from where), and refuse those that follow one in TIME-WAIT.
//
// A server's port from 32768 on is an exception: its clients have ports there, too. So ports alone say which packets between pods were not translated.
func (f family) ownPorts(high bool) part {
	addr, lowest, highest := register(0), f.registers(), f.registers()+1
	p := part{code: expression("nat", func(b []byte) []byte {
		b = attr32(attr32(b, unix.NFTA_NAT_TYPE, unix.NFT_NAT_SNAT), unix.NFTA_NAT_FAMILY, uint32(f.protocol()))
		b = attr32(b, unix.NFTA_NAT_REG_ADDR_MIN, addr.number())
		b = attr32(attr32(b, unix.NFTA_NAT_REG_PROTO_MIN, lowest.number()), unix.NFTA_NAT_REG_PROTO_MAX, highest.number())
		return attr32(b, unix.NFTA_NAT_FLAGS, portOffset|portsGiven)
	})}
	if high {
		return join(fmt.Sprintf("snat to %s saddr:32768-65535 by its port", f.ip()), f.address(true, addr), immediate(lowest, 0x80, 0), immediate(highest, 0xff, 0xff), p)
	}
	return join(fmt.Sprintf("snat to %s saddr:1024-32767 by its port", f.ip()), f.address(true, addr), immediate(lowest, 0x04, 0), immediate(highest, 0x7f, 0xff), p)
}

// highDestination matches ports from 32768 on, or those below.
func highDestination(is bool) part {
	text := "th dport < 32768"
	if is {
		text = "th dport >= 32768"
	}
	return join(text, port(0), and(0, []byte{0x80, 0}), compare(0, !is, 0, 0))
}

// notrack has conntrack not look at the packet.
func notrack() part { return part{text: "notrack", code: expression("notrack", nil)} }

func protocolIsNot(name string, number byte) part {
	return join("meta l4proto != "+name, meta(unix.NFT_META_L4PROTO, 0), compare(0, false, number))
}

func tcp() part {
	return join("meta l4proto tcp", meta(unix.NFT_META_L4PROTO, 0), compare(0, true, unix.IPPROTO_TCP))
}

func reject(text string, kind uint32, code byte) part {
	return part{text: text, code: expression("reject", func(b []byte) []byte {
		return attr(attr32(b, unix.NFTA_REJECT_TYPE, kind), unix.NFTA_REJECT_ICMP_CODE, code)
	})}
}

// sourceIsLocal matches what this node itself sends.
func sourceIsLocal() part {
	p := part{code: expression("fib", func(b []byte) []byte {
		b = attr32(b, unix.NFTA_FIB_DREG, register(0).number())
		b = attr32(b, unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_ADDRTYPE)
		return attr32(b, unix.NFTA_FIB_FLAGS, unix.NFTA_FIB_F_SADDR)
	})}
	return join("fib saddr type local", p, compare32(0, true, unix.RTN_LOCAL))
}

// socketExists goes on if somebody on this node has a socket for the packet.
func socketExists() part {
	return part{code: expression("socket", func(b []byte) []byte {
		return attr32(attr32(b, socketKey, socketTransparent), socketRegister, register(0).number())
	})}
}

// dynset writes an element from registers; the timeout is in seconds, 0 for none.
func dynset(s setID, op uint32, key, data register, seconds uint32) part {
	return part{code: expression("dynset", func(b []byte) []byte {
		b = attrString(b, unix.NFTA_DYNSET_SET_NAME, s.name())
		b = attr32(b, unix.NFTA_DYNSET_SET_ID, uint32(s)+1)
		b = attr32(attr32(b, unix.NFTA_DYNSET_OP, op), unix.NFTA_DYNSET_SREG_KEY, key.number())
		b = attr32(b, unix.NFTA_DYNSET_SREG_DATA, data.number())
		if seconds > 0 {
			b = attr64(b, unix.NFTA_DYNSET_TIMEOUT, uint64(seconds)*1000)
		}
		return b
	})}
}
