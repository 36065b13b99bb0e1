package podnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// maxPool bounds the part of a range that is used: 2^24 pods fit on no node.
const maxPool = 1 << 24

// pool gives the addresses of one range in turn, so that an address just freed is the last to be given again.
// The network's own address, the first one after it (by custom the gateway's) and, with IPv4, the broadcast address are left out.
type pool struct {
	prefix netip.Prefix
	size   uint64                // offsets first … first+size-1 are given
	last   uint64                // the offset given last
	used   map[netip.Addr]uint64 // address → its offset
}

// first is the smallest offset that is given.
const first = 2

func newPool(prefix netip.Prefix) *pool {
	return &pool{prefix: prefix, size: capacity(prefix), last: first - 1, used: map[netip.Addr]uint64{}}
}

// capacity is the number of addresses that a range has for pods.
func capacity(prefix netip.Prefix) uint64 {
	total := uint64(maxPool)
	if host := prefix.Addr().BitLen() - prefix.Bits(); host < 24 {
		total = 1 << host
	}
	reserved := uint64(first)
	if prefix.Addr().Is4() {
		reserved++ // broadcast
	}
	if total <= reserved {
		return 0
	}
	return total - reserved
}

// next takes the next free address.
func (p *pool) next() (netip.Addr, error) {
	if uint64(len(p.used)) >= p.size {
		return netip.Addr{}, fmt.Errorf("%w in %s: %d of %d are used; delete pods, or give the node a larger range (--pod-cidr)",
			ErrPoolEmpty, p.prefix, len(p.used), p.size)
	}
	for {
		p.last++
		if p.last >= first+p.size {
			p.last = first
		}
		addr := offset(p.prefix.Addr(), p.last)
		if _, used := p.used[addr]; !used {
			p.used[addr] = p.last
			return addr, nil
		}
	}
}

// take marks an address as used; one that next would never give is none of the pool's. Next goes on after the highest one taken.
func (p *pool) take(addr netip.Addr) {
	at, ok := p.index(addr)
	if !ok {
		return
	}
	p.used[addr] = at
	p.last = max(p.last, at)
}

func (p *pool) release(addr netip.Addr) { delete(p.used, addr) }

func (p *pool) index(addr netip.Addr) (uint64, bool) {
	if !p.prefix.Contains(addr) {
		return 0, false
	}
	at := low(addr) - low(p.prefix.Addr())
	return at, at >= first && at < first+p.size
}

// low is the lower half of an address. Ranges larger than 64 bits start with a lower half of zero.
func low(addr netip.Addr) uint64 {
	b := addr.As16()
	return binary.BigEndian.Uint64(b[8:])
}

// offset returns base + n. Base must be the start of a range and n lie in it.
func offset(base netip.Addr, n uint64) netip.Addr {
	b := base.As16()
	binary.BigEndian.PutUint64(b[8:], low(base)+n)
	addr := netip.AddrFrom16(b)
	if base.Is4() {
		return addr.Unmap()
	}
	return addr
}
